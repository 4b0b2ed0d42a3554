"""The cases run against the services that decide them."""

from tests.services.ingest.conftest import hostile, ingest

__all__ = ["hostile", "ingest"]
