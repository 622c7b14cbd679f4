"""The questions of `freshet replay-eval`: what each order, or each view of something new in a visit, is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from freshet.errors import FreshetError
from freshet.model.evaluation.freshness import Ask
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind, Purchase, View

VISIT_GAP_MS = 30 * 60_000
"""A pause longer than this begins a new visit (views carry no session)."""


@dataclass
class _Open:
    """An ask while the log is read."""

    user: str
    time_ms: int
    bought: dict[str, bool] = field(default_factory=dict)
    """Product, and whether its line was cancelled."""
    hidden: frozenset[str] = frozenset()

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(product for product, cancelled in self.bought.items() if not cancelled)


def read_asks(
    log: EventLog, from_ms: int, until_ms: int, of_views: bool, asks_max: int, seed: int
) -> tuple[Ask, ...]:  # fmt: skip
    """The asks of `[from_ms, until_ms)` in order of time, at most `asks_max` of them, drawn uniformly.

    Of orders: one at the first purchase of each, for its products but for lines taken back. Of views: one at each
    view of a product not seen in the running visit, but for the visit's first; what the visit has seen is hidden.
    Raises FreshetError when the period has none.
    """
    found = [a for a in (_of_views if of_views else _of_orders)(log, from_ms, until_ms) if a.targets]
    if not found:
        raise FreshetError(_nothing(log, from_ms, until_ms, of_views))
    if len(found) > asks_max:
        rows = np.sort(np.random.default_rng(seed).choice(len(found), asks_max, replace=False))
        found = [found[row] for row in rows.tolist()]
    return _with_seen(log, found, from_ms, until_ms, of_views)


def _of_orders(log: EventLog, from_ms: int, until_ms: int) -> list[_Open]:
    orders: dict[tuple[str, str], _Open] = {}
    for event in log.stream([Kind.PURCHASE], from_ms, until_ms):
        assert isinstance(event, Purchase)
        key = event.user_id, event.order_id or event.event_id
        order = orders.setdefault(key, _Open(event.user_id, event.timestamp))
        for product, cancelled in _lines(event):
            order.bought[product] = order.bought.get(product, False) or cancelled
    return list(orders.values())


def _of_views(log: EventLog, from_ms: int, until_ms: int) -> list[_Open]:
    found: list[_Open] = []
    visits: dict[str, tuple[int, set[str]]] = {}
    for event in log.stream([Kind.VIEW], from_ms, until_ms):
        assert isinstance(event, View)
        last_ms, seen = visits.get(event.user_id, (0, set()))
        if event.timestamp - last_ms > VISIT_GAP_MS:
            seen = set()
        elif event.product_id not in seen:
            found.append(_Open(event.user_id, event.timestamp, {event.product_id: False}, frozenset(seen)))
        seen.add(event.product_id)
        visits[event.user_id] = event.timestamp, seen
    return found


def _with_seen(log: EventLog, asks: list[_Open], from_ms: int, until_ms: int, of_views: bool) -> tuple[Ask, ...]:
    """The asks with what their users had bought (of views: or viewed) strictly before each."""
    seen: dict[str, set[str]] = {ask.user: set() for ask in asks}
    activity = dict.fromkeys(seen, 0)
    kinds = [Kind.PURCHASE, Kind.VIEW] if of_views else [Kind.PURCHASE]
    out: list[Ask] = []
    for event in log.stream(kinds, until_ms=until_ms):
        assert isinstance(event, (Purchase, View))
        while len(out) < len(asks) and asks[len(out)].time_ms <= event.timestamp:
            out.append(_closed(asks[len(out)], seen, activity))
        known = seen.get(event.user_id)
        if known is None:
            continue
        lines = (
            [event.product_id] if isinstance(event, View) else [p for p, cancelled in _lines(event) if not cancelled]
        )
        known.update(lines)
        activity[event.user_id] += len(lines) if event.timestamp < from_ms else 0
    out += [_closed(ask, seen, activity) for ask in asks[len(out) :]]
    return tuple(out)


def _closed(ask: _Open, seen: dict[str, set[str]], activity: dict[str, int]) -> Ask:
    known, hidden = frozenset(seen[ask.user]), ask.hidden - set(ask.targets)
    return Ask(ask.user, ask.time_ms, ask.targets, known, hidden, activity[ask.user])


def _lines(event: Purchase) -> list[tuple[str, bool]]:
    if event.items is None:
        return [(event.product_id, event.cancelled)] if event.product_id else []
    return [(line.product_id, event.cancelled or line.cancelled) for line in event.items]


def _nothing(log: EventLog, from_ms: int, until_ms: int, of_views: bool) -> str:
    day, until = (str(np.datetime64(int(t), "ms").astype("datetime64[s]")) for t in (from_ms, until_ms))
    if of_views:
        return f"no visit with a second view in [{day}, {until}): set --from and --until, or take --targets orders"
    other = ", or take --targets views" if log.counts[Kind.VIEW] else ""
    return f"no order in [{day}, {until}): set --from and --until inside the log{other}"
