"""A snapshot: the state of a graph as parts, copied out piece by piece while the stream runs, and taken in again.

State is a join-semilattice, so a snapshot need not be of one instant. The positions are noted first and rows are
copied after that, between turns of the stream: every row is at least as new as the positions, and replaying from
them is harmless. What is not independent from row to row is put right when a snapshot is taken in: entries of users
forgotten since are dropped or lose their user, exactly as in a merge. The tables of ids come last, so that every
number used is named; a user without a name was forgotten meanwhile.

    section                                     a part holds
    users, products, devices                    MessagePack {number: int32 bytes, name: [text]}
    forgotten_until                             `FORGOTTEN`: users who are known and forgotten up to a time
    forgotten_by_hash                           `FORGOTTEN_HASH`: users of whom a hash alone is left
    user_attributes, product_attributes         MessagePack {number, time, key: int32, int64, uint64 bytes, value: [..]}
    purchased, viewed, purchased_by, viewed_by, `ENTRY`: entries of neighbour lists, those of a row adjacent and oldest
    co_purchased                                first; of co-purchases the live ones (the frozen ones are the bundle's)
    sessions                                    `session_dtype`: sessions with their items
    event_time_max                              int64 [1]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.attributes import NEVER_MS, Registers
from freshet.store.columns import I32, I64, U64, Bool, ProductAttributes, UserAttributes
from freshet.store.graph import PRODUCT_LISTS, USER_LISTS, GraphLimits, GraphStore, Touched
from freshet.store.ids import IdMap
from freshet.store.lanes import Lanes
from freshet.store.lists import grown
from freshet.store.merge import (
    Entries,
    Merge,
    SessionEntries,
    check_limits,
    entries_of,
    lists_of,
    sessions_of,
)

LOAD_ORDER = (
    "users", "products", "devices", "user_attributes", "product_attributes", "forgotten_until", "forgotten_by_hash",
    "purchased", "viewed", "sessions", "purchased_by", "viewed_by", "co_purchased", "event_time_max",
)  # fmt: skip
"""Every section, in the order in which a snapshot is best read: names, then what is forgotten, then the rest."""

NAMES = LOAD_ORDER[:3]
LISTS = {"purchased": 0, "co_purchased": 0, "viewed": 1, "sessions": 1, "purchased_by": 1, "viewed_by": 1}
"""Sections of lists, and the lane in which they are merged: about the same work in each."""
LITTLE = 1_000
"""Entries of a part that is merged where it is read, not beside others."""
ROWS_AT_A_TIME = 16_384
"""Rows looked at for one part, at most; what a part costs is bounded by its entries and by this."""

REGISTER_ENTRIES = 20
"""What copying a node's attributes costs, in list entries."""

ENTRY = np.dtype([("row", "<i4"), ("nbr", "<i4"), ("time", "<i8"), ("key", "<u8"), ("value", "<f4"), ("flag", "u1")])
FORGOTTEN = np.dtype([("user", "<i4"), ("until", "<i8")])
FORGOTTEN_HASH = np.dtype([("hash", "<u8"), ("until", "<i8")])

Judge = Callable[[I32], Bool]
"""Which of these numbers [n] belong to a snapshot, [n] bool."""


class SnapshotCorrupt(FreshetError):
    """A snapshot that is damaged, cut off, or says what cannot be."""


class LogPart(msgspec.Struct, frozen=True):
    """An event log, or what of it is before a time in ms, that state was read from beside the topics."""

    path: str
    until_ms: int | None = None


@dataclass(frozen=True)
class SnapshotHead:
    """What a snapshot is. `scope` names the part of the state it holds ([a-z0-9-]+). `positions` are the next offsets
    by topic and partition, noted before the first row was copied. `model_version` is informative: state does not
    depend on it. `topic_ids` are the broker's ids of the topics ('' unknown): a topic made anew begins at 0 again.
    `logs` are informative, too: where what it holds can be read again."""

    scope: str
    positions: dict[tuple[str, int], int]
    created_ms: int
    limits: GraphLimits
    model_version: str = ""
    topic_ids: dict[str, str] = field(default_factory=dict)
    logs: tuple[LogPart, ...] = ()


@dataclass(frozen=True)
class Part:
    """A piece of a snapshot: copies, which hold nothing of the graph. `content` is as the section says; `count` is
    how many nodes or entries it holds."""

    section: str
    content: NDArray[Any] | bytes
    count: int = 0


class _Names(msgspec.Struct):
    number: bytes
    name: list[str]


class _Registers(msgspec.Struct):
    number: bytes
    time: bytes
    key: bytes
    value: msgspec.Raw


def session_dtype(items: int) -> np.dtype[Any]:
    """A session with `items` items at most; those past `item_count` are filled with -1."""
    return np.dtype([
        ("user", "<i4"), ("device", "<i4"), ("session", "<u8"), ("time", "<i8"), ("key", "<u8"),
        ("duration_s", "<f4"), ("item_count", "u1"), ("product", "<i4", (items,)), ("position", "<i4", (items,)),
        ("click", "i1", (items,)),
    ])  # fmt: skip


# --- out of a graph ------------------------------------------------------------------------------


def parts(
    graph: GraphStore, users: Judge | None, products: Judge | None, entries_max: int = 100_000
) -> Iterator[Part]:
    """The parts of a snapshot of those users and products that the judges choose (None: none at all).

    Each `next` copies about `entries_max` list entries at most. Between two of them the graph may go on: note the
    positions before the first. Judges are asked again for each piece, as nodes appear while this runs.
    """
    used_users, used_products, used_devices = _Used(), _Used(), _Used()
    if users is not None:
        yield from _registers("user_attributes", graph.users, graph.user_attributes, users, entries_max)
        for relation in USER_LISTS[:2]:
            for entries in _lists(graph, relation, graph.users, users, entries_max):
                used_products.add(entries["nbr"])
                yield Part(relation, entries)
        for sessions in _sessions(graph, users, entries_max):
            used_products.add(sessions["product"].ravel())
            used_devices.add(sessions["device"])
            yield Part("sessions", sessions)
    if products is not None:
        yield from _registers("product_attributes", graph.products, graph.product_attributes, products, entries_max)
        for relation in PRODUCT_LISTS:
            used = used_products if relation == "co_purchased" else used_users
            for entries in _lists(graph, relation, graph.products, products, entries_max):
                used.add(entries["nbr"])
                yield Part(relation, entries)
    for numbers, part in _names("users", graph.users, users, used_users):
        yield part
        until = graph.forgotten_until[numbers]
        if (until != NEVER_MS).any():
            yield Part("forgotten_until", _table(FORGOTTEN, user=numbers, until=until)[until != NEVER_MS])
    yield from _forgotten_hashes(graph, entries_max)
    yield from (part for _, part in _names("products", graph.products, products, used_products))
    yield from (part for _, part in _names("devices", graph.devices, None, used_devices))
    yield Part("event_time_max", np.array([graph.event_time_max], dtype="<i8"))


class _Used:
    """Numbers that a part names, so that the tables of ids have them."""

    def __init__(self) -> None:
        self._mask: Bool = np.zeros(0, dtype=np.bool_)

    def add(self, numbers: I32) -> None:
        self._mask = grown(self._mask, int(numbers.max(initial=-1)) + 1)
        self._mask[numbers[numbers >= 0]] = True

    def __call__(self, numbers: I32) -> Bool:
        """Which of consecutive `numbers` were named."""
        self._mask = grown(self._mask, int(numbers[-1]) + 1)
        out: Bool = self._mask[numbers]
        return out


def _windows(ids: IdMap) -> Iterator[I32]:
    start = 0
    while start < len(ids):
        end = min(start + ROWS_AT_A_TIME, len(ids))
        yield np.arange(start, end, dtype=np.int32)
        start = end


def _filled(ids: IdMap, judge: Judge, length: Callable[[], NDArray[Any]], entries_max: int) -> Iterator[I32]:
    """The chosen rows that hold entries, as many at a time as hold `entries_max` of them (and one at least)."""
    start = 0
    while start < len(ids):
        window = np.arange(start, min(start + ROWS_AT_A_TIME, len(ids)), dtype=np.int32)
        rows = window[judge(window) & (length()[window] > 0)]
        fit = max(1, int(np.searchsorted(np.cumsum(length()[rows], dtype=np.int64), entries_max, side="right")))
        start = int(rows[fit]) if fit < rows.shape[0] else int(window[-1]) + 1
        if rows.shape[0]:
            yield rows[:fit]


def _lists(graph: GraphStore, relation: str, ids: IdMap, judge: Judge, entries_max: int) -> Iterator[NDArray[Any]]:
    lists = lists_of(graph, relation)
    for rows in _filled(ids, judge, lambda: lists.length, entries_max):
        e = entries_of(lists, rows)
        yield _table(ENTRY, row=e.row, nbr=e.nbr, time=e.time, key=e.key, value=e.value, flag=e.flag)


def _sessions(graph: GraphStore, judge: Judge, entries_max: int) -> Iterator[NDArray[Any]]:
    lists, items = graph.sessions, graph.limits.session_items_max
    for users in _filled(graph.users, judge, lambda: lists.length, max(1, entries_max // items)):
        s = sessions_of(lists, users)
        count = np.diff(s.item_start)
        out = _table(
            session_dtype(items), user=s.user, device=s.device, session=s.session, time=s.time, key=s.key,
            duration_s=s.duration_s, item_count=count,
        )  # fmt: skip
        there = np.arange(items) < count[:, None]
        for name, values in (("product", s.product), ("position", s.position), ("click", s.click)):
            padded = np.full((count.shape[0], items), -1, dtype=values.dtype)
            padded[there] = values
            out[name] = padded
        yield out


def _registers(
    section: str, ids: IdMap, registers: Registers[Any], judge: Judge, entries_max: int
) -> Iterator[Part]:  # fmt: skip
    """Registers that somebody wrote. One counts as several entries, and more where it holds a long text or a vector."""
    start = 0
    while start < len(ids):
        window = np.arange(start, min(start + max(1, entries_max // REGISTER_ENTRIES), len(ids)), dtype=np.int32)
        numbers = window[judge(window) & (registers.time[window] != NEVER_MS)]
        values = registers.take(numbers)
        size = np.cumsum([REGISTER_ENTRIES + _size(value) for value in values], dtype=np.int64)
        fit = max(1, int(np.searchsorted(size, entries_max, side="right")))
        start = int(numbers[fit]) if fit < numbers.shape[0] else int(window[-1]) + 1
        if numbers.shape[0]:
            numbers, fit = numbers[:fit], min(fit, numbers.shape[0])
            packed = _Registers(
                _bytes(numbers, "<i4"), _bytes(registers.time[numbers], "<i8"), _bytes(registers.key[numbers], "<u8"),
                msgspec.Raw(msgspec.msgpack.encode(values[:fit])),
            )  # fmt: skip
            yield Part(section, msgspec.msgpack.encode(packed), fit)


def _size(value: UserAttributes | ProductAttributes | None) -> int:
    if not isinstance(value, ProductAttributes):
        return 0
    return len(value.description_emb or ()) + len(value.description or "") // 32


def _names(section: str, ids: IdMap, judge: Judge | None, used: _Used) -> Iterator[tuple[I32, Part]]:
    """The ids of the nodes that were chosen or named, with their numbers; without those dropped meanwhile."""
    for window in _windows(ids):
        numbers = window[used(window) | judge(window) if judge is not None else used(window)]
        names = ids.names(numbers)
        known = np.array([name is not None for name in names], dtype=np.bool_)
        if known.any():
            packed = _Names(_bytes(numbers[known], "<i4"), [name for name in names if name is not None])
            yield numbers[known], Part(section, msgspec.msgpack.encode(packed), len(packed.name))


def _forgotten_hashes(graph: GraphStore, entries_max: int) -> Iterator[Part]:
    known = list(graph.forgotten_by_hash)
    for start in range(0, len(known), entries_max):
        hashes = known[start : start + entries_max]
        until = [graph.forgotten_by_hash[h] for h in hashes]
        yield Part("forgotten_by_hash", _table(FORGOTTEN_HASH, hash=np.array(hashes, np.uint64), until=np.array(until)))


def _table(dtype: np.dtype[Any], **columns: NDArray[Any]) -> NDArray[Any]:
    out = np.empty(next(iter(columns.values())).shape[0], dtype=dtype)
    for name, values in columns.items():
        out[name] = values
    return out


def _bytes(array: NDArray[Any], dtype: str) -> bytes:
    return array.astype(dtype, copy=False).tobytes()


# --- into a graph --------------------------------------------------------------------------------


def absorb(graph: GraphStore, head: SnapshotHead, parts: Iterable[Part]) -> Touched:
    """Merge a snapshot into `graph`, which may hold state already; returns what changed in it.

    Parts are best given in `LOAD_ORDER`, as a `SnapshotReader` gives them; what comes before the names is held
    in memory until they are complete. Raises LimitsDiffer before anything has changed, and SnapshotCorrupt where
    parts contradict each other (the graph then holds a part of the snapshot: throw it away).
    """
    check_limits(graph.limits, head.limits)
    with Lanes() as lanes:
        loading = _Loading(graph, lanes)
        waiting: list[Part] = []
        for part in parts:
            if part.section in NAMES or loading.has_names:
                loading.take(part)
            else:
                waiting.append(part)
        for part in sorted(waiting, key=lambda part: _place(part.section)):
            loading.take(part)
        loading.number()
    return loading.merge.touched()


def _place(section: str) -> int:
    if section not in LOAD_ORDER:
        raise SnapshotCorrupt(f"the snapshot has a section {section!r} that this release does not know")
    return LOAD_ORDER.index(section)


class _Loading:
    """A snapshot on its way into a graph: parts are checked, then merged; lists of different relations, which share
    nothing, side by side."""

    def __init__(self, graph: GraphStore, lanes: Lanes) -> None:
        self.graph, self.merge, self.lanes = graph, Merge(graph), lanes
        self.has_names = False
        self._names: dict[str, list[tuple[I32, list[str]]]] = {section: [] for section in NAMES}

    def take(self, part: Part) -> None:
        """Check and merge one part. Raises SnapshotCorrupt."""
        _place(part.section)
        if part.section in NAMES:
            self.has_names = True
            names = _decoded(part, _Names)
            numbers = _column(names.number, "<i4", len(names.name))
            _require(bool((numbers >= 0).all()), part, "a negative number")
            self._names[part.section].append((numbers, names.name))
            return
        self.number()
        if part.section in LISTS:
            merge = self._sessions if part.section == "sessions" else self._entries
            self.lanes.put(lambda: merge(part), LISTS[part.section], little=len(part.content) < LITTLE)
            return
        self.lanes.join()  # what follows may change what the lists are merged by
        if part.section in ("user_attributes", "product_attributes"):
            self._attributes(part)
        elif part.section == "forgotten_until":
            rows = _array(part, FORGOTTEN)
            self.merge.forgotten(*(np.ascontiguousarray(rows[name]) for name in ("user", "until")))
        elif part.section == "forgotten_by_hash":
            rows = _array(part, FORGOTTEN_HASH)
            self.merge.forgotten_hashes(dict(zip(rows["hash"].tolist(), rows["until"].tolist(), strict=True)))
        else:
            assert part.section == "event_time_max"
            newest = _array(part, np.dtype("<i8")).max(initial=NEVER_MS)
            self.graph.event_time_max = max(self.graph.event_time_max, int(newest))

    def number(self) -> None:
        """Number all names at once: growing step by step would copy every list as often."""
        for section, found in self._names.items():
            if found:
                numbers = np.concatenate([numbers for numbers, _ in found])
                getattr(self.merge, f"name_{section}")(numbers, [name for _, names in found for name in names])
                found.clear()

    def _attributes(self, part: Part) -> None:
        kind: Any = UserAttributes if part.section == "user_attributes" else ProductAttributes
        rows = _decoded(part, _Registers)
        try:
            values = msgspec.msgpack.decode(rows.value, type=list[kind | None])
        except msgspec.MsgspecError as e:
            raise SnapshotCorrupt(f"{part.section}: {e}") from e
        numbers: I32 = _column(rows.number, "<i4", len(values))
        time: I64 = _column(rows.time, "<i8", len(values))
        key: U64 = _column(rows.key, "<u8", len(values))
        if kind is ProductAttributes:
            self._known_products(numbers, part)
        _require(bool((numbers >= 0).all()), part, "a negative number")
        getattr(self.merge, part.section)(numbers, time, key, values)

    def _entries(self, part: Part) -> None:
        rows = _array(part, ENTRY)
        e = Entries(*(np.ascontiguousarray(rows[name]) for name in ("row", "nbr", "time", "key", "value", "flag")))
        _require(int(e.row.min(initial=0)) >= 0 and int(e.nbr.min(initial=-1)) >= -1, part, "a negative number")
        if part.section in PRODUCT_LISTS:
            self._known_products(e.row, part)
        if part.section in USER_LISTS or part.section == "co_purchased":
            self._known_products(e.nbr, part)
        self.merge.entries(part.section, e)

    def _sessions(self, part: Part) -> None:
        rows = _array(part, session_dtype(self.graph.limits.session_items_max))
        count = rows["item_count"].astype(np.int64)
        _require(int(count.max(initial=0)) <= self.graph.limits.session_items_max, part, "a session of too many items")
        there = np.arange(self.graph.limits.session_items_max) < count[:, None]
        starts = np.concatenate([[0], np.cumsum(count)])
        product, position, click = (rows[name][there] for name in ("product", "position", "click"))
        self._known_products(product, part)
        user, device, session, time, key, duration_s = (
            np.ascontiguousarray(rows[name]) for name in ("user", "device", "session", "time", "key", "duration_s")
        )
        _require(int(user.min(initial=0)) >= 0 and int(device.min(initial=-1)) >= -1, part, "a negative number")
        self.merge.sessions(
            SessionEntries(user, session, time, key, device, duration_s, starts, product, position, click)
        )

    def _known_products(self, numbers: I32, part: Part) -> None:
        _require(self.merge.has_products(numbers), part, "a product without an id")


def _require(holds: bool, part: Part, what: str) -> None:
    if not holds:
        raise SnapshotCorrupt(f"{part.section}: {what}")


def _array(part: Part, dtype: np.dtype[Any]) -> NDArray[Any]:
    array = part.content
    _require(isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim == 1, part, "another kind of array")
    assert isinstance(array, np.ndarray)
    return array


def _decoded(part: Part, kind: Any) -> Any:
    _require(isinstance(part.content, bytes), part, "no MessagePack")
    try:
        return msgspec.msgpack.decode(part.content, type=kind)  # type: ignore[arg-type]
    except msgspec.MsgspecError as e:
        raise SnapshotCorrupt(f"{part.section}: {e}") from e


def _column(data: bytes, dtype: str, size: int) -> NDArray[Any]:
    if len(data) != size * np.dtype(dtype).itemsize:
        raise SnapshotCorrupt(f"a column of {len(data)} bytes cannot hold {size} values")
    return np.frombuffer(data, dtype=dtype)
