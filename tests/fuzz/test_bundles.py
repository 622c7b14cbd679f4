"""A bundle whose checksums are right and whose content is not: it is loaded and can serve, or it is a `BundleError`."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.model.bundle import Bundle, BundleError, FrozenPairs, _digest, _json
from freshet.model.frozen import encode_fixture
from freshet.model.parity import make_fixture
from tests.fuzz.budget import fuzzed
from tests.fuzz.mutate import FLOATS, ODD, SIZES, dumped, spoilt_bytes, spoilt_json
from tests.random_bundle import random_bundle

HEAD = "bundle.json"


def files_of(bundle: Bundle) -> dict[str, bytes]:
    return replace(bundle, fixture=make_fixture(bundle))._files()


PAIRS = FrozenPairs(
    ["p2", "p1"], np.array([0, 1, 2]), np.array([1, 0], np.int32),
    np.array([5, 3], np.float32), np.array([7, 8], np.float32),
)  # fmt: skip
FILES = files_of(random_bundle(products=("p1", "p2"), pairs=PAIRS))
TEXTS = [name for name in FILES if name.endswith(".json")]
TENSORS = [name for name in FILES if name.endswith(".safetensors")]


def sealed(files: dict[str, bytes], head: Any = None) -> dict[str, bytes]:
    """The files with a head whose checksums agree with them, as whoever spoils them on purpose would write it."""
    if head is None:
        head = json.loads(files[HEAD])
        head["blake2b"] = {name: _digest(data) for name, data in files.items() if name != HEAD}
    if isinstance(head, dict):
        head.pop("self_blake2b", None)
        with suppress(UnicodeEncodeError):
            head["self_blake2b"] = _digest(_json(head))
    return files | {HEAD: dumped(head)}


def load(files: dict[str, bytes], folder: Path) -> Bundle | None:
    """The bundle of these files, after it has encoded its fixture; None where it is refused."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        return Bundle.load(folder, encode_fixture)
    except BundleError as refusal:
        assert len(str(refusal)) < 5_000
        return None


def test_the_originals_are_loaded(tmp_path: Path) -> None:
    assert load(FILES, tmp_path) is not None
    assert load(sealed(FILES), tmp_path) is not None


@fuzzed(60)
@given(st.data())
def test_texts_spoilt_by_fields(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(TEXTS))
    value = data.draw(spoilt_json(json.loads(FILES[name])))
    load(sealed(FILES, value) if name == HEAD else sealed(FILES | {name: dumped(value)}), tmp_path)


@fuzzed(60)
@given(st.data())
def test_files_spoilt_by_bytes(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in FILES if len(FILES[name]) < 100_000]))
    raw = data.draw(spoilt_bytes([FILES[name]]))
    load(FILES | {name: raw} if name == HEAD else sealed(FILES | {name: raw}), tmp_path)


@st.composite
def spoilt_tensors(draw: st.DrawFn, raw: bytes) -> bytes:
    """A safetensors file whose header says something else, or whose header's length lies, or with odd numbers in it."""
    (size,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + size]), bytearray(raw[8 + size :])
    change = draw(st.integers(0, 4))
    if change == 0:
        return struct.pack("<Q", draw(st.sampled_from([0, 1, size - 1, size + 1, 10**8, 2**40, 2**64 - 1]))) + raw[8:]
    if change == 1:
        at = draw(st.integers(0, max(0, len(body) - 8)))
        put = draw(st.sampled_from([*SIZES, *FLOATS]))
        body[at : at + len(put)] = put
    elif change == 2:
        tensor = header[draw(st.sampled_from([name for name in header if name != "__metadata__"]))]
        tensor["dtype"] = draw(st.sampled_from(["F64", "F16", "BF16", "I64", "I32", "I8", "BOOL", "F8_E4M3", "X"]))
        shape = tensor["shape"]
        tensor["shape"] = draw(st.sampled_from([shape, [], [0], [2**63], [2**32, 2**32], [-1], shape[::-1]]))
    elif change == 3:
        names = [name for name in header if name != "__metadata__"]
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        header[a]["data_offsets"] = draw(st.sampled_from([header[b]["data_offsets"], [0, 2**63], [5, 1], [0, 0]]))
    else:
        header = draw(spoilt_json(header))
    text = dumped(header)
    return struct.pack("<Q", len(text)) + text + bytes(body)


@fuzzed(100)
@given(st.data())
def test_tensors_that_lie(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(TENSORS))
    load(sealed(FILES | {name: data.draw(spoilt_tensors(FILES[name]))}), tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "/dev/zero", "..", ".", "", "x/../popular.json", "a\x00b", "y" * 5_000, "\ud800"]
)
def test_nothing_but_the_files_of_a_bundle_is_opened(tmp_path: Path, name: str) -> None:
    head = json.loads(FILES[HEAD])
    head["blake2b"][name] = _digest(b"")
    assert load(sealed(FILES, head), tmp_path) is None


def test_what_is_no_file_is_refused_and_not_read_for_ever(tmp_path: Path) -> None:
    for made, name in enumerate((HEAD, "popular.json")):
        for i, make in enumerate(
            (lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir(), os.mkfifo, lambda p: p.symlink_to(p))
        ):
            folder = tmp_path / f"{made}-{i}"
            folder.mkdir()
            assert load(FILES, folder) is not None
            (folder / name).unlink()
            make(folder / name)
            with pytest.raises(BundleError):
                Bundle.load(folder)


def test_files_may_be_links_as_volumes_are_mounted(tmp_path: Path) -> None:
    real, folder = tmp_path / "..data", tmp_path / "bundle"
    real.mkdir()
    folder.mkdir()
    assert load(FILES, real) is not None
    for name in FILES:
        (folder / name).symlink_to(real / name)
    assert Bundle.load(folder, encode_fixture).model_version


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("copurchase.safetensors", ("nbr", b"\xff\xff\xff\x7f")),
        ("copurchase.safetensors", ("ptr", b"\xff" * 8)),
        ("weights.safetensors", ("product.id", b"\x00\x00\xc0\x7f")),
        ("parity.safetensors", ("purchases.order_start", b"\xff\xff\xff\xff\xff\xff\xff\x00")),
        ("parity.safetensors", ("sessions.item_start", b"\xff\xff\xff\xff\xff\xff\xff\x7f")),
        ("parity.safetensors", ("sessions.duration_s", b"\x00\x00\x80\x7f")),
    ],
)
def test_numbers_that_compiled_loops_would_follow_are_refused(
    tmp_path: Path, name: str, change: tuple[str, bytes]
) -> None:
    tensor, put = change
    raw = FILES[name]
    (size,) = struct.unpack("<Q", raw[:8])
    at = 8 + size + json.loads(raw[8 : 8 + size])[tensor]["data_offsets"][0]
    spoilt = raw[:at] + put + raw[at + len(put) :]
    assert load(sealed(FILES | {name: spoilt}), tmp_path) is None


def test_every_odd_value_at_the_top_of_a_head_is_refused_or_harmless(tmp_path: Path) -> None:
    for name in json.loads(FILES[HEAD]):
        for odd in ODD[::3]:
            load(sealed(FILES, json.loads(FILES[HEAD]) | {name: odd}), tmp_path)
