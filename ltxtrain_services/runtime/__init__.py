"""The library of the three services; it knows none of them.

Ray reads how to authenticate when it is imported, and never again: so this comes before any import of it.
"""

import os
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Its C core writes a line of its own, at any rate, for each peer that breaks a rule of HTTP/2 or fails a handshake.
# ERROR is its default, which `ltxtrain up` hands on; an operator who wants those lines sets INFO.
if os.environ.get("GRPC_VERBOSITY", "ERROR").upper() == "ERROR":
    os.environ["GRPC_VERBOSITY"] = "NONE"


def _ray_token() -> str:
    """As read_settings finds it, which says what is wrong with a file that cannot be read."""
    try:
        return Path(os.environ["LTXTRAIN_RAY_TOKEN_FILE"]).read_text().strip()
    except (KeyError, OSError):
        return os.environ.get("LTXTRAIN_RAY_TOKEN", "")


if token := _ray_token():
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", token)
