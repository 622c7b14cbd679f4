"""Answering a query from an event log: read it, choose a model, encode, and keep the result for the next query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.store.columns import EventColumns
from freshet.store.graph import GraphLimits, GraphStore
from freshet.store.history import History
from freshet.stream.eventlog import EventLog
from freshet.stream.query import candidates as models
from freshet.stream.query import validation
from freshet.stream.query.encoded import Encoded
from freshet.stream.query.keep import Keep, Kept
from freshet.stream.query.language import EVENT_TABLES, Query
from freshet.stream.query.plan import Candidate, Choice, Measured, choose
from freshet.stream.query.schema import Schema, day, restricted

Progress = Callable[[str, float], None]


@dataclass
class LogBench:
    """Models over one log (see `plan.Bench`). `read` gives the log's events before a time, restricted to `tables`."""

    history: History
    targets: validation.Targets
    tables: frozenset[str]
    read: Callable[[int], Iterator[EventColumns]]
    limits: GraphLimits
    clock_s: Callable[[], float]
    progress: Progress
    _before: GraphStore | None = field(default=None, init=False)

    def validation(self) -> tuple[int, str]:
        """See Bench."""
        n = int(self.targets.users.shape[0])
        what = "bought" if self.history.purchases.time.shape[0] else "viewed"
        if not n:
            return 0, f"no user who was known before {what} anything in the time kept for validation"
        return n, f"what {n} known users {what} from {day(self.targets.from_ms)} to {day(self.targets.until_ms - 1)}"

    def fit(self, candidate: Candidate, holdout: bool, budget_s: float) -> Bundle:
        """See Bench."""
        before_ms = self.targets.from_ms if holdout else (self.history.span_ms or (0, 0))[1] + 1
        return models.fit(
            candidate, self.history, self.tables, before_ms, budget_s, self.clock_s,
            lambda what, share: self.progress(f"{candidate.name}: {what.split(',')[0]}", share),
        )  # fmt: skip

    def measure(self, model: Bundle) -> Measured:
        """See Bench. Users and products as they stood when the validation window began."""
        if self._before is None:
            self._before = GraphStore(self.limits)
            for part in self.read(self.targets.from_ms):
                self._before.apply(part)
        graph, history = self._before, self.history
        users = graph.users.intern([name or "" for name in history.users.names(self.targets.users)])
        everything = np.arange(len(history.products), dtype=np.int32)
        known = [graph.products.get(name or "") for name in history.products.names(everything)]
        rows = np.array([i for i, number in enumerate(known) if number is not None], dtype=np.int64)
        user_embedding, found = models.encode(
            model, graph, users, np.array([n for n in known if n is not None], dtype=np.int32)
        )
        product_embedding = np.zeros((len(known), found.shape[1]), dtype=np.float32)  # those to come score 0
        product_embedding[rows] = found
        return validation.measure(self.targets, user_embedding, product_embedding)


def prepare(
    query: Query, path: Path, bundle: Path | None, keep: Keep, limits: GraphLimits, clock_s: Callable[[], float],
    progress: Progress,
) -> Kept:  # fmt: skip
    """The model that answers `query` from the log at `path`, and what it comes to; from the cache where it is.

    Raises QueryError where query and log do not fit, EventLogError and BundleError.
    """
    began_s = clock_s()
    log = EventLog(path)
    if bundle is not None and query.within_s is not None:
        raise query.refuse("WITHIN chooses a model, and --bundle names one", "within", "one of the two")
    given = None if bundle is None else Bundle.load(bundle)
    key = keep.key(log.path, query, None if given is None else given.model_version, limits)
    kept = keep.load(key)
    if kept is not None:
        return kept
    schema, graph = Schema(), GraphStore(limits)
    history = History.of(_reading(log, query, schema, graph, progress), limits)
    _usable(query, path, schema)
    tables = query.tables & {table for table in EVENT_TABLES if schema.rows[table]}
    bench = LogBench(
        history, validation.Targets.of(history), tables,
        lambda until_ms: (restricted(part, query.tables) for part in log.columns(until_ms=until_ms)),
        limits, clock_s, progress,
    )  # fmt: skip
    try:
        if given is not None:
            choice = Choice(given, f"the bundle {bundle}", ["--bundle names it"])
        else:
            choice = choose(bench, models.candidates(tables), query.within_s, clock_s, began_s)
    except ValueError as e:
        raise FreshetError(f"{path}: no model can be made of this log: {e}") from e
    progress("encoding", 0.0)
    users, products = models.numbers(graph)
    encoded = Encoded.of(history, graph, users, products, *models.encode(choice.model, graph, users, products))
    made = Kept(
        encoded, choice.candidate, choice.reasons, choice.trials, schema.describe(), schema.notes(query.tables),
        choice.model.model_version, choice.model.kind, clock_s() - began_s,
    )  # fmt: skip
    return keep.save(key, made, choice.model)


def _reading(
    log: EventLog, query: Query, schema: Schema, graph: GraphStore, progress: Progress
) -> Iterator[EventColumns]:
    """The events that the query uses; counts all of them in `schema` and applies them to `graph` on the way."""
    total, done = max(1, sum(log.counts.values())), 0
    for columns in log.columns(until_ms=query.as_of_ms):
        schema.add(columns)
        part = restricted(columns, query.tables)
        graph.apply(part)
        done += columns.event_count
        progress("read log", min(1.0, done / total))
        yield part


def _usable(query: Query, path: Path, schema: Schema) -> None:
    if not schema.events:
        if query.as_of_ms is not None:
            raise query.refuse(f"{path} has no events before this", "as_of", "a later date")
        raise FreshetError(f"{path}: the log has no purchase, view or session: there is nothing to predict from")
    if not any(schema.rows[table] for table in query.tables & set(EVENT_TABLES)):
        there = [f"{table} ({schema.rows[table]:,})" for table in EVENT_TABLES if schema.rows[table]]
        raise query.refuse(f"{path} has no events in these tables", "using", ", ".join(there))
