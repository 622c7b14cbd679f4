"""The approximate item index, on HNSW.

HNSW cannot remove, so dead rows stay as tombstones until a rebuild; a lock keeps additions and searches apart,
which would crash side by side; FAISS loads a damaged file in silence, so snapshots carry checksums.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from freshet.store.columns import F32, I64
from freshet.store.faiss_search import Hnsw, exact, use_one_thread
from freshet.store.index import checked_vectors
from freshet.store.index_settings import IndexSettings
from freshet.store.index_snapshot import IndexCorrupt, SnapshotFiles, read_snapshot, write_snapshot
from freshet.store.row_index import RowIndex, rows_of, vectors_of

log = logging.getLogger(__name__)

DRAIN_ROUNDS_MAX = 4
"""Rounds in which a rebuilt graph takes over what changed meanwhile while writers go on; the last stops them."""


class NamedRows:
    """A graph with the ids of its rows. A row never changes: a product that moves gets a new one. No locking."""

    def __init__(self, settings: IndexSettings, graph: Hnsw) -> None:
        self.settings, self.graph = settings, graph
        self.names: list[str | None] = []
        self.row_of: dict[str, int] = {}
        self.dead = 0

    def add(self, names: Sequence[str], rows: F32) -> None:
        """Insert products, or move them: the row they had before dies."""
        self.kill(names)
        for name in names:
            self.row_of[name] = len(self.names)
            self.names.append(name)
        self.graph.add(rows)

    def kill(self, names: Collection[str]) -> None:
        """Turn the rows of these products into tombstones."""
        for name in names:
            row = self.row_of.pop(name, None)
            if row is not None:
                self.names[row] = None
                self.dead += 1

    def take_over(self, changed: dict[str, F32 | None]) -> None:
        """Give products these vectors; those with None die."""
        self.kill([name for name, vector in changed.items() if vector is None])
        moved = {name: vector for name, vector in changed.items() if vector is not None}
        if moved:
            self.add(list(moved), np.stack(list(moved.values())))

    def live(self) -> tuple[list[str], F32]:
        """Ids and copies of their vectors, in the order of their rows."""
        return list(self.row_of), self.graph.vectors()[self._live_rows()]

    def search(self, queries: F32, k: int, allowed: Collection[str] | None) -> tuple[F32, I64]:
        """Scores and rows [q, at most k], greatest first; -1 where there is none."""
        rows = None if allowed is None else rows_of(self.row_of, allowed)
        count = len(self.row_of) if rows is None else rows.shape[0]
        few = max(self.settings.hnsw_exact_below_rows, self.settings.hnsw_exact_below_share * len(self.row_of))
        if count <= self.settings.hnsw_exact_below_rows or (rows is not None and count < few):
            rows = self._live_rows() if rows is None else rows
            scores, found = exact(queries, self.graph.vectors()[rows], k)
            return scores, rows[found]
        chosen = None
        if rows is not None or self.dead:
            chosen = np.zeros(len(self.names), dtype=np.bool_)
            chosen[self._live_rows() if rows is None else rows] = True
        k = min(k, count)
        # Dead and forbidden rows take up candidates, so there have to be as many more.
        ef = int(max(self.settings.hnsw_ef_search, k) * len(self.names) / count)
        return self.graph.search(queries, k, ef, chosen)

    def _live_rows(self) -> I64:
        return np.fromiter(self.row_of.values(), dtype=np.int64, count=len(self.row_of))


class FaissHnswIndex(RowIndex):
    """Approximate search by HNSW, never shorter than it has to be. Removed and moved products leave tombstones;
    when these pass a share, a thread builds a new graph and puts it in the place of the old one while searches
    and updates go on.
    """

    kind = "hnsw"

    def __init__(self, dim: int, settings: IndexSettings | None = None) -> None:
        super().__init__(dim)
        self._settings = settings or IndexSettings(kind="hnsw")
        self._graph = self._empty()
        self._writing = threading.RLock()  # one writer at a time; taken before _lock
        self._changed_meanwhile: dict[str, F32 | None] | None = None
        self._rebuild: threading.Thread | None = None
        self._retry_at_dead = 0
        self.rebuilds = 0

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """See ItemIndex. A vector that is what it was costs nothing."""
        names, rows = checked_vectors(ids, vectors, self.dim)
        with self._writing:
            old, present = vectors_of(names, self._graph.row_of, self._graph.graph.vectors())
            changed = np.flatnonzero(~(present & (old == rows).all(axis=1)))
            step = self._settings.hnsw_rows_per_lock
            for start in range(0, changed.shape[0], step):
                part = changed[start : start + step]
                with self._lock.write():
                    self._graph.add([names[i] for i in part], rows[part])
            if self._changed_meanwhile is not None:
                self._changed_meanwhile.update((names[i], rows[i]) for i in changed)
            self._rebuild_if_due()

    def remove(self, ids: Collection[str]) -> None:
        """See ItemIndex."""
        with self._writing:
            with self._lock.write():
                self._graph.kill(ids)
            if self._changed_meanwhile is not None:
                self._changed_meanwhile.update((name, None) for name in ids)
            self._rebuild_if_due()

    def snapshot(self, path: Path, model_version: str) -> None:
        """See ItemIndex. Searches go on meanwhile; updates wait until the graph is copied."""
        with self._writing:
            files = SnapshotFiles.of_graph(self._graph.names, self._graph.graph.serialized())
        write_snapshot(path, self.kind, self.dim, model_version, files)

    def load(self, path: Path) -> str:
        """See ItemIndex."""
        manifest, files = read_snapshot(path, self.kind, self.dim)
        names = files.names(path)
        try:
            graph = Hnsw.deserialized(files.content["graph"], self.dim, self._settings)
        except ValueError as e:
            raise IndexCorrupt(f"{path}: {e}: take a new snapshot") from e
        if len(graph) != len(names):
            raise IndexCorrupt(f"{path}: the graph does not fit the {len(names)} ids: take a new snapshot")
        named = NamedRows(self._settings, graph)
        named.names = names
        named.row_of = {name: row for row, name in enumerate(names) if name is not None}
        named.dead = len(names) - len(named.row_of)
        with self._writing:
            with self._lock.write():
                self._graph = named
            self._changed_meanwhile = None  # a rebuild under way is of the former contents
        return manifest.model_version

    @property
    def tombstones(self) -> int:
        """Dead rows of the graph."""
        return self._graph.dead

    def wait_rebuilt(self, timeout_s: float | None = None) -> bool:
        """Wait until no rebuild is under way; False where it still is after `timeout_s`."""
        thread = self._rebuild
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    # --- parts ----------------------------------------------------------------------------------

    def _empty(self) -> NamedRows:
        return NamedRows(self._settings, Hnsw(self.dim, self._settings))

    def _numbering(self) -> tuple[dict[str, int], Sequence[str | None]]:
        graph = self._graph
        return graph.row_of, graph.names

    def _vectors(self) -> F32:
        return self._graph.graph.vectors()

    def _nearest(self, queries: F32, k: int, allowed: Collection[str] | None) -> tuple[F32, I64]:
        return self._graph.search(queries, k, allowed)

    def _rebuild_if_due(self) -> None:
        """Start a rebuild where tombstones passed their share. The caller holds `_writing`."""
        graph, settings = self._graph, self._settings
        share = settings.hnsw_tombstone_share_max * len(graph.names)
        due = max(settings.hnsw_tombstones_min, share, self._retry_at_dead)
        if graph.dead >= due and (self._rebuild is None or not self._rebuild.is_alive()):
            self._changed_meanwhile = {}
            names, rows = graph.live()
            work = (names, rows, self._changed_meanwhile)
            self._rebuild = threading.Thread(
                target=self._run_rebuild, args=work, name="freshet-index-rebuild", daemon=True
            )
            self._rebuild.start()

    def _run_rebuild(self, names: list[str], rows: F32, changed: dict[str, F32 | None]) -> None:
        try:
            use_one_thread()  # searches keep the other cores
            graph = self._empty()
            graph.add(names, rows)
            for _ in range(DRAIN_ROUNDS_MAX):
                with self._writing:
                    taken = dict(changed)
                    changed.clear()
                graph.take_over(taken)
                if len(taken) < self._settings.hnsw_rows_per_lock:
                    break
            with self._writing:
                if self._changed_meanwhile is changed:
                    graph.take_over(changed)
                    with self._lock.write():
                        self._graph = graph
                    self._changed_meanwhile, self._retry_at_dead = None, 0
                    self.rebuilds += 1
        except Exception:
            with self._writing:
                if self._changed_meanwhile is changed:
                    self._changed_meanwhile = None
                self._retry_at_dead = 2 * self._graph.dead
            log.exception("rebuilding the item index failed; the former graph goes on")
