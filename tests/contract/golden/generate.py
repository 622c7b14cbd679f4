"""Writes the golden files: `python -m tests.contract.golden.generate`. The same bytes every time.

Values are written by the json module and by msgpack, not by the library that Freshet decodes with, so that the
files do not agree with the decoder by construction. The expected outcomes stand here by hand.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

FOLDER = Path(__file__).parent
RECORD_MS = 1_764_000_000_000
T = RECORD_MS - 1_000
TOPICS = {
    "view": "freshet.events.view",
    "purchase": "freshet.events.purchase",
    "session": "freshet.events.session",
    "product": "freshet.catalog.products",
    "profile": "freshet.profiles.users",
}
BASES: dict[str, dict[str, Any]] = {
    "view": {"event_id": "v-1", "user_id": "u-1", "product_id": "p-1", "timestamp": T},
    "purchase": {"event_id": "o-1", "user_id": "u-1", "product_id": "p-1", "timestamp": T},
    "session": {"event_id": "s-1:3", "user_id": "u-1", "session_id": "s-1", "timestamp": T},
    "product": {"product_id": "p-1", "timestamp": T},
    "profile": {"user_id": "u-1", "timestamp": T},
}
ENCODINGS = {"json": "application/json", "msgpack": "application/msgpack"}


@dataclass
class Case:
    """One record and what becomes of it. `value`: an object to encode, or bytes as they are, or None.

    `event`: the event that an accepted record means, where it is not `value` itself.
    """

    kind: str
    name: str
    value: Any
    reason: str | None = None
    event: dict[str, Any] | None = None
    key: bytes | None = b""
    headers: dict[str, str] = field(default_factory=dict)
    encodings: tuple[str, ...] = ("json", "msgpack")
    pad_bytes: int = 0


def of(kind: str, drop: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """The smallest valid value of a kind, with `fields` added and `drop` left out."""
    return {name: value for name, value in (BASES[kind] | fields).items() if name not in drop}


def order(**fields: Any) -> dict[str, Any]:
    """An order of several lines."""
    return of("purchase", ("product_id",), **fields)


LINES: list[dict[str, Any]] = [
    {"product_id": "p-1", "quantity": 2.0, "price": 1.25},
    {"product_id": "p-2", "quantity": 0.0, "price": 0.0},
    {"product_id": "p-3"},
]
SHOWN = [
    {"product_id": "p-1", "position": 0, "click": True},
    {"product_id": "p-2", "position": 1, "click": False},
    {"product_id": "p-1"},
]
ID_256 = "é" * 128
ID_257 = "é" * 128 + "x"
CE = {"ce_specversion": "1.0", "ce_id": "ce-7", "ce_source": "/shop", "ce_time": "2025-11-24T15:59:59Z"}
CE_MS = 1_763_999_999_000

VALID = [
    Case("view", "minimal", of("view")),
    Case("view", "full", of("view", dwell_time_s=12.5)),
    Case("view", "null_is_absent", of("view", dwell_time_s=None), event=of("view")),
    Case("view", "whole_number", of("view", dwell_time_s=12), event=of("view", dwell_time_s=12.0)),
    Case("view", "unicode_ids", of("view", user_id="кот-🐈", product_id="naïve\u0000id"), key="кот-🐈".encode()),
    Case("view", "id_of_256_bytes", of("view", user_id=ID_256), key=ID_256.encode()),
    Case("view", "a_day_ahead", of("view", timestamp=RECORD_MS + 86_400_000)),
    Case("view", "first_of_1990", of("view", timestamp=631_152_000_000)),
    Case(
        "view",
        "cloudevents",
        of("view", ("event_id", "timestamp")),
        event=of("view", event_id="ce-7", timestamp=CE_MS),
        headers=CE | {"ce_type": "freshet.view"},
    ),
    Case("view", "cloudevents_body_wins", of("view"), headers=CE | {"ce_type": "com.example.viewed"}),
    Case("purchase", "one_product", of("purchase", quantity=1.0, price=9.99, order_id="order-1")),
    Case("purchase", "quantity_0", of("purchase", quantity=0.0)),
    Case("purchase", "items", order(items=LINES, order_id="order-1")),
    Case("purchase", "cancelled", order(items=LINES, cancelled=True)),
    Case("purchase", "line_cancelled", order(items=[LINES[0] | {"cancelled": True}, LINES[1]])),
    Case("purchase", "product_twice", order(items=[LINES[0], LINES[0]])),
    Case("session", "minimal", of("session"), event=of("session")),
    Case("session", "full", of("session", device="mobile", duration_s=61.5, items=SHOWN)),
    Case("product", "minimal", of("product"), key=b"p-1"),
    Case(
        "product",
        "full",
        of("product", category=["Food", "Snacks"], brand="Acme", price=3.5, description="Crisps, salted"),
    ),
    Case("product", "embedding", of("product", description_emb=[0.25, -1.0, 0.0])),
    Case("product", "time_from_record", of("product", ("timestamp",)), event=of("product", timestamp=RECORD_MS)),
    Case("product", "time_from_cloudevents", of("product", ("timestamp",)), event=of("product", timestamp=CE_MS),
         headers=CE | {"ce_type": "freshet.product"}),
    Case("product", "withdrawn", of("product", withdrawn=True)),
    Case("product", "tombstone_null", None, event=of("product", timestamp=RECORD_MS, withdrawn=True)),
    Case("product", "tombstone_empty", b"", event=of("product", timestamp=RECORD_MS, withdrawn=True)),
    Case("profile", "minimal", of("profile")),
    Case("profile", "full", of("profile", age_bucket="25-34", geo="DE-BE", signup_date="2017-03-01")),
    Case("profile", "forgotten", of("profile", forgotten=True)),
    Case("profile", "tombstone_null", None, event=of("profile", timestamp=RECORD_MS, forgotten=True)),
]  # fmt: skip

INVALID = [
    Case("view", "empty", b"", "empty_value"),
    Case("view", "truncated", of("view"), "undecodable"),
    Case("view", "garbage", b"\xc1\xff\x00", "undecodable"),
    Case("view", "not_a_map", [1, 2, 3], "wrong_type"),
    Case("view", "over_1_mib", of("view"), "value_too_large", encodings=("json",), pad_bytes=1024 * 1024),
    Case("view", "xml", b"<view/>", "unsupported_content_type", headers={"content-type": "application/xml"}),
    Case("view", "latin_1", of("view"), "unsupported_content_type", encodings=("json",),
         headers={"content-type": "application/json; charset=iso-8859-1"}),
    Case("view", "ce_time_without_zone", of("view"), "bad_header", headers={"ce_time": "2025-11-24T15:59:59"}),
    Case("view", "ce_version_0_3", of("view"), "bad_header", headers={"ce_specversion": "0.3"}),
    Case("view", "ce_unknown_type", of("view"), "unknown_event_type", headers={"ce_type": "freshet.click"}),
    Case("view", "ce_wrong_type", of("view"), "event_type_mismatch", headers={"ce_type": "freshet.purchase"}),
    *(Case("view", f"without_{name}", of("view", (name,)), "missing_field") for name in BASES["view"]),
    Case("view", "misspelt_field", of("view", dwel_time_s=1.0), "unknown_field"),
    Case("view", "text_timestamp", of("view", timestamp="2025-11-24"), "wrong_type"),
    Case("view", "fractional_timestamp", of("view", timestamp=T + 0.5), "wrong_type"),
    Case("view", "numeric_id", of("view", product_id=17), "wrong_type"),
    Case("view", "negative_dwell", of("view", dwell_time_s=-1.0), "negative_number"),
    Case("view", "nan_dwell", of("view", dwell_time_s=math.nan), "not_finite"),
    Case("view", "infinite_dwell", of("view", dwell_time_s=math.inf), "not_finite"),
    Case("view", "huge_dwell", of("view", dwell_time_s=1e39), "number_too_large"),
    Case("view", "empty_id", of("view", product_id=""), "empty_id"),
    Case("view", "id_of_257_bytes", of("view", product_id=ID_257), "id_too_long"),
    Case("view", "id_of_257_characters", of("view", product_id="x" * 257), "id_too_long"),
    Case("view", "no_key", of("view"), "missing_key", key=None),
    Case("view", "another_key", of("view"), "key_mismatch", key=b"u-2"),
    Case("view", "seconds", of("view", timestamp=T // 1000), "timestamp_too_old"),
    Case("view", "negative_timestamp", of("view", timestamp=-1), "timestamp_too_old"),
    Case("view", "microseconds", of("view", timestamp=T * 1000), "timestamp_in_future"),
    Case("view", "over_a_day_ahead", of("view", timestamp=RECORD_MS + 86_400_001), "timestamp_in_future"),
    Case("purchase", "no_product", of("purchase", ("product_id",)), "no_product"),
    Case("purchase", "product_and_items", of("purchase", items=LINES), "product_and_items"),
    Case("purchase", "quantity_and_items", order(items=LINES, quantity=1.0), "product_and_items"),
    Case("purchase", "empty_items", order(items=[]), "empty_items"),
    Case("purchase", "negative_quantity", of("purchase", quantity=-1.0), "negative_number"),
    Case("purchase", "negative_line", order(items=[{"product_id": "p-1", "quantity": -0.5}]), "negative_number"),
    Case("purchase", "line_without_product", order(items=[{"quantity": 1.0}]), "missing_field"),
    Case("purchase", "1001_items", order(items=[{"product_id": f"p{i}"} for i in range(1001)]), "too_many_items"),
    Case("purchase", "numeric_cancelled", of("purchase", cancelled=1), "wrong_type"),
    Case("session", "negative_position", of("session", items=[{"product_id": "p-1", "position": -1}]),
         "negative_number"),
    Case("session", "empty_device", of("session", device=""), "empty_text"),
    Case("session", "1001_items", of("session", items=[{"product_id": f"p{i}"} for i in range(1001)]),
         "too_many_items"),
    Case("product", "category_text", of("product", category="Food/Snacks"), "wrong_type"),
    Case("product", "category_of_9_levels", of("product", category=["c"] * 9), "category_too_deep"),
    Case("product", "embedding_of_4097", of("product", description_emb=[0.0] * 4097), "embedding_too_long"),
    Case("product", "embedding_nan", of("product", description_emb=[0.5, math.nan]), "not_finite"),
    Case("product", "brand_of_257_characters", of("product", brand="x" * 257), "text_too_long"),
    Case("product", "tombstone_without_key", b"", "missing_key", key=None),
    Case("profile", "date_form", of("profile", signup_date="1.3.2017"), "bad_date"),
    Case("profile", "date_that_never_was", of("profile", signup_date="2017-02-30"), "bad_date"),
    Case("profile", "numeric_age", of("profile", age_bucket=25), "wrong_type"),
    Case("profile", "tombstone_empty_key", b"", "empty_id", key=b"\x00"),
]  # fmt: skip


def encoded(case: Case, encoding: str) -> bytes | None:
    """The bytes of the record's value, without padding."""
    if case.value is None or isinstance(case.value, bytes):
        return case.value
    if encoding == "json":
        value = json.dumps(case.value, ensure_ascii=False).encode()
    else:
        value = msgpack.packb(case.value)
    return value[: len(value) // 2] if case.name == "truncated" else value


def files() -> dict[str, bytes]:
    """Every golden file by name, `manifest.json` included."""
    out: dict[str, bytes] = {}
    entries = []
    for case in VALID + INVALID:
        raw = case.value is None or isinstance(case.value, bytes)
        for encoding in case.encodings[:1] if raw else case.encodings:
            value = encoded(case, encoding)
            name = f"{case.kind}.{case.name}.{'bin' if raw else encoding}"
            if value is not None:
                out[name] = value
            entries.append(_entry(case, encoding, raw, name, value))
    manifest = {"format": 1, "cases": entries}
    out["manifest.json"] = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    return out


def _entry(case: Case, encoding: str, raw: bool, name: str, value: bytes | None) -> dict[str, Any]:
    key = case.key
    if key == b"":
        key = BASES[case.kind]["product_id" if case.kind == "product" else "user_id"].encode()
    elif key == b"\x00":
        key = b""
    headers = {} if raw else {"content-type": ENCODINGS[encoding]}
    entry: dict[str, Any] = {
        "name": name,
        "kind": case.kind,
        "topic": TOPICS[case.kind],
        "file": None if value is None else name,
        "pad_bytes": case.pad_bytes,
        "key": None if key is None else key.decode(),
        "record_timestamp_ms": RECORD_MS,
        "headers": headers | case.headers,
        "outcome": "rejected" if case.reason else "accepted",
    }
    if case.reason:
        return entry | {"reason": case.reason}
    return entry | {"event": case.event or case.value}


def main() -> None:
    """Write every file and remove those that no case names."""
    wanted = files()
    for path in FOLDER.iterdir():
        if path.suffix in (".json", ".msgpack", ".bin") and path.name not in wanted:
            path.unlink()
    for name, data in wanted.items():
        (FOLDER / name).write_bytes(data)
    print(f"{len(wanted)} files in {FOLDER}")


if __name__ == "__main__":
    main()
