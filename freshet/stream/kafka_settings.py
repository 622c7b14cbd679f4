"""How brokers are reached, read and written; free of any client library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freshet.store.credentials import check_files, read_secret


@dataclass(frozen=True)
class KafkaSettings:
    """How brokers are reached, read and written."""

    bootstrap: str = "127.0.0.1:9092"
    """Comma-separated host:port of one or more brokers."""
    security_protocol: str | None = None
    """SSL, SASL_SSL or SASL_PLAINTEXT; None for PLAINTEXT."""
    sasl_mechanism: str = "PLAIN"
    """PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; read where there is a `sasl_username`."""
    sasl_username: str | None = None
    """Who we are, where the protocol is SASL_..."""
    sasl_password: str | None = field(default=None, repr=False)
    """The password of `sasl_username`."""
    sasl_password_file: str | None = None
    """A file whose first line is the password, in place of `sasl_password`."""
    ssl_ca_file: str | None = None
    """The certificates (PEM) that a broker's has to come from; None for those that the system trusts."""
    ssl_certificate_file: str | None = None
    """The client's certificate (PEM), where the broker asks for one."""
    ssl_key_file: str | None = None
    """The key of the client's certificate (PEM)."""
    ssl_key_password: str | None = field(default=None, repr=False)
    """What the key is encrypted with."""
    group_id: str = "freshet"
    """The group whose offsets are committed, and by which several workers share partitions."""
    session_timeout_ms: int = 10_000
    """How long a worker that shares partitions may be silent before they go to others."""
    max_poll_interval_ms: int = 300_000
    """How long one turn of a worker may take, reading a snapshot included, before it is taken for dead."""
    name_losses_max: int = 3
    """How often within `name_loss_window_ms` the group may give a worker's name to another before it gives up."""
    name_loss_window_ms: float = 120_000.0
    """For how long the loss of a name counts: two workers of one name take it at every other heartbeat."""
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
    metadata_refresh_ms: int = 30_000
    """How often a client asks who leads what; the library's own 5 minutes are long for one that was told wrong."""
    recheck_interval_ms: float = 1_000.0
    """After a connection broke: how often offsets are compared with what the broker has, until they agree."""
    recheck_grace_ms: float = 60_000.0
    """How long a broker has to say that topics or records are gone before it is believed: one that starts knows little
    at first, and of three on two cores the last one took over 15 s."""
    stall_check_interval_ms: float = 30_000.0
    """How often another client is asked whether there is more of partitions than what has come."""
    stall_after_ms: float = 5_000.0
    """How long after such an answer a partition may stand still before another client reads it."""
    close_timeout_ms: int = 5_000
    """How long the consumer may take to finish its commits when it closes."""
    linger_ms: float = 5.0
    """How long the producer waits for a batch to fill."""
    idempotence: bool = True
    """Whether the broker drops the producer's own repetitions and keeps their order."""
    delivery_timeout_ms: int = 120_000
    """How long the producer tries to deliver a record before it reports it as failed, when the attempt that has begun
    is over."""
    delivery_attempt_ms: int = 30_000
    """How long one client of the producer may try before a new one takes over what waits."""
    send_queue_records_max: int = 100_000
    send_queue_kbytes_max: int = 262_144
    """Records waiting to be sent; `send` waits while there are more."""
    message_bytes_max: int = 8 * 1024 * 1024
    """Largest record the producer hands to the broker, which has a limit of its own for each topic."""
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further librdkafka properties, such as `sasl.oauthbearer.config`; they go before all others."""

    def client(self, properties: Mapping[str, object]) -> dict[str, Any]:
        """The librdkafka properties of a client: those all share, its own, and the user's.

        Raises FreshetError for a file that is not there.
        """
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": "freshet",
            "reconnect.backoff.max.ms": self.reconnect_ms_max,
            "topic.metadata.refresh.interval.ms": self.metadata_refresh_ms,
            "log_level": 2,  # what its warnings say comes through error_cb as well
            **self._security(),
            **properties,
            **self.properties,
        }

    def _security(self) -> dict[str, str]:
        check_files(
            ssl_ca_file=self.ssl_ca_file, ssl_certificate_file=self.ssl_certificate_file, ssl_key_file=self.ssl_key_file
        )
        found = {
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism if self.sasl_username else None,
            "sasl.username": self.sasl_username,
            "sasl.password": read_secret(
                self.sasl_password, self.sasl_password_file, "FRESHET_KAFKA_SASL_PASSWORD_FILE"
            ),
            "ssl.ca.location": self.ssl_ca_file,
            "ssl.certificate.location": self.ssl_certificate_file,
            "ssl.key.location": self.ssl_key_file,
            "ssl.key.password": self.ssl_key_password,
        }
        return {name: value for name, value in found.items() if value is not None}

    def __post_init__(self) -> None:
        protocol = self.properties.get("security.protocol", self.security_protocol) or "PLAINTEXT"
        if self.sasl_username and not protocol.upper().startswith("SASL"):
            raise ValueError(f"sasl_username is given, but security_protocol is {protocol}: make it SASL_SSL")
        if self.ssl_ca_file and "SSL" not in protocol.upper():
            raise ValueError(f"ssl_ca_file is given, but security_protocol is {protocol}: make it SSL or SASL_SSL")
        if self.sasl_password is not None and self.sasl_password_file is not None:
            raise ValueError("sasl_password and sasl_password_file are both given: leave one of them out")
