"""`freshet snapshot`: what it shows, and how it ends where a snapshot is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freshet.store.graph import GraphStore
from freshet.store.snapshot import parts
from freshet.store.snapshot_file import SnapshotWriter
from freshet.store.snapshot_places import FolderPlace, snapshot_name
from freshet.stream.cli import EXIT_CHECK_FAILED, EXIT_USAGE
from freshet.stream.cli_snapshot import EXIT_CHECK_FAILED as OURS
from freshet.stream.decode import decode_events
from tests.property.logs import LIMITS
from tests.property.test_snapshot import everything
from tests.unit.test_cli import one_line, run
from tests.unit.test_snapshot_file import EVENTS
from tests.unit.test_snapshot_places import at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place with two snapshots."""
    graph = GraphStore(LIMITS)
    graph.apply(decode_events(EVENTS))
    place = FolderPlace(tmp_path)
    for created_ms in (1_700_000_000_000, 1_700_000_300_000):
        head = at(created_ms)
        with place.write(snapshot_name(head, "t0")) as file:
            writer = SnapshotWriter(file)
            for part in parts(graph, everything, everything):
                writer.write_part(part)
            writer.finish(head)
    return tmp_path


NEWER, OLDER = "001700000300000-all-t0.snapshot", "001700000000000-all-t0.snapshot"


def test_snapshots_are_listed_newest_first(folder: Path) -> None:
    assert OURS == EXIT_CHECK_FAILED
    done = run("snapshot", "list", FRESHET_SNAPSHOT_PLACE=str(folder))
    assert done.stdout.splitlines() == [
        f"{NEWER}\tall\t2023-11-14 22:18:20 UTC",
        f"{OLDER}\tall\t2023-11-14 22:13:20 UTC",
    ]
    as_json = json.loads(run("snapshot", "list", "--place", folder, "--json").stdout)
    assert as_json["snapshots"][0] == {"name": NEWER, "scope": "all", "created_ms": 1_700_000_300_000}


def test_a_snapshot_is_inspected(folder: Path) -> None:
    done = run("snapshot", "inspect", OLDER, "--place", folder)
    assert f"name: {OLDER}" in done.stdout
    assert "position: views[0] from offset 7" in done.stdout
    assert "viewed_max 2" in done.stdout
    about = json.loads(run("snapshot", "inspect", "--place", folder, "--json").stdout)
    assert about["name"] == NEWER, "the newest, where none is named"
    assert about["positions"] == [
        {"topic": "views", "partition": 0, "offset": 7}, {"topic": "views", "partition": 1, "offset": 0},
    ]  # fmt: skip
    assert about["counts"]["users"] == 2


def test_verify_ends_with_one_where_a_snapshot_is_damaged(folder: Path) -> None:
    done = run("snapshot", "verify", "--place", folder)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{NEWER}: whole", f"{OLDER}: whole"]
    data = bytearray((folder / NEWER).read_bytes())
    data[data.index(b"DE")] ^= 1  # in a profile
    (folder / NEWER).write_bytes(data)
    done = run("snapshot", "verify", "--place", folder)
    assert done.returncode == EXIT_CHECK_FAILED
    assert f"{NEWER} is damaged: the checksum of 000000.user_attributes.msgpack differs" in done.stdout
    assert f"{OLDER}: whole" in done.stdout
    as_json = run("snapshot", "verify", NEWER, "--place", folder, "--json")
    assert as_json.returncode == EXIT_CHECK_FAILED
    assert json.loads(as_json.stdout)["passed"] is False
    assert run("snapshot", "verify", OLDER, "--place", folder).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "set FRESHET_SNAPSHOT_PLACE"),
        (["verify", "--place", "EMPTY"], "there are no snapshots at"),
        (["inspect", "x.snapshot", "--place", "EMPTY"], "freshet snapshot list names those there are"),
        (["list", "--place", "FILE"], "check the place and its permissions"),
        (["list", "--place", "nothing://x"], "cannot be kept under nothing://"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_remedy(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "file").touch()
    places = {"EMPTY": str(tmp_path), "FILE": str(tmp_path / "file")}
    done = run("snapshot", *(places.get(a, a) for a in arguments))
    assert done.returncode == EXIT_USAGE
    assert message in one_line(done)
