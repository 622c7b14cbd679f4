"""One file a snapshot: a ZIP archive of stored (never compressed) members, which `unzip` and `numpy.load` read, too.

    000000.purchased.npy ...   the parts that are arrays, numbered as they were written (`store/snapshot.py`)
    000007.users.msgpack ...   the parts that are MessagePack
    000042.index.blob          what else travels along, opaque here
    manifest.json              {"format": "freshet-snapshot", "format_version": 2, "scope", "positions": [[topic,
                               partition, offset]], "created_ms", "limits", "model_version", "topic_ids",
                               "logs": [{"path", "until_ms"}] (left out where there are none),
                               "members": [{"name", "size_bytes", "xxh3"}], "counts": {section: nodes, entries or
                               bytes of a blob}, "blake2b": ...} (its own checksum is that of the manifest with
                               this field empty)

The manifest is the last member, so a file that was cut off has none. It names every member in order with its
checksum (XXH3 of 128 bits: some forty times as fast as BLAKE2b, and it is damage that it has to find); ZIP's own
fields only say where members stand, and are believed as far as the file reaches.

A reader reads the format version of its own release and the one before; a newer one is refused by name. What
changes the meaning of a section or its columns raises the version. Version 1 had BLAKE2b in place of XXH3.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.graph import GraphLimits
from freshet.store.lanes import Lanes
from freshet.store.snapshot import LISTS, LOAD_ORDER, LogPart, Part, SnapshotCorrupt, SnapshotHead

FORMAT = "freshet-snapshot"
FORMAT_VERSION = 2
VERSIONS_READ = (1, FORMAT_VERSION)
"""The version before and this release's."""
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 * 1024 * 1024
"""A manifest has about 150 bytes a member; one that is greater is none."""
REMEDY = "an older snapshot is used, if there is one"
LITTLE_BYTES = 64 * 1024
"""Of a member that is checked where it is read, not beside others."""
BLOB_NAME = re.compile(r"[a-z0-9_-]{1,64}")
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
BROKEN_ZIP = (
    zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError, OverflowError, EOFError, KeyError,
    RuntimeError, struct.error, UnicodeError, IndexError,
)  # fmt: skip
"""What `zipfile` raises over a damaged directory."""


class SnapshotForeign(FreshetError):
    """A file of another format, or of a format version that this release does not read."""


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """A member of the archive; which checksum it has is said by the format's version."""

    name: str
    size_bytes: int
    xxh3: str = ""
    blake2b: str = ""

    def is_whole(self, data: bytes, format_version: int) -> bool:
        """Whether this is what was written."""
        if format_version == 1:
            return self.blake2b == _digest(data)
        return self.xxh3 == xxhash.xxh3_128_hexdigest(data)


class Manifest(msgspec.Struct, frozen=True):
    """What `manifest.json` holds."""

    format: str
    format_version: int
    scope: str
    positions: list[tuple[str, int, int]]
    created_ms: int
    limits: GraphLimits
    model_version: str
    topic_ids: dict[str, str]
    members: list[Member]
    counts: dict[str, int]
    blake2b: str = ""
    logs: tuple[LogPart, ...] | msgspec.UnsetType = msgspec.UNSET

    def digest(self) -> str:
        """What `blake2b` has to be."""
        return _digest(msgspec.json.encode(msgspec.structs.replace(self, blake2b=""), order="sorted"))


class SnapshotWriter:
    """Writes a snapshot into a binary file, which need not be seekable; `finish` makes it whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._sink = _Sink(file)
        self._zip = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_STORED, allowZip64=True)  # type: ignore[call-overload]
        self._members: list[Member] = []
        self._counts: dict[str, int] = {}

    def write_part(self, part: Part) -> None:
        """Add a part. Raises OSError, after which the file is worth nothing."""
        if isinstance(part.content, bytes):
            self._add(part.section, "msgpack", part.content, part.count)
        else:
            self._add(part.section, "npy", _as_npy(part.content), part.content.shape[0])

    def finish(self, head: SnapshotHead, blobs: Mapping[str, bytes] | None = None) -> None:
        """Add named blobs, then the manifest; the file is complete then, and left open. Raises OSError."""
        for name, data in (blobs or {}).items():
            if not BLOB_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a blob: lower-case letters, digits, - and _ alone")
            self._add(name, "blob", data, len(data))
        manifest = Manifest(
            FORMAT, FORMAT_VERSION, head.scope, [(t, p, offset) for (t, p), offset in sorted(head.positions.items())],
            head.created_ms, head.limits, head.model_version, head.topic_ids, self._members, self._counts,
            logs=head.logs or msgspec.UNSET,
        )  # fmt: skip
        manifest = msgspec.structs.replace(manifest, blake2b=manifest.digest())
        with self._sink.taking():
            self._zip.writestr(zipfile.ZipInfo(MANIFEST), msgspec.json.encode(manifest))
            self._zip.close()
            self._sink.flush()

    def _add(self, section: str, suffix: str, data: bytes, count: int) -> None:
        name = f"{len(self._members):06d}.{section}.{suffix}"
        with self._sink.taking():
            self._zip.writestr(zipfile.ZipInfo(name), data)
        self._members.append(Member(name, len(data), xxhash.xxh3_128_hexdigest(data)))
        self._counts[section] = self._counts.get(section, 0) + count


class _Sink(io.RawIOBase):
    """A file that takes what is written while it is told to. `zipfile` writes the end of an archive even when one is
    given up, and then into a file that may be full or closed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._taking = False

    @contextmanager
    def taking(self) -> Iterator[None]:
        self._taking = True
        try:
            yield
        finally:
            self._taking = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._taking:
            self._file.write(data)
        return len(data)

    def flush(self) -> None:
        if self._taking:
            self._file.flush()


class SnapshotReader:
    """A snapshot in a seekable binary file. The manifest is read and checked at once, each member when it is read.

    Raises SnapshotCorrupt and SnapshotForeign; `name` is what messages call the file. Closes the file at the end
    of a `with`.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        self._is_verified = False
        try:
            self._infos = self._directory()
            manifest = self._contents(MANIFEST)
        except BROKEN_ZIP as e:
            raise self._corrupt(f"it is no complete archive ({e})") from e
        self.manifest = self._checked_manifest(manifest)
        self.head = SnapshotHead(
            self.manifest.scope, {(t, p): offset for t, p, offset in self.manifest.positions},
            self.manifest.created_ms, self.manifest.limits, self.manifest.model_version, self.manifest.topic_ids,
            self.manifest.logs or (),
        )  # fmt: skip

    def __enter__(self) -> SnapshotReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def parts(self) -> Iterator[Part]:
        """Every part, in `LOAD_ORDER`, and those of lists by turns; each checked as it is read (unless `verify` has
        checked them all)."""
        members = [m for m in self.manifest.members if not m.name.endswith(".blob")]
        for member in _by_turns(members):
            data = self._data(member)
            yield Part(_section(member), self._array(member, data) if member.name.endswith(".npy") else data)

    def blobs(self) -> list[str]:
        """Names of the blobs."""
        return [_section(m) for m in self.manifest.members if m.name.endswith(".blob")]

    def blob(self, name: str) -> bytes:
        """The blob of this name, checked. Raises KeyError where there is none."""
        for member in self.manifest.members:
            if member.name.endswith(".blob") and _section(member) == name:
                return self._data(member)
        raise KeyError(name)

    def verify(self) -> None:
        """Read everything and check it."""
        with Lanes() as lanes:
            for member in self.manifest.members:
                data = self._stored(member)
                lanes.put(partial(self._check, member, data), little=len(data) < LITTLE_BYTES)
        self._is_verified = True

    # --- the archive ----------------------------------------------------------------------------

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        """Where members stand, by name, the manifest last. Reads the end of the file alone."""
        size = self._file.seek(0, io.SEEK_END)
        with zipfile.ZipFile(self._file) as archive:
            infos = archive.infolist()
        found: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise zipfile.BadZipFile(f"{info.filename!r} is compressed")
            if info.filename in found:
                raise zipfile.BadZipFile(f"{info.filename!r} is there twice")
            if not 0 <= info.header_offset <= size - LOCAL_HEADER.size - info.file_size:
                raise zipfile.BadZipFile(f"{info.filename!r} reaches past an end of it")
            found[info.filename] = info
        if not infos or infos[-1].filename != MANIFEST:
            if infos and not any(re.fullmatch(r"\d{6}\..+", name) for name in found):
                raise SnapshotForeign(f"{self.name} is a ZIP archive, but no snapshot: name another file")
            raise zipfile.BadZipFile("its last member is not the manifest")
        if found[MANIFEST].file_size > MANIFEST_BYTES_MAX:
            raise zipfile.BadZipFile(f"its manifest has {found[MANIFEST].file_size} bytes")
        return found

    def _contents(self, name: str) -> bytes:
        """The bytes of a member, or fewer where the file ends. Raises BadZipFile."""
        info = self._infos[name]
        header = self._read(info.header_offset, LOCAL_HEADER.size)
        if len(header) != LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"{name!r} is not where it should be")
        *_, name_size, extra_size = LOCAL_HEADER.unpack(header)
        return self._read(info.header_offset + LOCAL_HEADER.size + name_size + extra_size, info.file_size)

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)

    # --- what it holds --------------------------------------------------------------------------

    def _checked_manifest(self, raw: bytes) -> Manifest:
        try:
            found = msgspec.json.decode(raw)
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                raise SnapshotForeign(f"{self.name} is not a Freshet snapshot: name another file")
            version = found.get("format_version")
            if version not in VERSIONS_READ and isinstance(version, int):
                read = " and ".join(map(str, VERSIONS_READ))
                raise SnapshotForeign(
                    f"{self.name} has format version {version}, and this release reads {read}: read it with the "
                    f"release that wrote it; here, {REMEDY}"
                )
            manifest = msgspec.convert(found, Manifest)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as e:
            raise self._corrupt(f"its manifest cannot be read ({e})") from e
        if manifest.blake2b != manifest.digest():
            raise self._corrupt("the checksum of its manifest differs")
        present = {name: info.file_size for name, info in self._infos.items() if name != MANIFEST}
        if present != {m.name: m.size_bytes for m in manifest.members} or len(present) != len(manifest.members):
            raise self._corrupt("its members are not those that its manifest names")
        for i, member in enumerate(manifest.members):
            if not _is_named_well(i, member):
                raise self._corrupt(f"it has a member {member.name!r} that this release does not know")
        return manifest

    def _data(self, member: Member) -> bytes:
        data = self._stored(member)
        if not self._is_verified:
            self._check(member, data)
        return data

    def _stored(self, member: Member) -> bytes:
        try:
            data = self._contents(member.name)
        except zipfile.BadZipFile as e:
            raise self._corrupt(str(e)) from e
        if len(data) != member.size_bytes:
            raise self._corrupt(f"{member.name} has {len(data)} bytes")
        return data

    def _check(self, member: Member, data: bytes) -> None:
        if not member.is_whole(data, self.manifest.format_version):
            raise self._corrupt(f"the checksum of {member.name} differs")

    def _array(self, member: Member, data: bytes) -> NDArray[Any]:
        try:
            return _of_npy(data)
        except (ValueError, TypeError, SyntaxError, EOFError) as e:
            raise self._corrupt(f"{member.name} is no array ({e})") from e

    def _corrupt(self, what: str) -> SnapshotCorrupt:
        return SnapshotCorrupt(f"{self.name} is damaged: {what}; {REMEDY}")


def _by_turns(members: Sequence[Member]) -> list[Member]:
    """In `LOAD_ORDER`, but the lists of all relations together, each spread over the whole: they are merged side by
    side."""
    of_lists = [m for m in members if _section(m) in LISTS]
    count, seen = Counter(map(_section, of_lists)), Counter[str]()
    turn = {}
    for member in of_lists:
        section = _section(member)
        turn[member.name] = seen[section] / count[section]
        seen[section] += 1
    first = min(map(LOAD_ORDER.index, LISTS))

    def place(member: Member) -> tuple[int, float]:
        section = _section(member)
        return (first, turn[member.name]) if section in LISTS else (LOAD_ORDER.index(section), 0.0)

    return sorted(members, key=place)


def _section(member: Member) -> str:
    return member.name.split(".")[1]


def _is_named_well(number: int, member: Member) -> bool:
    kinds = member.name.split(".")
    if len(kinds) != 3 or kinds[0] != f"{number:06d}":
        return False
    known = kinds[1] in LOAD_ORDER if kinds[2] in ("npy", "msgpack") else BLOB_NAME.fullmatch(kinds[1]) is not None
    return known and kinds[2] in ("npy", "msgpack", "blob")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _as_npy(array: NDArray[Any]) -> bytes:
    """NumPy's own file format, version 1.0."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return b"".join((head.getvalue(), np.ascontiguousarray(array).data))


def _of_npy(data: bytes) -> NDArray[Any]:
    head = io.BytesIO(data)
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError("it is of another version of the format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
    if fortran or len(shape) != 1 or dtype.hasobject:
        raise ValueError("it is not a plain array of one dimension")
    array = np.frombuffer(data, dtype=dtype, offset=head.tell())
    if array.shape != shape:
        raise ValueError(f"it has {array.shape[0]} rows and says {shape[0]}")
    return array
