"""Places for snapshots: one suite for all, and what only a real folder can suffer: full disks and killed writers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from freshet.store.snapshot import Part, SnapshotCorrupt, SnapshotHead
from freshet.store.snapshot_file import SnapshotReader, SnapshotWriter
from freshet.store.snapshot_places import (
    FolderPlace,
    PlaceUnusable,
    RemotePlace,
    SnapshotPlace,
    newest_valid,
    open_place,
    parse_name,
    retain,
    snapshot_name,
)
from tests.property.test_snapshot import HEAD

ROOT = Path(__file__).parents[2]
PART = Part("users", b"\x82\xa6number\xc4\x00\xa4name\x90")


class PutFile(AbstractBufferedFile):
    """A file of an object store: nothing is there until it is closed, then all of it."""

    def _initiate_upload(self) -> None:
        self.parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts.append(self.buffer.getvalue())
        if final:
            MemoryFile(self.fs, self.path, b"".join(self.parts)).commit()
        return True


class ObjectStore(MemoryFileSystem):
    """Speaks for S3 and its like, in memory."""

    protocol = "r2"
    cachable = False

    def _open(self, path: str, mode: str = "rb", block_size: int = 4096, **options: Any) -> Any:
        return PutFile(self, path, mode, block_size) if mode == "wb" else super()._open(path, mode, block_size)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        raise AssertionError("an object store copies what it is asked to move")


@pytest.fixture(params=["folder", "memory", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotPlace:
    if request.param == "folder":
        return open_place(str(tmp_path / "a" / "b"))
    if request.param == "memory":
        return open_place(f"memory://{uuid.uuid4().hex}/snapshots")
    fsspec.register_implementation("r2", ObjectStore, clobber=True)
    return open_place(f"r2://{uuid.uuid4().hex}/snapshots")


def at(created_ms: int, scope: str = "all") -> SnapshotHead:
    return replace(HEAD, created_ms=created_ms, scope=scope)


def put(place: SnapshotPlace, created_ms: int, scope: str = "all", token: str = "t0", size: int = 100) -> str:
    head = at(created_ms, scope)
    name = snapshot_name(head, token)
    with place.write(name) as file:
        writer = SnapshotWriter(file)
        writer.write_part(PART)
        writer.finish(head, {"blob": bytes(size)})
    return name


def damage(place: SnapshotPlace, name: str, byte: int) -> None:
    with place.read(name) as file:
        data = bytearray(file.read())
    data[byte] ^= 1
    with place.write(name) as file:
        file.write(bytes(data))


def leftovers(place: SnapshotPlace) -> list[str]:
    """Everything at the place that is no complete snapshot."""
    if isinstance(place, FolderPlace):
        there = os.listdir(place.folder) if place.folder.exists() else []
    else:
        assert isinstance(place, RemotePlace)
        try:
            there = [path.rsplit("/", 1)[-1] for path in place._fs.ls(place._root, detail=False)]
        except FileNotFoundError:
            there = []
    return sorted(set(there) - set(place.names()))


# --- what every place does -----------------------------------------------------------------------


def test_a_place_that_is_not_there_yet_is_empty(place: SnapshotPlace) -> None:
    assert place.names() == []
    assert newest_valid(place, lambda scope: True, print) is None
    assert retain(place, "all", 1) == []
    with pytest.raises(FileNotFoundError):
        place.read(snapshot_name(HEAD, "t0"))
    place.remove(snapshot_name(HEAD, "t0"))


def test_what_was_written_is_read_newest_first(place: SnapshotPlace) -> None:
    names = [put(place, 5), put(place, 30), put(place, 7, "users-3"), put(place, 7, "all", "t9"), put(place, 7)]
    assert place.names() == [names[1], names[3], names[2], names[4], names[0]]
    with place.read(names[2]) as file:
        assert SnapshotReader(file, names[2]).head == at(7, "users-3")
    place.remove(names[1])
    assert names[1] not in place.names()
    assert leftovers(place) == []


def test_what_was_not_finished_is_not_there(place: SnapshotPlace) -> None:
    kept = put(place, 1)
    seen: list[list[str]] = []

    def fail() -> None:
        with place.write(snapshot_name(at(2), "t0")) as file:
            file.write(bytes(100_000))
            seen.append(place.names())
            raise RuntimeError("the worker lost its partitions")

    with pytest.raises(RuntimeError, match="lost its partitions"):
        fail()
    assert seen == [[kept]], "while it is written it has no name"
    assert place.names() == [kept]
    assert leftovers(place) == []


def test_a_snapshot_written_again_is_replaced_whole(place: SnapshotPlace) -> None:
    name = put(place, 1, size=100)
    assert put(place, 1, size=100_000) == name
    with place.read(name) as file:
        assert SnapshotReader(file, name).blob("blob") == bytes(100_000)


@pytest.mark.parametrize("name", ["../x.snapshot", "x", "", "000000000000001-all-t0.snapshot/../../x"])
def test_a_name_that_is_none_is_refused(place: SnapshotPlace, name: str) -> None:
    for use in (place.read, place.remove, lambda name: place.write(name).__enter__()):
        with pytest.raises(ValueError, match="not the name of a snapshot"):
            use(name)


def test_the_newest_whole_one_of_a_scope_is_found(place: SnapshotPlace) -> None:
    good = put(place, 1)
    put(place, 9, "users-0")
    late, torn = put(place, 2), put(place, 3)
    with place.read(late) as file:
        data = file.read()
    damage(place, late, data.index(b"\0" * 50))  # inside the blob: only reading all of it tells
    with place.read(torn) as file:
        data = file.read()
    with place.write(torn) as file:
        file.write(data[: len(data) // 2])
    said: list[str] = []
    found = newest_valid(place, lambda scope: scope == "all", said.append)
    assert found is not None
    name, reader = found
    with reader:
        assert name == good
        assert reader.head == at(1)
        assert [part.section for part in reader.parts()] == ["users"]
    assert len(said) == 2
    assert torn in said[0]
    assert late in said[1]
    assert all("is damaged" in line and "older snapshot" in line for line in said)


def test_none_is_found_where_all_are_damaged(place: SnapshotPlace) -> None:
    name = put(place, 1)
    damage(place, name, 60)
    said: list[str] = []
    assert newest_valid(place, lambda scope: True, said.append) is None
    assert name in said[0]


def test_retain_keeps_the_newest_of_its_scope(place: SnapshotPlace) -> None:
    names = [put(place, i) for i in range(1, 6)]
    other = [put(place, i, "users-1") for i in range(1, 4)]
    assert retain(place, "all", 2) == [names[2], names[1], names[0]]
    assert set(place.names()) == {names[4], names[3], *other}
    assert retain(place, "all", 2) == []
    assert retain(place, "all", 9) == []
    with pytest.raises(ValueError, match="has to stay"):
        retain(place, "all", 0)


def test_retain_never_deletes_the_only_whole_one(place: SnapshotPlace) -> None:
    good, older = put(place, 2), put(place, 1)
    torn = [snapshot_name(at(i), "t0") for i in (3, 4, 5)]
    for name in torn:
        with place.write(name) as file:
            file.write(b"PK")
    assert retain(place, "all", 1) == [older]
    assert good in place.names()
    put(place, 6)
    assert set(retain(place, "all", 1)) == {good, *torn}, "damaged ones go with those they are older than"


# --- names and places by name --------------------------------------------------------------------


def test_a_name_says_when_and_what() -> None:
    name = snapshot_name(at(1_700_000_000_000, "users-3"), "a1b2")
    assert name == "001700000000000-users-3-a1b2.snapshot"
    assert parse_name(name) == (1_700_000_000_000, "a1b2", "users-3")
    assert parse_name("001700000000000-users-3-a1b2.snapshot.partial") is None
    for head, token in ((at(1, "Users"), "t"), (at(1, "a/b"), "t"), (at(1), "a-b"), (at(1), "")):
        with pytest.raises(ValueError, match="make no name"):
            snapshot_name(head, token)


def test_a_path_is_a_folder_and_needs_no_fsspec(tmp_path: Path) -> None:
    code = (
        "import sys; from freshet.store.snapshot_places import open_place;"
        f"open_place({str(tmp_path)!r}).names(); open_place('file://{tmp_path}').names();"
        "assert 'fsspec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("url", ["nothing://x", "s3://bucket/x"])
def test_a_place_that_nothing_reaches_is_named(url: str) -> None:
    with pytest.raises(PlaceUnusable, match=f"cannot be kept under {url.split(':')[0]}://"):
        open_place(url)


# --- a folder alone ------------------------------------------------------------------------------


def run(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    program = "import sys; from tests.unit.test_snapshot_places import *; " + code
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


FULL = """
try:
    put(FolderPlace(Path(sys.argv[1])), 2, size=200_000)
except OSError as e:
    print("refused", e.strerror)
"""


def test_a_file_too_large_leaves_the_older_one(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path)
    kept = put(place, 1)
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    done = run("\n" + limit + FULL, str(tmp_path))
    assert done.stdout.startswith("refused"), done.stderr
    assert os.listdir(tmp_path) == [kept]


def test_a_full_disk_leaves_the_older_one(tmp_path: Path) -> None:
    """On a real file system of its own, which goes with the process."""
    mount = f"mount -t tmpfs -o size=128k tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    code = "from tests.unit.test_snapshot_places import *\n"
    code += "import sys; put(FolderPlace(Path(sys.argv[1])), 1)\n" + FULL + "print(os.listdir(sys.argv[1]))"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1" "$2"', sys.executable, code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["refused No space left on device", str([snapshot_name(at(1), "t0")])], done


WRITING = """
place = FolderPlace(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(1, 1_000_000):
    put(place, i, size=300_000)
    retain(place, "all", 3)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Path, list[str]]]]:
    """Folders after writers were killed at random moments, with what was there then."""
    rng, found = random.Random(7), []
    for i in range(6):
        folder = tmp_path_factory.mktemp(f"killed{i}")
        program = "import sys; from tests.unit.test_snapshot_places import *\n" + WRITING
        with subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 30
            while not any(folder.iterdir()) and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.08)
            process.send_signal(signal.SIGKILL)
        found.append((folder, os.listdir(folder)))
    yield found


def test_a_killed_writer_leaves_whole_snapshots(killed: list[tuple[Path, list[str]]]) -> None:
    assert any(name.endswith(".partial") for _, there in killed for name in there), "some were killed while writing"
    for folder, _ in killed:
        place = FolderPlace(folder)
        for name in place.names():
            with SnapshotReader(place.read(name), name) as reader:
                reader.verify()


def test_what_a_killed_writer_left_is_cleaned_up(killed: list[tuple[Path, list[str]]]) -> None:
    for folder, _ in killed:
        place = FolderPlace(folder)
        name = put(place, 2_000_000)
        assert leftovers(place) == []
        found = newest_valid(place, lambda scope: True, pytest.fail)
        assert found is not None
        assert found[0] == name
        found[1].close()


def test_two_writers_leave_each_other_alone(tmp_path: Path) -> None:
    """What another process writes at the same time is not taken for a leftover."""
    place, other = FolderPlace(tmp_path), FolderPlace(tmp_path)
    with place.write(snapshot_name(at(1), "t0")) as file:
        put(other, 2)
        assert len(leftovers(place)) == 1
        writer = SnapshotWriter(file)
        writer.finish(at(1))
    assert len(place.names()) == 2


def test_a_snapshot_deleted_while_one_looks_is_passed_over(tmp_path: Path) -> None:
    class Listed(FolderPlace):
        def names(self) -> list[str]:
            return [snapshot_name(at(9), "gone"), *super().names()]

    place, said = Listed(tmp_path), []
    name = put(place, 1)
    found = newest_valid(place, lambda scope: True, said.append)
    assert found is not None
    with found[1]:
        assert found[0] == name
    assert "is gone" in said[0]


def test_damage_found_late_is_an_error_of_its_own(tmp_path: Path) -> None:
    """Who reads parts without `verify` learns of damage at the part that has it."""
    place = FolderPlace(tmp_path)
    name = put(place, 1)
    damage(place, name, 60)
    with SnapshotReader(place.read(name), name) as reader, pytest.raises(SnapshotCorrupt, match="users"):
        list(reader.parts())
