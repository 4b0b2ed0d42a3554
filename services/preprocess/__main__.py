"""python -m services.preprocess"""

from services.preprocess.service import PreprocessService
from services.runtime.service import main

if __name__ == "__main__":
    main(PreprocessService)
