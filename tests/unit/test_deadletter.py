"""A dead letter holds all of the record it came from, or says what it does not hold."""

from __future__ import annotations

import pytest

from freshet.stream.deadletter import (
    Address,
    DeadLetterError,
    DeadLetterLimits,
    Receipt,
    from_deadletter,
    from_receipt,
    replay,
    to_deadletter,
    to_receipt,
)
from freshet.stream.records import Outgoing, Record
from freshet.stream.rejection import Reason, Rejection

WHY = Rejection(Reason.WRONG_TYPE, "timestamp is of type string: send int")
ORIGINAL = Record(
    "freshet.events.view",
    3,
    41,
    1_764_000_000_000,
    b"\xffkey",
    b"\x00\xff{",
    (("content-type", b"application/json"), ("trace", b"\x01\x02"), ("trace", b"again"), ("none", None)),
)


def consumed(out: Outgoing) -> Record:
    return Record(out.topic, 0, 7, 1_800_000_000_000, out.key, out.value, out.headers)


def test_a_dead_letter_carries_the_record_untouched_and_the_reason() -> None:
    out = to_deadletter(ORIGINAL, WHY, "freshet.deadletter")
    assert (out.topic, out.key, out.value, out.timestamp_ms) == (
        "freshet.deadletter",
        b"\xffkey",
        b"\x00\xff{",
        None,
    )
    assert out.headers == (
        ("freshet-reason", b"wrong_type"),
        ("freshet-message", b"timestamp is of type string: send int"),
        ("freshet-topic", b"freshet.events.view"),
        ("freshet-partition", b"3"),
        ("freshet-offset", b"41"),
        ("freshet-timestamp", b"1764000000000"),
        ("orig.content-type", b"application/json"),
        ("orig.trace", b"\x01\x02"),
        ("orig.trace", b"again"),
        ("orig.none", b""),
    )


def test_there_and_back() -> None:
    letter = from_deadletter(consumed(to_deadletter(ORIGINAL, WHY, "d")))
    assert (letter.reason, letter.message) == ("wrong_type", WHY.message)
    assert (letter.topic, letter.partition, letter.offset) == ("freshet.events.view", 3, 41)
    assert (letter.value_bytes, letter.truncated) == (3, ())
    again = replay(letter)
    assert (again.topic, again.key, again.value) == (ORIGINAL.topic, ORIGINAL.key, ORIGINAL.value)
    assert again.timestamp_ms == ORIGINAL.timestamp_ms
    assert again.headers == (
        *((name, value or b"") for name, value in ORIGINAL.headers),
        ("freshet-origin", b"freshet.events.view:3:41"),
        ("freshet-replays", b"1"),
    )


def test_a_replayed_record_that_fails_again_keeps_its_own_headers_apart() -> None:
    again = replay(from_deadletter(consumed(to_deadletter(ORIGINAL, WHY, "d"))))
    twice = to_deadletter(consumed(again), Rejection(Reason.UNDECODABLE, "x"), "d")
    assert dict(twice.headers)["freshet-origin"] == b"freshet.events.view:3:41"
    assert dict(twice.headers)["freshet-replays"] == b"1"
    letter = from_deadletter(consumed(twice))
    assert (letter.origin, letter.replays) == (Address("freshet.events.view", 3, 41), 1)
    assert letter.address == Address("freshet.events.view", 0, 7)
    third = replay(letter)
    assert third.headers == (*again.headers[:-1], ("freshet-replays", b"2"))
    nested = to_deadletter(
        consumed(to_deadletter(ORIGINAL, WHY, "d")), Rejection(Reason.UNDECODABLE, "x"), "d"
    )
    letter = from_deadletter(consumed(nested))
    assert letter.reason == "undecodable" and letter.topic == "d"
    assert from_deadletter(consumed(replay(letter))).reason == "wrong_type"


def test_null_key_null_value_and_no_timestamp_survive() -> None:
    letter = from_deadletter(
        consumed(to_deadletter(Record("t", 0, 0, -1, None, None), Rejection(Reason.EMPTY_VALUE, "x"), "d"))
    )
    again = replay(letter)
    assert again[:3] == ("t", None, None) and again.timestamp_ms is None
    assert letter.timestamp_ms == -1 and letter.value_bytes == 0


def test_what_is_too_large_is_cut_and_cannot_be_replayed() -> None:
    limits = DeadLetterLimits(100, 10, 30)
    big = Record("t", 1, 2, 3, b"k" * 11, b"v" * 500, (("h", b"x" * 20),))
    out = to_deadletter(big, Rejection(Reason.VALUE_TOO_LARGE, "x"), "d", limits)
    sizes = len(out.key or b"") + len(out.value or b"") + len(b"orig.h") + 20
    assert sizes == 100 and out.value == b"v" * 64
    letter = from_deadletter(consumed(out))
    assert letter.truncated == ("key", "value") and letter.value_bytes == 500
    with pytest.raises(DeadLetterError, match=r"t:1:2 cannot be replayed.*key and value"):
        replay(letter)
    loud = from_deadletter(
        consumed(to_deadletter(big._replace(headers=(("h", b"x" * 31),)), WHY, "d", limits))
    )
    assert loud.headers == () and loud.truncated == ("headers", "key", "value")


def test_a_full_value_of_the_default_limit_still_fits_into_a_mebibyte() -> None:
    big = Record("t", 0, 0, 0, b"k" * 70_000, b"v" * (1 << 20), (("h", b"x" * 60_000),))
    out = to_deadletter(big, Rejection(Reason.VALUE_TOO_LARGE, "m" * 400), "d")
    total = len(out.key or b"") + len(out.value or b"") + sum(len(n) + len(v) + 10 for n, v in out.headers)
    assert total < 1_000_000


def test_an_unfit_message_is_made_to_fit() -> None:
    out = to_deadletter(ORIGINAL, Rejection(Reason.UNKNOWN_FIELD, "\ud800"), "d")
    assert from_deadletter(consumed(out)).message == "\\ud800"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ((), "freshet-reason is missing"),
        ((("freshet-reason", b"x"), ("freshet-message", b"x"), ("freshet-topic", b"t")), "freshet-partition"),
        (
            (
                ("freshet-reason", b"x"),
                ("freshet-message", b"x"),
                ("freshet-topic", b"t"),
                ("freshet-partition", b"one"),
            ),
            "cannot be read",
        ),
    ],
)
def test_another_record_is_no_dead_letter(headers: tuple[tuple[str, bytes], ...], words: str) -> None:
    with pytest.raises(DeadLetterError, match=words):
        from_deadletter(Record("d", 0, 9, 0, None, b"", headers))


@pytest.mark.parametrize(
    "headers",
    [
        (("freshet-origin", b"no address"), ("freshet-replays", b"1")),
        (("freshet-origin", b"t:0:1"), ("freshet-replays", b"many")),
        (("freshet-origin", b"t:0:1"),),
        (("freshet-replays", b"1"), ("freshet-origin", None)),
        (("freshet-origin", "t:٣:1".encode()), ("freshet-replays", b"1")),
    ],
)
def test_what_a_producer_put_where_replays_are_counted_is_a_header_like_any_other(
    headers: tuple[tuple[str, bytes | None], ...],
) -> None:
    letter = from_deadletter(consumed(to_deadletter(ORIGINAL._replace(headers=headers), WHY, "d")))
    assert (letter.origin, letter.replays) == (letter.address, 0)
    assert letter.headers == tuple((name, value or b"") for name, value in headers)


def test_the_count_of_replays_survives_headers_that_are_left_out() -> None:
    again = replay(from_deadletter(consumed(to_deadletter(ORIGINAL, WHY, "d"))))
    loud = consumed(again)._replace(headers=(*again.headers, ("h", b"x" * 70_000)))
    letter = from_deadletter(consumed(to_deadletter(loud, WHY, "d")))
    assert (letter.truncated, letter.headers, letter.replays) == (("headers",), (), 1)


def test_a_receipt_says_what_was_sent_again() -> None:
    receipt = Receipt(Address("freshet.events.view", 3, 41), 2, "key was missing \ud800")
    assert from_receipt(consumed(to_receipt(receipt, "d"))) == Receipt(receipt.origin, 2, "key was missing \\ud800")
    assert from_receipt(consumed(to_receipt(Receipt(receipt.origin, 1), "d"))) == Receipt(receipt.origin, 1)
    assert from_receipt(consumed(to_deadletter(ORIGINAL, WHY, "d"))) is None
    with pytest.raises(DeadLetterError):  # so that a reader of letters passes it over
        from_deadletter(consumed(to_receipt(receipt, "d")))


def test_an_address_is_read_as_it_is_written() -> None:
    assert Address.parse(str(Address("a.b-c_d", 3, 4))) == ("a.b-c_d", 3, 4)
    for text in ("", "t", "t:1", "t:1:x", "t:-1:2", "t[1]@2", "a b:1:2", "t:1:2:3", "t:1:2\n"):
        with pytest.raises(DeadLetterError, match="TOPIC:PARTITION:OFFSET"):
            Address.parse(text)
