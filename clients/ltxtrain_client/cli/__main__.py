"""`python -m ltxtrain_client.cli`, for where the console script is not on the path."""

from ltxtrain_client.cli import main

if __name__ == "__main__":
    main()
