"""A member of a real group whose name is given to another: it joins again, or gives up where the other stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from freshet.stream.embedded import free_port
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_errors import NameTaken
from freshet.stream.kafka_group import GroupMember
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.topics import TopicSpec
from tests.integration.apache_kafka import ApacheKafka

pytestmark = pytest.mark.integration

PARTITIONS = 4
ALL = list(range(PARTITIONS))


class Heard:
    """What a member has been told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[int]]] = []
        self.owned: list[int] = []

    def gained(self, partitions: Sequence[int]) -> None:
        self.told.append(("gained", sorted(partitions)))
        self.owned = sorted([*self.owned, *partitions])

    def revoked(self, partitions: Sequence[int]) -> None:
        self.told.append(("revoked", sorted(partitions)))
        self.owned = [p for p in self.owned if p not in partitions]

    def lost(self, partitions: Sequence[int]) -> None:
        self.told.append(("lost", sorted(partitions)))
        self.owned = [p for p in self.owned if p not in partitions]


class Group:
    """Members of one group, all named `w`."""

    def __init__(self, bootstrap: str, group_id: str, topic: str) -> None:
        self.settings = KafkaSettings(bootstrap=bootstrap, group_id=group_id, session_timeout_ms=6_000)
        self.topic = topic
        self.offsets = PartitionConsumer(self.settings)
        self.members: list[GroupMember] = []

    def join(self, name_losses_max: int = 3, **changes: Any) -> GroupMember:
        """One more, which may lose its name so many times."""
        settings = replace(self.settings, name_losses_max=name_losses_max, **changes)
        self.members.append(GroupMember(settings, self.topic, self.offsets, "w"))
        return self.members[-1]

    def close(self) -> None:
        for member in self.members:
            member.close()
        self.offsets.close()


@pytest.fixture
def group(apache_kafka: ApacheKafka, fresh_name: Callable[[str], str]) -> Iterator[Group]:
    made = Group(apache_kafka.bootstrap, fresh_name("group"), fresh_name("view"))
    TopicAdmin(made.settings).create([TopicSpec(made.topic, PARTITIONS, 1, {})])
    yield made
    made.close()


def poll_until(until: Callable[[], bool], *members: tuple[GroupMember, Heard]) -> None:
    end = time.monotonic() + 60.0
    while not until():
        assert time.monotonic() < end, [heard.told for _, heard in members]
        for member, heard in members:
            member.poll(heard)
        time.sleep(0.01)


def test_a_member_whose_name_was_given_away_joins_again(group: Group) -> None:
    """The other one is gone by then: as when a broker let this one in anew and was lost before it could say so."""
    member, heard = group.join(), Heard()
    poll_until(lambda: heard.owned == ALL, (member, heard))
    other, its = group.join(), Heard()
    poll_until(lambda: its.owned == ALL, (other, its))
    other.close()
    poll_until(lambda: len(heard.told) == 3, (member, heard))
    assert heard.told == [("gained", ALL), ("lost", ALL), ("gained", ALL)]
    member.commit({(group.topic, 0): 7})
    poll_until(lambda: member.committed([(group.topic, 0)]) == {(group.topic, 0): 7}, (member, heard))
    assert member.commit_failures == 0


def test_of_two_members_of_one_name_one_gives_up_and_one_stays(group: Group) -> None:
    first, heard = group.join(2), Heard()
    poll_until(lambda: heard.owned == ALL, (first, heard))
    second, its = group.join(2), Heard()
    members = {"first": (first, heard), "second": (second, its)}
    gave_up = ""
    end = time.monotonic() + 120.0
    while not gave_up:
        assert time.monotonic() < end, (heard.told, its.told)
        for name, (member, told) in members.items():
            try:
                member.poll(told)
            except NameTaken as error:
                assert "two names" in str(error)
                gave_up = name
                break
        time.sleep(0.01)
    assert gave_up == "first"
    member, told = members["second"]
    poll_until(lambda: told.owned == ALL, (member, told))


def test_a_member_that_finds_no_broker_any_more_joins_again(group: Group) -> None:
    """As when all brokers were away and the client forgot where they were; here it never knew."""
    nobody = f"127.0.0.1:{free_port()}"
    member, heard = group.join(bootstrap=nobody, stall_check_interval_ms=500.0, request_timeout_ms=1_000), Heard()
    member.settings = replace(group.settings, request_timeout_ms=1_000)
    poll_until(lambda: heard.owned == ALL, (member, heard))
    assert heard.told == [("gained", ALL)]
