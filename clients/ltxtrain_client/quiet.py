"""Keeps gRPC's C library from writing connection notices across a progress bar. Import it before grpc, which reads
the variable once; set GRPC_VERBOSITY=INFO to see them."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
