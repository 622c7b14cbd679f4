"""Compiled loops, made ready before an event waits for them.

They are compiled when they are first called and kept beside the source, so the first start on a machine takes half a
minute more than the others. `python -m freshet.stream.warming` takes that time while something else is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from freshet.stream.codec import encode, encode_record_key
from freshet.stream.decode import decode_events
from freshet.stream.events import Event, Kind, Line, Product, Profile, Purchase, Session, SessionItem, View
from freshet.stream.records import Record

if TYPE_CHECKING:
    from freshet.model.bundle import Bundle

AT_MS = 1_500_000_000_000
EVENTS: tuple[tuple[Kind, Event], ...] = (
    (Kind.PRODUCT, Product("p1", AT_MS, ("a",), "b", 1.0, "a thing")),
    (Kind.PROFILE, Profile("u1", AT_MS)),
    (Kind.VIEW, View("v1", "u1", "p1", AT_MS)),
    (Kind.PURCHASE, Purchase("o1", "u1", AT_MS, items=(Line("p1"), Line("p2")))),
    (Kind.SESSION, Session("s1", "u1", "s1", AT_MS, items=(SessionItem("p1"),))),
    (Kind.PROFILE, Profile("u1", AT_MS + 1, forgotten=True)),
)
"""One of everything that can happen."""


def warm_up(bundle: Bundle) -> None:
    """Take a few events through every stage once, over state of their own."""
    from freshet.model.frozen import FrozenTowers
    from freshet.store.graph import GraphStore
    from freshet.store.index import MemoryItemIndex
    from freshet.store.memory_store import MemoryEmbeddingStore
    from freshet.stream.ownership import Ownership
    from freshet.stream.sink import Sink
    from freshet.stream.updater import Updater

    graph = GraphStore()
    thin = bundle.thin(["p1", "p2"])
    index, owned = MemoryItemIndex(bundle.config.dim), Ownership.of_all(graph.users)
    sink = Sink(graph, MemoryEmbeddingStore(), index, None, "", "", bundle.config.dim, owned, 1)
    updater = Updater(graph, FrozenTowers(thin, graph), sink, {kind.value: kind for kind in Kind})
    for kind, event in EVENTS:
        updater.step([Record(kind.value, 0, 0, AT_MS, encode_record_key(event), encode(event))])
        updater.drain()


def main() -> None:
    """Compile what fitting and serving call."""
    from freshet.model.dayzero import dayzero
    from freshet.store.history import History

    warm_up(dayzero(History.of([decode_events([event]) for _, event in EVENTS])))


if __name__ == "__main__":
    main()
