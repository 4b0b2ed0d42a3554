"""Exponential backoff with jitter."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Waits between retries: doubled after each failure, with jitter so that many clients do not retry in step."""

    first_seconds: float = 0.2
    """Longest wait after the first failure."""

    last_seconds: float = 10.0
    """Longest wait of all; caps a server's RetryInfo too."""

    def seconds(self, failures: int, at_least: float | None = None) -> float:
        """Seconds to wait after `failures` (1, 2, ...) in a row: from half of the doubled wait to all of it.

        `at_least` is what the server asked for.
        """
        longest = min(self.last_seconds, self.first_seconds * 2.0 ** min(failures - 1, 60))
        return max(random.uniform(longest / 2, longest), min(at_least or 0.0, self.last_seconds))
