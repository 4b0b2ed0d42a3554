"""python -m ltxtrain_services.train"""

from ltxtrain_services.runtime.service import main
from ltxtrain_services.train.service import TrainService

if __name__ == "__main__":
    main(TrainService)
