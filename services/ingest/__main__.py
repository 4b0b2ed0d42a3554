"""python -m services.ingest: the Ingest service, by environment variables."""

from services.ingest.service import IngestService
from services.runtime.service import main

if __name__ == "__main__":
    main(IngestService)
