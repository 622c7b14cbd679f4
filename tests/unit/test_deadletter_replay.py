"""What is open in the dead-letter topic, and what becomes of letters that are sent again."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from freshet.stream.deadletter import (
    Address,
    DeadLetter,
    DeadLetterError,
    Receipt,
    from_deadletter,
    from_receipt,
    to_deadletter,
    to_receipt,
)
from freshet.stream.deadletter_repair import Repairs
from freshet.stream.deadletter_replay import BATCH_LETTERS, Order, Outcome, send_again
from freshet.stream.deadletter_topic import Choice, Entry, entries_of, find
from freshet.stream.events import Kind
from freshet.stream.kafka_errors import KafkaError, KafkaUnavailable
from freshet.stream.records import Outgoing, Record
from freshet.stream.rejection import Reason, Rejection

T = 1_764_000_000_000
GOOD = b'{"event_id":"v-1","user_id":"u-1","product_id":"p-1","timestamp":%d}' % T


class Topic:
    """A dead-letter topic of one partition, and the topic `view` as far as offsets go."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.now = T
        self.views = itertools.count()

    def take(self, out: Outgoing) -> None:
        self.now += 1
        self.records.append(Record("dead", 0, len(self.records), self.now, out.key, out.value, out.headers))

    def reject(self, value: bytes = GOOD, reason: Reason = Reason.WRONG_TYPE, **changes: object) -> Address:
        made = {"topic": "view", "partition": 0, "offset": next(self.views), "timestamp_ms": T, "key": b"u-1"}
        record = Record(**{**made, "value": value, **changes})  # type: ignore[arg-type]
        self.take(to_deadletter(record, Rejection(reason, "m"), "dead"))
        return Address(record.topic, record.partition, record.offset)

    def reject_again(self, sent: Outgoing) -> None:
        self.reject(sent.value or b"", key=sent.key, headers=sent.headers)

    def letters(self, entries: list[Entry]) -> list[tuple[Entry, DeadLetter]]:
        return [(entry, from_deadletter(self.records[entry.place[1]])) for entry in entries]

    @property
    def entries(self) -> list[Entry]:
        return entries_of(self.records)


class Sender:
    """A producer that writes receipts into the topic; `fails` says what becomes of a record."""

    def __init__(self, topic: Topic, fails: Callable[[Outgoing], str | None] = lambda record: None) -> None:
        self.topic, self.fails = topic, fails
        self.sent: list[Outgoing] = []
        self.waiting: list[Callable[[], None]] = []

    def send(self, record: Outgoing, on_delivery: Callable[[str | None, int | None], None] | None = None) -> None:
        if record.topic == "dead":
            self.topic.take(record)
            return
        self.sent.append(record)
        error = self.fails(record)
        if on_delivery is not None and error != "silence":
            self.waiting.append(lambda: on_delivery(error, None if error else 0))

    def flush(self, timeout_s: float) -> int:
        for tell in self.waiting:
            tell()
        self.waiting.clear()
        return 0


def run(
    topic: Topic, sender: Sender | None = None, entries: list[Entry] | None = None, **order: object
) -> list[Outcome]:
    chosen = [entry for entry in topic.entries if Choice().holds(entry)] if entries is None else entries
    made = Order({"view": Kind.VIEW}, "dead", **order)  # type: ignore[arg-type]
    return list(send_again(topic.letters(chosen), made, sender))


def test_a_letter_sent_again_is_open_no_more_until_it_comes_back() -> None:
    topic = Topic()
    origin, sender = topic.reject(), Sender(topic)
    assert run(topic, sender) == [Outcome(origin, "sent")]
    assert [entry.replayed for entry in topic.entries] == [True]
    assert run(topic, sender) == []
    topic.reject_again(sender.sent[0])
    (entry,) = topic.entries
    assert (entry.origin, entry.replays, entry.replayed) == (origin, 1, False)
    assert entry.address == Address("view", 0, 1)
    assert find(topic.entries, origin) == find(topic.entries, entry.address) == entry


def test_the_topic_does_not_grow_without_end_and_not_in_silence() -> None:
    """Replaying all for ever, with a worker that refuses for ever: four letters, three receipts, one error."""
    topic = Topic()
    topic.reject()
    for _ in range(20):
        sender = Sender(topic)
        outcomes = run(topic, sender)
        for record in sender.sent:
            topic.reject_again(record)
    assert len(topic.records) == 7
    assert [o.outcome for o in outcomes] == ["skipped"]
    assert "came back 3 times" in outcomes[0].why
    (entry,) = topic.entries
    assert entry.replays == 3
    assert [o.outcome for o in run(topic, Sender(topic), named=True)] == ["sent"]


def test_the_state_is_the_same_in_any_order_and_with_any_repetition() -> None:
    topic = Topic()
    topic.reject()
    other = topic.reject(reason=Reason.UNDECODABLE)
    sender = Sender(topic)
    run(topic, sender)
    topic.reject_again(sender.sent[0])
    want = topic.entries
    assert [(entry.replays, entry.replayed) for entry in want] == [(0, True), (1, False)]
    assert want[0].origin == other
    for order in itertools.permutations(topic.records):
        assert entries_of([*order, *order[:2]]) == want


def test_what_is_neither_letter_nor_receipt_is_passed_over() -> None:
    strange = Record("dead", 0, 0, T, None, b"x", (("freshet-reason", b"x"),))
    lonely = to_receipt(Receipt(Address("view", 0, 5), 1), "dead")
    assert entries_of([strange, Record("dead", 0, 1, T, None, b"", lonely.headers)]) == []
    with pytest.raises(DeadLetterError, match="view:0:5"):
        find([], Address("view", 0, 5))


def test_a_choice_is_all_of_its_parts() -> None:
    topic = Topic()
    topic.reject()
    topic.reject(reason=Reason.UNDECODABLE, topic="purchase")
    one, two = topic.entries

    def chosen(choice: Choice) -> list[Entry]:
        return [entry for entry in topic.entries if choice.holds(entry)]

    assert chosen(Choice(reasons=frozenset({"wrong_type"}))) == [one]
    assert chosen(Choice(topics=frozenset({"purchase"}))) == [two]
    assert chosen(Choice(since_ms=two.rejected_ms)) == [two]
    assert chosen(Choice(reasons=frozenset({"wrong_type"}), topics=frozenset({"purchase"}))) == []
    run(topic, Sender(topic), [one])
    assert chosen(Choice()) == [two]
    assert len(chosen(Choice(replayed=True))) == 2


def test_what_is_fixed_is_sent_with_a_note_and_what_is_not_is_skipped_with_the_reason() -> None:
    topic = Topic()
    keyless = topic.reject(key=None)
    broken = topic.reject(b"{")
    cut = topic.reject(b" " * 2_000_000)
    strange = topic.reject(topic="elsewhere")
    sender = Sender(topic)
    outcomes = {o.origin: o for o in run(topic, sender, repairs=Repairs(fix=True))}
    assert outcomes[keyless] == Outcome(keyless, "sent", ("key was missing, now it is user_id 'u-1'",))
    assert "rejected again: undecodable" in outcomes[broken].why
    assert "does not hold the whole value" in outcomes[cut].why
    assert "elsewhere is none of the topics" in outcomes[strange].why
    assert [record.key for record in sender.sent] == [b"u-1"]
    receipts = [found for record in topic.records if (found := from_receipt(record))]
    assert receipts == [Receipt(keyless, 1, "key was missing, now it is user_id 'u-1'")]


def test_unchanged_records_are_sent_without_being_judged() -> None:
    topic = Topic()
    topic.reject(b"{")
    sender = Sender(topic)
    assert [o.outcome for o in run(topic, sender)] == ["sent"]
    assert sender.sent[0].value == b"{"


def test_a_dry_run_sends_nothing() -> None:
    topic = Topic()
    origin = topic.reject(key=None)
    assert run(topic, None, repairs=Repairs(fix=True))[0][:2] == (origin, "would be sent")
    assert len(topic.records) == 1


@pytest.mark.parametrize("answer", ["no leader", "silence"])
def test_what_the_broker_did_not_take_is_open_still(answer: str) -> None:
    topic = Topic()
    first, second = topic.reject(key=b"a"), topic.reject(key=b"b")
    sender = Sender(topic, lambda record: answer if record.key == b"a" else None)
    outcomes = {o.origin: o for o in run(topic, sender)}
    assert (outcomes[first].outcome, outcomes[second].outcome) == ("failed", "sent")
    assert outcomes[first].why == (answer if answer != "silence" else "the broker did not acknowledge it in time")
    assert [entry.replayed for entry in topic.entries] == [False, True]


def test_a_record_that_the_client_refuses_fails_alone_and_an_absent_broker_ends_it() -> None:
    def refuse(record: Outgoing) -> str | None:
        if record.key == b"a":
            raise KafkaError("too large")
        return None

    topic = Topic()
    topic.reject(key=b"a")
    topic.reject(key=b"b")
    assert [o.outcome for o in run(topic, Sender(topic, refuse))] == ["failed", "sent"]

    def gone(record: Outgoing) -> str | None:
        raise KafkaUnavailable("nowhere", "x")

    with pytest.raises(KafkaUnavailable):
        run(topic, Sender(topic, gone))


def test_every_batch_is_acknowledged_before_the_next_one() -> None:
    topic = Topic()
    for _ in range(BATCH_LETTERS + 3):
        topic.reject()
    sender = Sender(topic)
    outcomes = send_again(topic.letters(topic.entries), Order({"view": Kind.VIEW}, "dead"), sender)
    next(outcomes)
    assert len(sender.sent) == BATCH_LETTERS
    assert len(list(outcomes)) == BATCH_LETTERS + 2
    assert sum(entry.replayed for entry in topic.entries) == BATCH_LETTERS + 3
