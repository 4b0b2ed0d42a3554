"""Silence gRPC's C library, which would write connection notices across a progress bar.

Import before grpc, which reads the variable once. Set GRPC_VERBOSITY=INFO to see the notices.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
