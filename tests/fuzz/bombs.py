"""Small inputs that ask for much: `python -m tests.fuzz.bombs` feeds them to every reader under a limit of memory and
time, and ends with one line of JSON: what each came to, by name.

A process of its own, as a limit cannot be taken back, and as what breaks through it ends the process.
"""

from __future__ import annotations

import gzip
import json
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.frozen import encode_fixture
from freshet.store.faiss_index import make_index, open_index
from freshet.store.index_settings import IndexSettings
from freshet.store.index_snapshot import MANIFEST, Manifest, SnapshotFiles, write_snapshot
from freshet.store.value import decode_value
from freshet.stream.codec import decode_record
from freshet.stream.decode import decode
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind
from freshet.stream.query.build import read_query
from freshet.stream.records import Record
from tests.fuzz.test_bundles import FILES, sealed

MEMORY_BYTES = 600 * 1024 * 1024
"""Beyond what the process takes once everything is imported and compiled."""
CPU_S = 300
SECONDS_MAX = 5.0
"""For one input."""
MSGPACK_HEAD = (("content-type", b"application/msgpack"),)
HUGE = {
    "array of 2^32": b"\xdd\xff\xff\xff\xff", "array of 2^28": b"\xdd\x10\x00\x00\x00",
    "map of 2^32": b"\xdf\xff\xff\xff\xff", "map of 2^26": b"\xdf\x04\x00\x00\x00",
    "str of 2^32": b"\xdb\xff\xff\xff\xff", "bin of 2^32": b"\xc6\xff\xff\xff\xff",
    "ext of 2^32": b"\xc9\xff\xff\xff\xff\x01",
}  # fmt: skip


def packed(name: str, raw: bytes) -> bytes:
    """A MessagePack map with one entry, which is `raw` as it is."""
    text = name.encode()
    return b"\x81" + bytes([0xA0 | len(text)]) + text + raw


def values() -> Iterator[tuple[str, bytes, tuple[tuple[str, bytes | None], ...]]]:
    """Names, bytes and headers of records."""
    for name, raw in HUGE.items():
        yield name, raw, MSGPACK_HEAD
        for field in ("items", "category", "description_emb", "event_id", "timestamp"):
            yield f"{field}: {name}", packed(field, raw), MSGPACK_HEAD
    yield "arrays nested 2^20 deep", b"\x91" * 2**20, MSGPACK_HEAD
    yield "maps nested 10^5 deep", b"\x81\xa1a" * 10**5, MSGPACK_HEAD
    yield "items nested 10^5 deep", packed("items", b"\x91" * 10**5), MSGPACK_HEAD
    yield "arrays of 2^24 in arrays of 2^24", b"\xdd\x01\x00\x00\x00" * 1_000, MSGPACK_HEAD
    for name, raw in {
        "JSON arrays 10^5 deep": b"[" * 10**5, "JSON objects 10^5 deep": b'{"a":' * 10**5,
        "JSON items 10^5 deep": b'{"items":' + b"[" * 10**5, "NaN at the bottom": b"[" * 10**5 + b"NaN" + b"]" * 10**5,
        "NaN and depth": b'{"a":NaN,"b":' + b"[" * 10**5,
        "NaN and a number of a million digits": b'{"a":NaN,"b":' + b"9" * 10**6 + b"}",
        "a time of a million digits": b'{"timestamp":' + b"9" * 10**6 + b"}",
        "a fraction of a million digits": b'{"dwell_time_s":0.' + b"1" * 10**6 + b"}",
        "an exponent of a million digits": b'{"dwell_time_s":1e' + b"9" * 10**6 + b"}",
        "an id of a million characters": b'{"event_id":"' + b"x" * 10**6 + b'"}',
        "an id of 10 MiB": b'{"event_id":"' + b"x" * 10 * 2**20 + b'"}',
        "a field name of a million characters": b'{"' + b"`" * 10**6 + b'":1}',
        "80,000 unknown fields": b"{" + b",".join(b'"k%d":1' % i for i in range(80_000)) + b"}",
        "one field 60,000 times": b"{" + b",".join([b'"event_id":"x"'] * 60_000) + b"}",
        "300,000 items": b'{"event_id":"e","user_id":"u","items":[' + b",".join([b"{}"] * 300_000) + b"]}",
        "invalid UTF-8": b'{"event_id":"' + b"\xff" * 10**6 + b'"}',
        "half a million quotes": b'{"' + b'\\"' * 500_000 + b'":1}', "zeros": b"\x00" * 2**20, "blanks": b" " * 2**20,
    }.items():  # fmt: skip
        yield name, raw, ()
    yield "a content type of a million parameters", b"{}", (("content-type", b"application/json" + b";a=b" * 250_000),)
    yield "a ce_time of a million digits", b"{}", (("ce_time", b"9" * 10**6),)
    yield "100,000 headers", b"{}", (("ce_id", b"x"),) * 100_000


def judge(raw: bytes, headers: tuple[tuple[str, bytes | None], ...]) -> None:
    for kind in Kind:
        record = Record("t", 0, 0, 1_764_000_000_000, b"u", raw, headers)
        decode_record(record, kind)
        decode([record], {"t": kind})


def bombs(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is read, by name."""
    for name, raw, headers in values():
        yield f"record: {name}", lambda raw=raw, headers=headers: judge(raw, headers)  # type: ignore[misc]
        yield f"value: {name}", lambda raw=raw: decode_value(raw)  # type: ignore[misc]
    yield from _bundles(folder)
    yield from _snapshots(folder)
    yield from _logs(folder)
    start = "PREDICT product_id FOR user USING purchase, product WHERE "
    texts = {"nested": "(" * 10**6, "long": "x" * 10**7, "not": "NOT " * 5_000, "quote": "'\\" * 10**4}
    start = "PREDICT product_id FOR user USING purchase, product WHERE "
    for name, text in texts.items():
        yield f"query: {name}", lambda text=text: read_query(start + text)  # type: ignore[misc]


def loaded(files: dict[str, bytes], folder: Path) -> Bundle:
    """The bundle of these files, after it has encoded its fixture."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return Bundle.load(folder, encode_fixture)


def _bundles(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    def of(change: dict[str, bytes]) -> Callable[[], object]:
        return lambda: loaded(sealed(FILES | change), folder)

    for size in (2**64 - 1, 2**63, 2**40, 10**8):
        raw = struct.pack("<Q", size) + FILES["weights.safetensors"][8:]
        yield f"bundle: a header of {size} bytes", of({"weights.safetensors": raw})
    for dtype, shape in (("F32", [2**40]), ("F32", [2**32, 2**32]), ("U8", [2**62]), ("F32", [2**31, 0, 2**31])):
        text = json.dumps({"product.id": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}}).encode()
        yield f"bundle: a tensor {shape}", of({"weights.safetensors": struct.pack("<Q", len(text)) + text})
    for name in ("vocabulary.json", "popular.json", "card.json", "parity.json", "ranker.json"):
        for what, raw in (("arrays", b"[" * 10**5), ("objects", b'{"a":' * 10**5)):
            yield f"bundle: {name} of nested {what}", of({name: raw})
    head = json.loads(FILES["bundle.json"])
    for field in head["features"]:
        for number in (2**31, 2**62):
            spoilt = json.loads(FILES["bundle.json"])
            spoilt["features"][field] = number
            yield f"bundle: {field} {number}", lambda spoilt=spoilt: loaded(sealed(FILES, spoilt), folder)  # type: ignore[misc]
    for tower in ("user", "item"):
        spoilt = json.loads(FILES["bundle.json"])
        for gather in spoilt["config"][tower]["outer"].values():
            gather["num_neighbors"] = 2**40
        yield f"bundle: {tower} reads 2^40", lambda spoilt=spoilt: loaded(sealed(FILES, spoilt), folder)  # type: ignore[misc]
    for number in (2**31, 2**62, -1, 0):
        spoilt = json.loads(FILES["bundle.json"])
        spoilt["config"]["dim"] = number
        yield f"bundle: dim {number}", lambda spoilt=spoilt: loaded(sealed(FILES, spoilt), folder)  # type: ignore[misc]
    yield "bundle: a head of nested arrays", lambda: loaded({"bundle.json": b"[" * 10**5}, folder)


def _snapshots(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    index = make_index(IndexSettings(kind="hnsw", hnsw_m=4), 4)
    index.upsert([f"p{i}" for i in range(20)], np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32))
    place = folder / "index"
    index.snapshot(place, "m")
    manifest = msgspec.json.decode((place / MANIFEST).read_bytes(), type=Manifest)
    files = {role: (place / entry.name).read_bytes() for role, entry in manifest.files.items()}

    def of(change: dict[str, bytes]) -> Callable[[], object]:
        def read() -> object:
            write_snapshot(place, "hnsw", 4, "m", SnapshotFiles(files | change))
            return open_index(place)

        return read

    graph = files["graph"]
    for at in (4, 8, 37, 41, 45, 169, 173, 177):
        for put in (struct.pack("<Q", 2**33), struct.pack("<Q", 2**39), struct.pack("<Q", 2**61), b"\xff" * 8):
            yield f"index: {put!r} at {at} of the graph", of({"graph": graph[:at] + put + graph[at + 8 :]})
    for what, raw in (("arrays", b"[" * 10**5), ("a string", b'["' + b"x" * 10**7 + b'"]')):
        yield f"index: ids of {what}", of({"ids": raw})


def _logs(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    def of(name: str, raw: bytes) -> Callable[[], object]:
        def read() -> object:
            with tempfile.TemporaryDirectory(dir=folder) as made:
                (Path(made) / name).write_bytes(raw)
                log = EventLog(made)
                return log.counts, list(log.raw()), list(log.columns())

        return read

    yield "log: a line of 2 GiB, packed", of("view.jsonl.gz", gzip.compress(b" " * 2**20, 9) * 2_048)
    yield "log: two million lines of nothing, packed", of("view.jsonl.gz", gzip.compress(b"\n" * 2**20, 9) * 2)
    yield "log: a line of 100 MiB", of("view.jsonl", b'{"event_id":"' + b"x" * 100 * 2**20)
    yield "log: nested arrays", of("view.jsonl", b"[" * 10**5)
    yield "log: a manifest of nested arrays", of("log.json", b"[" * 10**5)


def limit() -> None:
    """From here on, so much memory and time and no more."""
    stated = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    size = int(stated["VmSize"].split()[0]) * 1024 + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def main() -> None:
    """See the module."""
    found = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        loaded(FILES, folder)  # compiled loops are loaded before the limit
        limit()
        for name, read in bombs(folder):
            print(name, file=sys.stderr, flush=True)  # the last one is the one that ended the process
            start = time.process_time()
            try:
                read()
                came_to = "read"
            except FreshetError as error:
                came_to = f"refused: {str(error)[:100]}"
            except BaseException as error:
                came_to = f"BROKE: {type(error).__name__}: {str(error)[:100]}"
            took = time.process_time() - start
            found[name] = came_to if took < SECONDS_MAX else f"SLOW: {took:.1f} s, {came_to}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
