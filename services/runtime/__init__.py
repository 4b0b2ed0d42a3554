"""The library of the three services; it knows none of them.

Ray reads how to authenticate when it is imported, and never again: so this comes before any import of it.
"""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
if token := os.environ.get("LTXTRAIN_RAY_TOKEN"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", token)
