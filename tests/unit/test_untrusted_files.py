"""Bundles and index snapshots from elsewhere: no name in them leads out of their folder, nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from freshet.model.bundle import Bundle, BundleError
from freshet.model.bundle import _digest as digest_of
from freshet.model.bundle import _json as head_bytes
from freshet.store.faiss_index import make_index
from freshet.store.index_settings import IndexSettings
from freshet.store.index_snapshot import MANIFEST, IndexCorrupt, read_manifest
from tests.random_bundle import random_bundle

OUTSIDE = ["../secret", "/etc/hostname", "..", "", ".", "a/b", "a\\b", "../../x", "a\0b"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    random_bundle(products=("p1", "p2")).save(tmp_path / "bundle")
    (tmp_path / "secret").write_bytes(b"not ours")
    return tmp_path / "bundle"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    index = make_index(IndexSettings(kind="hnsw"), 4)
    index.upsert(["a", "b"], np.eye(4, dtype=np.float32)[:2])
    index.snapshot(tmp_path / "snapshot", "v1")
    return tmp_path / "snapshot"


class Trap:
    """What would write a file if it were unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def rewritten(bundle: Path, names: dict[str, str]) -> None:
    """Give the head other file names, and checksums that fit, as somebody who means harm would."""
    head = json.loads((bundle / "bundle.json").read_text())
    head.pop("self_blake2b")
    head["blake2b"] |= names
    head["self_blake2b"] = digest_of(head_bytes(head))
    (bundle / "bundle.json").write_text(json.dumps(head))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_bundle_does_not_lead_out_of_its_folder(bundle: Path, name: str) -> None:
    rewritten(bundle, {name: digest_of(b"not ours")})
    with pytest.raises(BundleError, match="which is no file of a bundle"):
        Bundle.load(bundle)


def test_the_same_bundle_without_the_name_loads(bundle: Path) -> None:
    rewritten(bundle, {})
    assert Bundle.load(bundle).model_version


def test_a_pickle_in_a_bundle_is_not_run(bundle: Path, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    for name in [path.name for path in bundle.iterdir() if path.name != "bundle.json"]:
        kept = (bundle / name).read_bytes()
        (bundle / name).write_bytes(trap)
        rewritten(bundle, {name: digest_of(trap)})
        if name != "card.html":
            with pytest.raises(BundleError):
                Bundle.load(bundle)
        (bundle / name).write_bytes(kept)
        rewritten(bundle, {name: digest_of(kept)})
    assert Bundle.load(bundle).model_version
    assert not (tmp_path / "sprung").exists()


def renamed(snapshot: Path, role: str, name: str, data: bytes) -> None:
    manifest = read_manifest(snapshot)
    entry = msgspec.structs.replace(
        manifest.files[role], name=name, size_bytes=len(data), blake2b=hashlib.blake2b(data, digest_size=32).hexdigest()
    )
    changed = msgspec.structs.replace(manifest, files=manifest.files | {role: entry})
    changed = msgspec.structs.replace(changed, blake2b=changed.digest())
    (snapshot / MANIFEST).write_bytes(msgspec.json.encode(changed))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_snapshot_does_not_lead_out_of_its_folder(snapshot: Path, name: str) -> None:
    renamed(snapshot, "ids", name, b"not ours")
    with pytest.raises(IndexCorrupt, match="names a file outside its folder"):
        make_index(IndexSettings(kind="hnsw"), 4).load(snapshot)


def test_a_pickle_in_a_snapshot_is_not_run(snapshot: Path, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    for role in ("ids", "graph"):
        name = read_manifest(snapshot).files[role].name
        kept = (snapshot / name).read_bytes()
        (snapshot / name).write_bytes(trap)
        renamed(snapshot, role, name, trap)
        with pytest.raises(IndexCorrupt):
            make_index(IndexSettings(kind="hnsw"), 4).load(snapshot)
        (snapshot / name).write_bytes(kept)
        renamed(snapshot, role, name, kept)
    assert make_index(IndexSettings(kind="hnsw"), 4).load(snapshot) == "v1"
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists(), "the trap works"
