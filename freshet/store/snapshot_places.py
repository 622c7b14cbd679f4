"""Where snapshots are kept: a folder, or whatever fsspec reaches; the only file that imports fsspec.

A snapshot appears under its name when it is complete, and not before: what is being written stands under a name that
no listing shows. The name says when it was made and of what (`snapshot_name`), so listing reads no file.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from freshet.errors import FreshetError
from freshet.store.snapshot import SnapshotCorrupt, SnapshotHead
from freshet.store.snapshot_file import SnapshotForeign, SnapshotReader

NAME = re.compile(r"(\d{15})-([a-z0-9-]+)-([a-z0-9]+)\.snapshot")
UNFINISHED = ".partial"
"""What the name of a file ends with while it is written."""
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "r2"})
"""Protocols under which an object is there once it is complete, so that it can be written under its own name."""


class PlaceUnusable(FreshetError):
    """A place for snapshots that cannot be opened; the message names it and the remedy."""


class SnapshotName(NamedTuple):
    """What a snapshot's name says. In this order, greater is newer."""

    created_ms: int
    token: str
    scope: str


class SnapshotPlace(Protocol):
    """Where snapshots are kept."""

    def names(self) -> list[str]:
        """Names of the complete snapshots, newest first. Raises OSError."""
        ...

    def write(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write a snapshot into; it appears under its name when the block ends without an error, and is
        safe on the disk then. Raises OSError."""
        ...

    def read(self, name: str) -> BinaryIO:
        """A snapshot as a seekable file, which the caller closes. Raises FileNotFoundError and other OSErrors."""
        ...

    def remove(self, name: str) -> None:
        """Delete a snapshot; one that is gone already is no error. Raises OSError."""
        ...


def snapshot_name(head: SnapshotHead, token: str) -> str:
    """The name of a snapshot; `token`, lower-case letters and digits, tells apart what was made in one millisecond."""
    name = f"{head.created_ms:015d}-{head.scope}-{token}.snapshot"
    if parse_name(name) != SnapshotName(head.created_ms, token, head.scope):
        raise ValueError(f"scope {head.scope!r} and token {token!r} make no name: [a-z0-9-]+ and [a-z0-9]+ do")
    return name


def parse_name(name: str) -> SnapshotName | None:
    """What a name says; None where it is not one of a snapshot."""
    match = NAME.fullmatch(name)
    return SnapshotName(int(match[1]), match[3], match[2]) if match else None


def open_place(url_or_path: str) -> SnapshotPlace:
    """The place a setting names: a folder, or a URL that fsspec knows. Raises PlaceUnusable."""
    protocol, separator, path = url_or_path.partition("://")
    if not separator:
        return FolderPlace(Path(url_or_path))
    return FolderPlace(Path(path)) if protocol in ("file", "local") else RemotePlace(url_or_path)


def newest_valid(
    place: SnapshotPlace, scope_filter: Callable[[str], bool], say: Callable[[str], None]
) -> tuple[str, SnapshotReader] | None:
    """The newest snapshot of such a scope that is whole, as its name and an open reader (close it).

    Every byte has been checked. One that is damaged, foreign or gone is named through `say`, and the next older
    one is looked at. Raises OSError where the place cannot be read.
    """
    for name in place.names():
        parsed = parse_name(name)
        if parsed is None or not scope_filter(parsed.scope):
            continue
        reader = _opened(place, name, say)
        if reader is None:
            continue
        try:
            reader.verify()
        except SnapshotCorrupt as e:
            say(str(e))
            reader.close()
        except BaseException:
            reader.close()
            raise
        else:
            return name, reader
    return None


def retain(place: SnapshotPlace, scope: str, keep: int) -> list[str]:
    """Delete what is older than the `keep` newest whole snapshots of a scope; returns the names deleted.

    Whole means here that the manifest is, and that every member is where it says. Damaged ones do not count as
    kept, so the last whole one stays in any case. Raises OSError.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}: the newest snapshot has to stay")
    whole, removed = 0, []
    for name in place.names():
        parsed = parse_name(name)
        if parsed is None or parsed.scope != scope:
            continue
        if whole >= keep:
            place.remove(name)
            removed.append(name)
        elif (reader := _opened(place, name, lambda _: None)) is not None:
            reader.close()
            whole += 1
    return removed


def _opened(place: SnapshotPlace, name: str, say: Callable[[str], None]) -> SnapshotReader | None:
    try:
        file = place.read(name)
    except FileNotFoundError:
        say(f"{name} is gone: another process deleted it")
        return None
    try:
        return SnapshotReader(file, name)
    except (SnapshotCorrupt, SnapshotForeign) as e:
        file.close()
        say(str(e))
        return None
    except BaseException:
        file.close()
        raise


def _newest_first(names: list[str]) -> list[str]:
    found = [(parsed, name) for name in names if (parsed := parse_name(name)) is not None]
    return [name for _, name in sorted(found, reverse=True)]


def _checked(name: str) -> str:
    if parse_name(name) is None:
        raise ValueError(f"{name!r} is not the name of a snapshot")
    return name


class FolderPlace:
    """A folder. A snapshot is written beside its place, synced, renamed into it, and the folder is synced.

    Who writes holds a lock on the unfinished file, which the kernel lets go when the process ends: an unfinished
    file without a lock is what a crash left, and the next `write` deletes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """See `SnapshotPlace`."""
        try:
            return _newest_first(os.listdir(self.folder))
        except FileNotFoundError:
            return []

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """See `SnapshotPlace`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clean()
        unfinished = self.folder / (_checked(name) + UNFINISHED)
        with self._locked(unfinished) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(unfinished, self.folder / name)
            except BaseException:
                with suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise
        self._sync()

    def read(self, name: str) -> BinaryIO:
        """See `SnapshotPlace`."""
        return (self.folder / _checked(name)).open("rb")

    def remove(self, name: str) -> None:
        """See `SnapshotPlace`."""
        (self.folder / _checked(name)).unlink(missing_ok=True)

    def _locked(self, path: Path) -> BinaryIO:
        while True:
            file = path.open("wb")
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # another process took it for a leftover before it was locked

    def _clean(self) -> None:
        for found in self.folder.glob(f"*.snapshot{UNFINISHED}"):
            with suppress(FileNotFoundError, BlockingIOError), found.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.unlink()

    def _sync(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class RemotePlace:
    """A URL that fsspec knows. In an object store a snapshot is one object, which is there once it is complete; in
    other file systems it is written under another name and moved."""

    def __init__(self, url: str) -> None:
        protocol = url.partition("://")[0]
        try:
            import fsspec.core

            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as e:
            raise PlaceUnusable(f"snapshots cannot be kept under {protocol}:// ({e})") from e
        self._is_object_store = protocol in OBJECT_STORES

    def names(self) -> list[str]:
        """See `SnapshotPlace`."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return _newest_first([path.rstrip("/").rsplit("/", 1)[-1] for path in found])

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """See `SnapshotPlace`."""
        path = self._path(name)
        if self._is_object_store:
            with self._put(path) as file:
                yield file
            return
        self._fs.makedirs(self._root, exist_ok=True)
        self._clean(name)
        try:
            with self._fs.open(path + UNFINISHED, "wb") as file:
                yield file
            self._fs.mv(path + UNFINISHED, path)
        except BaseException:
            with suppress(OSError):
                self._fs.rm_file(path + UNFINISHED)
            raise

    def _clean(self, name: str) -> None:
        """Delete what an earlier writer of the same scope left unfinished: a scope has one writer at a time."""
        for path in self._fs.ls(self._root, detail=False):
            left = parse_name(path.rsplit("/", 1)[-1].removesuffix(UNFINISHED))
            if path.endswith(UNFINISHED) and left is not None and left.scope == parse_name(name)[2]:  # type: ignore[index]
                with suppress(FileNotFoundError):
                    self._fs.rm_file(path)

    @contextmanager
    def _put(self, path: str) -> Iterator[BinaryIO]:
        """An object that is put when it is closed, and is not when the block ends with an error."""
        file: Any = self._fs.open(path, "wb")
        try:
            yield file
            file.close()
        except BaseException:
            with suppress(Exception):
                file.discard()
            file.closed = True  # or it would be put when it is collected
            raise

    def read(self, name: str) -> BinaryIO:
        """See `SnapshotPlace`."""
        file: BinaryIO = self._fs.open(self._path(name), "rb")
        return file

    def remove(self, name: str) -> None:
        """See `SnapshotPlace`."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{_checked(name)}"
