"""python -m ltxtrain_services.ingest: the Ingest service, by environment variables."""

from ltxtrain_services.ingest.service import IngestService
from ltxtrain_services.runtime.service import main

if __name__ == "__main__":
    main(IngestService)
