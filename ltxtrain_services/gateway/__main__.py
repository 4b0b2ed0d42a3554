"""python -m ltxtrain_services.gateway"""

from ltxtrain_services.gateway.server import main

if __name__ == "__main__":
    main()
