"""From the text of a query to its answer: what `freshet query` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from freshet.stream.progress import Bars
from freshet.stream.query import answer
from freshet.stream.query.answer import Answer
from freshet.stream.query.build import read_query
from freshet.stream.query.catalogue import Catalogue
from freshet.stream.query.encoded import Prediction
from freshet.stream.query.keep import Keep
from freshet.stream.query.language import Query
from freshet.stream.settings import Settings


def run_on_log(
    text: str, log: Path, settings: Settings, bundle: Path | None, cache: Path | None, out: Path | None, bars: Bars,
    clock_s: Callable[[], float],
) -> tuple[Query, Answer]:  # fmt: skip
    """Answer a query from an event log. Raises QueryError and other FreshetErrors for what a user can mend."""
    query = read_query(text)
    target = answer.check_out(query, out)
    from freshet.stream.query import on_log  # the towers are loaded when the query is known to make sense

    kept = on_log.prepare(query, log, bundle, Keep(cache), settings.graph, clock_s, bars.share)
    catalogue = kept.encoded.catalogue
    allowed = np.ones(len(catalogue.product), np.bool_) if query.where is None else catalogue.matching(query.where)
    notes = [*kept.notes, *_where_notes(query, catalogue, int(allowed.sum()))]
    found = kept.encoded.predict(query.users, query.top, allowed, query.excluding)
    model = {
        "version": kept.model_version, "kind": kept.kind, "chosen": kept.candidate, "from_cache": kept.again,
        "bundle": None if kept.bundle is None else str(kept.bundle),
    }  # fmt: skip
    base = Answer(query.text, model, notes, answer.explain_log(query, kept), kept.trials)
    return query, _answered(base, query, found, target)


def run_on_live(text: str, settings: Settings, out: Path | None) -> tuple[Query, Answer]:
    """Answer a query from the live system."""
    query = read_query(text)
    target = answer.check_out(query, out)
    from freshet.stream.query import on_live  # as are Kafka and Redis

    on_live.refuse(query)
    with on_live.open_live(settings) as live:
        allowed, notes = None, list[str]()
        if query.where is not None:
            allowed, notes = live.matching(query.where)
            if not allowed:
                notes.append("WHERE holds for no product of the catalogue")
        if query.excluding:
            notes.append("excluded is what the user did lately, as far as Redis holds it")
        users = live.users() if query.users is None else query.users
        found = on_live.predict(query, live.reader, users, allowed)
        version = live.status["model_version"]
        model = {"version": version, "kind": version.split("-")[0], "chosen": "served", "from_cache": False}
        base = Answer(query.text, model, notes, answer.explain_live(live.status))
        return query, _answered(base, query, found, target)


def _answered(base: Answer, query: Query, found: Iterator[Prediction], target: Path | None) -> Answer:
    if target is not None:
        return replace(base, out=target, users=answer.write(found, target))
    predictions = list(found)
    unknown = [p.user for p in predictions if not p.known]
    notes = [f"{user} is unknown: these are the popular products" for user in unknown]
    short = [
        f"{p.user}: {len(p.items)} of {query.top} products qualify" for p in predictions if len(p.items) < query.top
    ]
    return replace(base, predictions=predictions, notes=[*base.notes, *notes, *short])


def _where_notes(query: Query, catalogue: Catalogue, allowed: int) -> list[str]:
    if query.where is None:
        return []
    notes = catalogue.notes(query.where)
    return notes if allowed else [*notes, f"WHERE holds for none of {len(catalogue.product)} products"]
