"""python -m ltxtrain_services.preprocess"""

from ltxtrain_services.preprocess.service import PreprocessService
from ltxtrain_services.runtime.service import main

if __name__ == "__main__":
    main(PreprocessService)
