"""How long fuzzing takes: seconds in a usual run, as long as one likes with `FUZZ_FACTOR` (`make fuzz` sets 100)."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings

FACTOR = max(1, int(os.environ.get("FUZZ_FACTOR", "1")))
DEADLINE = timedelta(seconds=10)
"""Of one example: none takes a tenth of a second, and one that hangs is a failure and not a night lost."""


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """A property tried with so many examples, times `FUZZ_FACTOR`."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples * FACTOR, deadline=DEADLINE, suppress_health_check=slow)
