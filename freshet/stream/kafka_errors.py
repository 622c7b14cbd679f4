"""What can go wrong with Kafka that a user has to act on; free of any client library."""

from __future__ import annotations

from freshet.errors import FreshetError


class KafkaError(FreshetError):
    """Kafka refused something; the message carries its reason."""


class KafkaUnavailable(KafkaError):
    """No broker answered in time."""

    def __init__(self, bootstrap: str, reason: str) -> None:
        super().__init__(
            f"no Kafka broker answers at {bootstrap} ({reason}): start one (`freshet broker` runs an embedded one), "
            "or name another with --bootstrap"
        )
        self.bootstrap = bootstrap


class KafkaRefused(KafkaError):
    """A broker refuses us, or we refuse it; waiting does not help."""

    def __init__(self, bootstrap: str, reason: str) -> None:
        super().__init__(
            f"Kafka at {bootstrap} and we cannot agree: {reason}. Check security_protocol, sasl_mechanism, "
            "sasl_username, sasl_password and ssl_ca_file (FRESHET_KAFKA_...; docs/operations.md, Security)"
        )


class NameTaken(KafkaError):
    """The group lets another member act under this one's name."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(
            f"the group {group} gives this worker's name to another member again and again ({reason}): two workers "
            "need two names (--name). Where there is no second one, brokers were lost while this one joined: start it "
            "again"
        )


class UnknownTopic(KafkaError):
    """A topic or partition that is to be read or written does not exist, or exists no more."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} does not exist on the broker: create the topics with `freshet topics create`. If it was there "
            "before, the broker has lost it (the embedded broker forgets everything when it ends)"
        )
        self.name = name


class OffsetGap(KafkaError):
    """Records between where the state stands and what the broker still has are gone: nothing may be skipped."""

    def __init__(self, topic: str, partition: int, asked: int, low: int, high: int) -> None:
        where = f"topic {topic}, partition {partition}: offset {asked} was asked for, but the broker has"
        if asked < low:
            text = (
                f"{where} {low} as the oldest: retention deleted what lies between. Make snapshots from an event log "
                "that reaches it (`freshet backfill LOG`), and keep events longer (event_retention_ms)"
            )
        else:
            text = (
                f"{where} only {low} to {high}: the topic was created anew or the broker lost data. Rebuild the state "
                "from the topics and an event log: remove the snapshots, then `freshet backfill LOG`"
            )
        super().__init__(text)
        self.topic, self.partition, self.asked, self.low, self.high = topic, partition, asked, low, high
