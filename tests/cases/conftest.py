"""The cases run against the services that decide them."""

from tests.services.ingest.conftest import hostile, ingest, object_store, ray_cluster

__all__ = ["hostile", "ingest", "object_store", "ray_cluster"]
