"""A disk in memory that loses what was not synced, and the few calls of `os` and `fcntl` that reach it.

`FolderPlace` itself runs on it: `mounted` puts these calls in the place of the real ones in its module.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from types import SimpleNamespace
from typing import Any

from tests.simulation.world import Crash, Process, World


class Inode:
    """A file's bytes: as they stand, and as far as they are safe."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.safe = b""
        self.nlink = 1
        self.locked_by: Process | None = None


class Disk:
    """One folder. Changes of its entries are safe, in their order, when the folder is synced."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.entries: dict[str, Inode] = {}
        self.fail: list[str] = []
        """Kinds of effects whose next call fails: the disk is full, or worn out."""
        self.damaged: set[str] = set()
        """Names of files that a fault has damaged."""
        self.renamed: Callable[[Process, str, bytes], None] = lambda process, name, data: None
        self._safe_entries: dict[str, Inode] = {}
        self._unsafe: list[dict[str, Inode]] = []

    def changed(self) -> None:
        """Note how the entries stand now."""
        self._unsafe.append(dict(self.entries))

    def sync_folder(self) -> None:
        """Make the entries safe."""
        self._safe_entries, self._unsafe = dict(self.entries), []

    def lose_power(self) -> None:
        """What was not synced is lost, or a part of it is."""
        rng = self.world.rng
        kept = rng.randint(0, len(self._unsafe))
        self.entries = dict(self._unsafe[kept - 1]) if kept else dict(self._safe_entries)
        for inode in self.entries.values():
            if bytes(inode.data) != inode.safe:
                torn = bytes(inode.data[: rng.randint(0, len(inode.data))])
                inode.data = bytearray(torn if rng.random() < 0.7 else torn + bytes(len(inode.data) - len(torn)))
            inode.safe = bytes(inode.data)
        self.sync_folder()

    def safe(self) -> dict[str, bytes]:
        """What is there after a loss of power now, in the worst case for each file."""
        return {n: inode.safe for n, inode in self._safe_entries.items() if self.entries.get(n) is inode}

    def whole(self) -> dict[str, bytes]:
        """What can be read now."""
        return {name: bytes(inode.data) for name, inode in self.entries.items()}

    def damage(self, name: str) -> None:
        """Flip a byte, or cut the end off."""
        inode, rng = self.entries[name], self.world.rng
        place = rng.randrange(len(inode.data))
        if rng.random() < 0.5:
            inode.data[place] ^= 1 << rng.randrange(8)
        else:
            del inode.data[place:]
        inode.safe = bytes(inode.data)
        self.damaged.add(name)


@contextmanager
def call(disk: Disk, process: Process, kind: str) -> Iterator[None]:
    """A call of the operating system. A process that is dead makes none, and its clean-up hears of it as an error."""
    if process.dead:
        raise OSError("the process is dead")
    with disk.world.effect(process, kind, ms=0.3):
        if kind in disk.fail and not disk.world.calm:
            disk.fail.remove(kind)
            disk.world.say(f"{kind} fails")
            raise OSError(28, "simulated: no space left on device")
        yield


class SimulatedPath:
    """What `FolderPlace` asks of a path: the folder itself, or a file in it."""

    def __init__(self, disk: Disk, process: Process, name: str = "") -> None:
        self.disk, self.process, self.name = disk, process, name

    def __truediv__(self, name: str) -> SimulatedPath:
        return SimulatedPath(self.disk, self.process, name)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """The folder is there."""

    def glob(self, pattern: str) -> list[SimulatedPath]:
        """Files of the folder."""
        return [self / name for name in sorted(self.disk.entries) if fnmatch(name, pattern)]

    def open(self, mode: str) -> SimulatedFile:
        """Open for reading, or for writing from the start."""
        with call(self.disk, self.process, "open"):
            inode = self.disk.entries.get(self.name)
            if mode == "wb":
                if inode is None:
                    inode = self.disk.entries[self.name] = Inode()
                    self.disk.changed()
                else:
                    inode.data.clear()
            elif inode is None:
                raise FileNotFoundError(self.name)
            return SimulatedFile(self.disk, self.process, inode, writing=mode == "wb")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        with call(self.disk, self.process, "remove"):
            inode = self.disk.entries.pop(self.name, None)
            if inode is not None:
                inode.nlink = 0
                self.disk.changed()
            elif not missing_ok:
                raise FileNotFoundError(self.name)


class SimulatedFile(io.RawIOBase):
    """An open file."""

    handles: dict[int, SimulatedFile] = {}  # noqa: RUF012  os.fsync gets a number

    def __init__(self, disk: Disk, process: Process, inode: Inode, writing: bool) -> None:
        self.disk, self.process, self.inode = disk, process, inode
        self._writing, self._at = writing, 0

    def fileno(self) -> int:
        """A number that `fsync` and `fstat` know."""
        self.handles[id(self)] = self
        return id(self)

    def write(self, data: Any) -> int:
        """Into the memory of the operating system."""
        with call(self.disk, self.process, "write"):
            self.inode.data[self._at : self._at + len(data)] = bytes(data)
            self._at += len(data)
            return len(data)

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        part = self.inode.data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return not self._writing

    def writable(self) -> bool:
        """See io.RawIOBase."""
        return self._writing

    def seekable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """See io.RawIOBase."""
        self._at = (0, self._at, len(self.inode.data))[whence] + offset
        return self._at

    def tell(self) -> int:
        """See io.RawIOBase."""
        return self._at

    def close(self) -> None:
        """Closing lets a lock go."""
        self.handles.pop(id(self), None)
        if self.inode.locked_by is self.process:
            self.inode.locked_by = None
        super().close()


def mounted(module: Any, disk: Disk) -> Callable[[], None]:
    """Put the disk under a module that says `os.` and `fcntl.`; returns what takes it off again."""
    real = module.os, module.fcntl

    def replaced(old: SimulatedPath, new: SimulatedPath) -> None:
        with call(disk, old.process, "rename"):
            disk.entries[new.name] = disk.entries.pop(old.name)
            disk.changed()
            disk.renamed(old.process, new.name, bytes(disk.entries[new.name].data))

    def fsync(handle: Any) -> None:
        if isinstance(handle, SimulatedPath):
            with call(disk, handle.process, "sync folder"):
                disk.sync_folder()
            return
        file = SimulatedFile.handles[handle]
        with call(disk, file.process, "sync"):
            file.inode.safe = bytes(file.inode.data)

    def listdir(folder: SimulatedPath) -> list[str]:
        with call(disk, folder.process, "list"):
            return sorted(disk.entries)

    def flock(file: SimulatedFile, how: int) -> None:
        holder = file.inode.locked_by
        if holder is not None and not holder.dead and holder is not file.process:
            raise BlockingIOError("locked")
        file.inode.locked_by = file.process

    module.os = SimpleNamespace(
        replace=replaced, fsync=fsync, listdir=listdir, open=lambda folder, how: folder, close=lambda handle: None,
        fstat=lambda handle: SimpleNamespace(st_nlink=SimulatedFile.handles[handle].inode.nlink),
        O_RDONLY=os.O_RDONLY,
    )  # fmt: skip
    module.fcntl = SimpleNamespace(flock=flock, LOCK_EX=real[1].LOCK_EX, LOCK_NB=real[1].LOCK_NB)

    def unmount() -> None:
        module.os, module.fcntl = real
        SimulatedFile.handles.clear()  # of files that a crash left open

    return unmount


__all__ = ["Crash", "Disk", "SimulatedPath", "mounted"]
