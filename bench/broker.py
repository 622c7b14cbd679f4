"""What the broker alone adds to freshness: records at an open loop, consumed with the worker's own settings.

    python -m bench.broker --rate 1000 --seconds 20
    python -m tests.integration.apache_kafka python -m bench.broker

No worker runs. Latency is from just before the send to the poll that returns the record, for each eighth of the
run, so that a broker that slows down as its log grows is seen.
"""

from __future__ import annotations

import argparse
import threading
import time
from contextlib import ExitStack

import numpy as np

from bench.report import result, table
from freshet.stream import topics
from freshet.stream.embedded import EmbeddedBroker
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.records import Outgoing
from freshet.stream.worker import partitions_of

PARTS = 8
RECORD_BYTES = 170
USERS = 5_000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--linger-ms", type=float, default=KafkaSettings.linger_ms)
    parser.add_argument("--bootstrap", help="a running Kafka without events in its topics (default: the embedded one)")
    args = parser.parse_args()
    with ExitStack() as stack:
        bootstrap = args.bootstrap or stack.enter_context(EmbeddedBroker()).bootstrap
        kafka, names = KafkaSettings(bootstrap=bootstrap, linger_ms=args.linger_ms), topics.TopicSettings()
        admin = TopicAdmin(kafka)
        topics.create(admin, names)
        partitions = partitions_of(topics.verify_topics(admin, names))
        sent_s, latency_ms = measure(kafka, names.view, partitions, args.rate, args.seconds)
    rows: list[tuple[str, float, float, float]] = []
    for part in range(PARTS):
        start, end = part * args.seconds / PARTS, (part + 1) * args.seconds / PARTS
        inside = latency_ms[(sent_s >= start) & (sent_s < end)]
        p50, p99, most = np.percentile(inside, [50, 99, 100])
        rows.append((f"{start:.1f} to {end:.1f} s", float(p50), float(p99), float(most)))
    table(("", "p50 ms", "p99 ms", "max ms"), rows)
    p50, p99 = np.percentile(latency_ms, [50, 99])
    result(
        {
            "rate": args.rate,
            "linger_ms": args.linger_ms,
            "records": int(latency_ms.shape[0]),
            "broker_ms_p50": round(float(p50), 2),
            "broker_ms_p99": round(float(p99), 2),
            "last_part_over_first_p99": round(rows[-1][2] / rows[0][2], 2),
        }
    )


def measure(
    kafka: KafkaSettings, topic: str, partitions: list[tuple[str, int]], rate: float, seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of every record, when it was sent (seconds since the start) and its latency in milliseconds."""
    consumer = PartitionConsumer(kafka)
    consumer.assign(dict.fromkeys(partitions, 0))
    producer = RecordProducer(kafka)
    producer.connect(10.0)
    count = int(rate * seconds)
    seen: list[tuple[float, float]] = []
    given_up = threading.Event()

    def consume() -> None:
        while len(seen) < count and not given_up.is_set():
            records = consumer.poll(2_000)
            now = time.perf_counter()
            seen.extend((sent, now - sent) for sent in (float(r.value[:24]) for r in records if r.value))

    reading = threading.Thread(target=consume)
    reading.start()
    time.sleep(1.0)  # the first fetches
    start = time.perf_counter()
    for i in range(count):
        while (left := start + i / rate - time.perf_counter()) > 0:
            time.sleep(left)
        value = f"{time.perf_counter():24.9f}".encode().ljust(RECORD_BYTES)
        producer.send(Outgoing(topic, f"u{i % USERS}".encode(), value))
    producer.flush(30.0)
    reading.join(30.0)
    given_up.set()
    reading.join()
    consumer.close()
    producer.close()
    found = np.array(seen)
    return found[:, 0] - start, found[:, 1] * 1e3


if __name__ == "__main__":
    main()
