"""The cases run against the services that decide them."""

from tests.services.ingest.conftest import hostile, ingest
from tests.services.preprocess.conftest import preprocess

__all__ = ["hostile", "ingest", "preprocess"]
