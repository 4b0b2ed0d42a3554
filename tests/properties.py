"""How property tests run: the same few examples in the suite, as many new ones as wished in a soak.

PROPERTY_EXAMPLES=20000 pytest tests/services/ingest/test_foreign_bytes.py
"""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = "PROPERTY_EXAMPLES"

# No database: a failure names its example, which then becomes a test of its own.
bounded = settings(
    max_examples=int(os.environ.get(EXAMPLES, "100")),
    derandomize=EXAMPLES not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
