"""What weights and settings are compared by."""

from __future__ import annotations

from collections.abc import Mapping


def score_of(found: Mapping[str, float]) -> float:
    """Recall@20 of all targets plus four times that of novel ones; 0 without either."""
    return found["all"] + 4.0 * found["novel"] if found else 0.0
