"""python -m services.train"""

from services.runtime.service import main
from services.train.service import TrainService

if __name__ == "__main__":
    main(TrainService)
