"""The golden files are what their generator writes, and every record in them meets its stated fate."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from freshet.stream.codec import Rejection, decode_record, encode
from freshet.stream.deadletter import DeadLetterLimits
from freshet.stream.decode import decode
from freshet.stream.events import STRUCT_OF, Event, Kind, Line, SessionItem
from freshet.stream.headers import EVENT_TYPE_OF
from freshet.stream.records import Record
from freshet.stream.rejection import DecodeLimits, Reason
from tests.contract.golden.generate import FOLDER, files

CASES: list[dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_bytes())["cases"]


def record_of(case: dict[str, Any]) -> Record:
    value = None if case["file"] is None else (FOLDER / case["file"]).read_bytes() + b" " * case["pad_bytes"]
    key = None if case["key"] is None else case["key"].encode()
    headers = tuple((name, text.encode()) for name, text in case["headers"].items())
    return Record(case["topic"], 0, 0, case["record_timestamp_ms"], key, value, headers)


def meaning(event: Event) -> object:
    """An event as plain values, absent fields left out."""
    return json.loads(msgspec.json.encode(event))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_golden_record_meets_its_fate_alone_and_in_a_batch(case: dict[str, Any]) -> None:
    record, kind = record_of(case), Kind(case["kind"])
    outcome = decode_record(record, kind)
    batch = decode([record], {record.topic: kind})
    if case["outcome"] == "rejected":
        assert isinstance(outcome, Rejection)
        assert outcome.reason == case["reason"]
        assert batch.rejections == [(record, outcome)]
        assert batch.events == {}
    else:
        assert not isinstance(outcome, Rejection), outcome
        assert meaning(outcome) == meaning(msgspec.convert(case["event"], type=STRUCT_OF[kind]))
        assert batch.rejections == []
        assert batch.events == {kind: 1}


def test_the_files_are_those_that_the_generator_writes() -> None:
    stored = {p.name: p.read_bytes() for p in FOLDER.iterdir() if p.suffix in (".json", ".msgpack", ".bin")}
    assert stored == files(), "run python -m tests.contract.golden.generate"


def test_accepted_events_are_written_as_they_mean() -> None:
    for case in CASES:
        if case["outcome"] == "accepted":
            event = msgspec.convert(case["event"], type=STRUCT_OF[Kind(case["kind"])])
            as_json = json.loads(encode(event, "application/json"))
            assert as_json == msgpack.unpackb(encode(event, "application/msgpack")), case["name"]
            assert as_json == meaning(event)


def test_every_kind_is_covered_in_both_encodings_and_both_outcomes() -> None:
    seen = {(c["kind"], c["headers"].get("content-type"), c["outcome"]) for c in CASES}
    for kind in Kind:
        for content_type in ("application/json", "application/msgpack"):
            for outcome in ("accepted", "rejected"):
                assert (kind.value, content_type, outcome) in seen


def test_every_reason_has_a_golden_record() -> None:
    assert {c["reason"] for c in CASES if c["outcome"] == "rejected"} == {
        reason.value for reason in Reason if reason is not Reason.WRONG_PARTITION
    }


CONTRACTS = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text()


def test_the_contract_for_people_names_every_reason_field_limit_and_type() -> None:
    limits = dataclasses.fields(DecodeLimits) + dataclasses.fields(DeadLetterLimits)
    wanted = {reason.value for reason in Reason} | {limit.name for limit in limits} | set(EVENT_TYPE_OF.values())
    for struct in STRUCT_OF.values():
        wanted |= set(struct.__struct_fields__)
    wanted |= {f"items[].{name}" for item in (Line, SessionItem) for name in item.__struct_fields__}
    assert {name for name in wanted if f"`{name}`" not in CONTRACTS} == set()


def test_the_examples_of_the_contract_are_accepted() -> None:
    examples = re.findall(r"^```json (\w+)\n(.*?)^```", CONTRACTS, re.DOTALL | re.MULTILINE)
    assert {kind for kind, _ in examples} == {kind.value for kind in Kind}
    for name, text in examples:
        key = json.loads(text)["product_id" if name == "product" else "user_id"].encode()
        outcome = decode_record(Record("t", 0, 0, 1_764_000_000_000, key, text.encode()), Kind(name))
        assert not isinstance(outcome, Rejection), (text, outcome)
