"""What an evaluation card says, as tables. Needs nothing that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summary(card: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of a card: each window's systems, recall@20 and MAP@12 by kind of target."""
    found = []
    for name, window in card.get("windows", {}).items():
        kinds = [k for k, size in window["targets"].items() if size["users"]]
        head = ["recall@20 / MAP@12", *(f"{k} ({window['targets'][k]['users']} users)" for k in kinds)]
        rows = []
        for system, by_kind in window["systems"].items():
            cells = [
                f"{by_kind[k]['recall@20']:.4f} / {by_kind[k]['map@12']:.4f}" if k in by_kind else "" for k in kinds
            ]
            rows.append([system, *cells])
        begin, end = (day[:10] for day in window["windows"]["test"])
        found.append((f"{name}: {begin} to {end}", head, rows))
    return found
