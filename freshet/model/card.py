"""What an evaluation card says, as tables. Needs nothing that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAYS_FROM_ORDERS = 300
"""Orders from which training was ahead of day zero on novel products (`docs/decisions/dayzero.md`)."""


def remarks(card: Mapping[str, Any]) -> list[str]:
    """What a reader of the card should know beside its figures, a sentence each."""
    found = []
    orders = card.get("orders")
    if card.get("kind") == "dayzero" and orders is not None:
        pays = "freshet train should pay" if orders >= PAYS_FROM_ORDERS else f"it pays from {PAYS_FROM_ORDERS} or so"
        found.append(
            f"Made without training, of {orders} orders: {pays} "
            "(quality against the amount of history: docs/decisions/dayzero.md)."
        )
    if not card.get("windows"):
        found.append("Nothing happened after its cut, so there is nothing to measure with.")
    return found


def summary(card: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of a card: each window's systems, recall@20 and MAP@12 by kind of target."""
    found = []
    windows = card.get("windows", {})
    for name in ("validation", "test"):  # in order of time; JSON keeps none
        if name not in windows:
            continue
        window = windows[name]
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
