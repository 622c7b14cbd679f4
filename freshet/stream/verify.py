"""Promise 1 on a live system: what readers can see against the plain layers over the same log.

State is rebuilt from the event log and the topics in one go, encoded by the PyTorch Geometric layers, and
compared, user by user and product by product, with Redis and with an index that follows the changelog.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.store.columns import F32
from freshet.store.embeddings import EmbeddingStore, ServingState
from freshet.store.graph import GraphStore
from freshet.store.value import decode_value
from freshet.stream.decode import DecodeLimits, decode
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.placement import Placement
from freshet.stream.status_text import silent
from freshet.stream.worker_status import combined, read_statuses, unserved

ATOL = 1e-5
WORST_MAX = 10
"""Worst keys that a report names."""

Progress = Callable[[str, int, int], None]


class NotQuiet(FreshetError):
    """The worker did not come to rest in time, so there is nothing exact to compare with."""


class NotWhole(FreshetError):
    """There is nothing from which all of the state could be rebuilt."""


@dataclass
class Comparison:
    """What was found for one kind of node. `worst` lists (key, largest absolute difference)."""

    compared: int = 0
    max_abs_error: float = 0.0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    worst: list[tuple[str, float]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Everything is there, nothing else is, and nothing is further off than 1e-5."""
        return not (self.missing or self.unexpected or self.damaged) and self.max_abs_error <= ATOL


@dataclass
class Report:
    """The outcome of `verify`."""

    model_version: str
    events: int
    users: Comparison
    products: Comparison

    @property
    def passed(self) -> bool:
        """Whether users and products both passed."""
        return self.users.passed and self.products.passed


def wait_until_quiet(
    serving: ServingState, version: str, consumer: PartitionConsumer, inputs: Sequence[tuple[str, int]],
    timeout_s: float, sleep: Callable[[float], None] = time.sleep, monotonic: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> dict[str, Any]:  # fmt: skip
    """Wait until the workers have applied all that the topics hold now and owe nobody an update.

    A partition on its way from one worker to another counts as behind: what the worker of items has read of it says
    nothing about its users and its dead letters. Returns their status. Raises NotQuiet after `timeout_s`.
    """
    end = monotonic() + timeout_s
    status: dict[str, Any] = {}
    behind: list[str] = []
    nobodys: list[str] = []
    goal = {f"{t}/{p}": high for (t, p), (_, high) in consumer.watermarks(inputs).items()}
    while monotonic() < end:
        statuses = read_statuses(serving, version)
        status = combined(statuses) if statuses else {}
        positions = status.get("positions", {})
        nobodys = unserved(status) if status else []
        behind = [f"{scope} is served by nobody" for scope in nobodys]
        behind += [f"{k} at {positions.get(k, 0)} of {high}" for k, high in goal.items() if positions.get(k, 0) < high]
        owed = sum(status.get(name, 0) for name in ("ripples_waiting", "rewrites_waiting", "undelivered"))
        if status.get("state") in ("live", "stopped") and not behind and not owed:
            behind = _behind_with_states(status, inputs, consumer)
            if not behind:
                return status
        sleep(0.1)
    gone = silent(status.get("workers", [status]), int(wall() * 1e3)) if status else []
    if gone or nobodys:
        raise NotQuiet(
            f"the workers are not quiet after {timeout_s:.0f} s: {'; '.join([*gone, *behind][:4])}. "
            "See `freshet status`, and start what is missing"
        )
    raise NotQuiet(
        f"the worker is not quiet after {timeout_s:.0f} s (state {status.get('state', 'unknown')!r}, "
        f"{status.get('ripples_waiting', '?')} ripples waiting, {status.get('undelivered', '?')} records on their "
        f"way; partitions behind: {', '.join(behind[:3]) or 'none'}): stop the producers, or give "
        "--timeout more seconds"
    )


def _behind_with_states(
    status: dict[str, Any], inputs: Sequence[tuple[str, int]], consumer: PartitionConsumer
) -> list[str]:
    """What a worker of users has yet to be told of states of products; to be asked when nobody owes any."""
    known = {f"{topic}/{p}" for topic, p in inputs}
    places = [place for place in status["positions"] if place not in known]
    tps = [(topic, int(p)) for topic, _, p in (place.rpartition("/") for place in places)]
    ends = consumer.watermarks(tps)
    at = status["positions"]
    return [
        f"{place} at {at[place]} of {ends[tp][1]}"
        for place, tp in zip(places, tps, strict=True) if at[place] < ends[tp][1]
    ]  # fmt: skip


def rebuild(
    logs: Sequence[tuple[EventLog, int | None]], consumer: PartitionConsumer, inputs: Sequence[tuple[str, int]],
    kinds: dict[str, Kind], placement: Placement, limits: DecodeLimits, graph: GraphStore,
    progress: Progress = lambda what, done, total: None,
) -> int:  # fmt: skip
    """State from event logs, each with its end in ms, and everything the topics hold, applied in one go; returns how
    many records.

    Raises NotWhole where the topics do not hold all and there is no log.
    """
    marks = consumer.watermarks(inputs)
    gone = [f"{topic}/{p} begins at {low}" for (topic, p), (low, _) in sorted(marks.items()) if low]
    if gone and not logs:
        raise NotWhole(
            f"the topics do not hold every event any more ({', '.join(gone[:3])}{', ...' if gone[3:] else ''}), so "
            "state cannot be rebuilt from them alone: name an event log of what came before with --backfill"
        )
    for log, until_ms in logs:
        for columns in log.columns(until_ms=until_ms):
            graph.apply(columns)
    positions = {tp: low for tp, (low, _) in marks.items()}
    consumer.assign(positions)
    total, done = sum(high - low for low, high in marks.values()), 0
    while any(positions[tp] < high for tp, (_, high) in marks.items()):
        records = consumer.poll(5_000, 0.1)
        for record in records:
            positions[record.topic, record.partition] = record.offset + 1
        wrong = placement.misplaced(records)
        graph.apply(decode([r for i, r in enumerate(records) if i not in wrong], kinds, limits).columns)
        done += len(records)
        progress("records", min(done, total), total)
    return done


def compare(
    bundle: Bundle, graph: GraphStore, store: EmbeddingStore, indexed: tuple[list[str], F32],
    progress: Progress = lambda what, done, total: None,
) -> tuple[Comparison, Comparison]:  # fmt: skip
    """Users in the store and products in the index (ids, vectors [n, dim]) against the plain layers."""
    from freshet.model.offline import OfflineTowers  # torch is needed here alone

    towers = OfflineTowers(bundle, graph)
    users = np.array([graph.users.get(name) for name in graph.users.all_names()], dtype=np.int32)
    wanted = towers.encode_users(users, lambda done: progress("users", done, users.shape[0]))
    found = _stored(store, bundle, [n or "" for n in graph.users.names(users)])
    by_user = _compare([n or "" for n in graph.users.names(users)], wanted, found[0])
    by_user.damaged = found[1]
    by_user.unexpected = sorted(
        name for name in set(store.user_ids(bundle.model_version)) if graph.users.get(name) is None
    )
    products = np.arange(len(graph.products), dtype=np.int32)
    products = products[~graph.is_withdrawn(products)]
    wanted = towers.encode_products(products, lambda done: progress("products", done, products.shape[0]))
    live = dict(zip(indexed[0], indexed[1], strict=True))
    names = [n or "" for n in graph.products.names(products)]
    by_product = _compare(names, wanted, live)
    by_product.unexpected = sorted(set(live) - set(names))
    return by_user, by_product


def _stored(store: EmbeddingStore, bundle: Bundle, names: list[str]) -> tuple[dict[str, F32], list[str]]:
    found, damaged = {}, []
    for start in range(0, len(names), 1000):
        part = names[start : start + 1000]
        for name, raw in zip(part, store.get(bundle.model_version, part), strict=True):
            if raw is None:
                continue
            try:
                found[name] = decode_value(raw).vector
            except FreshetError:
                damaged.append(name)
    return found, damaged


def _compare(names: list[str], wanted: F32, found: dict[str, F32]) -> Comparison:
    out = Comparison()
    errors = []
    for name, vector in zip(names, wanted, strict=True):
        live = found.get(name)
        if live is None or live.shape != vector.shape:
            out.missing.append(name)
            continue
        errors.append((float(np.nan_to_num(np.abs(live - vector), nan=np.inf).max()), name))
    out.compared = len(errors)
    errors.sort(reverse=True)
    out.max_abs_error = errors[0][0] if errors else 0.0
    out.worst = [(name, error) for error, name in errors[:WORST_MAX] if error > ATOL]
    return out
