"""How brokers are reached, read and written; free of any client library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KafkaSettings:
    """How brokers are reached, read and written."""

    bootstrap: str = "127.0.0.1:9092"
    """Comma-separated host:port of one or more brokers."""
    group_id: str = "freshet"
    """The group whose offsets are committed, and by which several workers share partitions."""
    session_timeout_ms: int = 10_000
    """How long a worker that shares partitions may be silent before they go to others."""
    max_poll_interval_ms: int = 300_000
    """How long one turn of a worker may take, reading a snapshot included, before it is taken for dead."""
    request_timeout_ms: int = 10_000
    """How long a question to the broker (topics, watermarks, committed offsets) may take."""
    consume_timeout_ms: float = 2.0
    """How long a poll waits for its records; the floor of latency."""
    fetch_wait_ms: int = 10
    """How long the broker may hold back an answer while it has no records."""
    fetch_queue_backoff_ms: int = 5
    """Pause before fetching on when the client's queue is full; the library's own 1,000 ms would be felt."""
    fetch_queue_kbytes_max: int = 65_536
    """Records fetched ahead of being polled, per partition."""
    reconnect_ms_max: int = 1_000
    """Longest pause between two attempts to reach a broker that is down."""
    recheck_interval_ms: float = 1_000.0
    """After a connection broke: how often offsets are compared with what the broker has, until they agree."""
    recheck_grace_ms: float = 15_000.0
    """How long such a comparison has to disagree before it is believed: a broker that starts knows little at first."""
    close_timeout_ms: int = 5_000
    """How long the consumer may take to finish its commits when it closes."""
    linger_ms: float = 5.0
    """How long the producer waits for a batch to fill."""
    idempotence: bool = True
    """Whether the broker drops the producer's own repetitions and keeps their order."""
    delivery_timeout_ms: int = 120_000
    """How long the producer tries to deliver a record before it reports it as failed."""
    send_queue_records_max: int = 100_000
    send_queue_kbytes_max: int = 262_144
    """Records waiting to be sent; `send` waits while there are more."""
    message_bytes_max: int = 8 * 1024 * 1024
    """Largest record the producer hands to the broker, which has a limit of its own for each topic."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """Further librdkafka properties, such as `security.protocol`; they go before all others."""

    def client(self, properties: Mapping[str, object]) -> dict[str, Any]:
        """The librdkafka properties of a client: those all share, its own, and the user's."""
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": "freshet",
            "reconnect.backoff.max.ms": self.reconnect_ms_max,
            "log_level": 2,  # what its warnings say comes through error_cb as well
            **properties,
            **self.properties,
        }
