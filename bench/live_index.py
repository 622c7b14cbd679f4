"""An index that follows the changelog of products: how soon it is there, and how soon it has a new product.

    python -m bench.live_index                                                          the embedded broker
    python -m tests.integration.apache_kafka python -m bench.live_index                 Apache Kafka

A new product is timed from before its record is sent to its id being in the index.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack

import numpy as np

import freshet
from bench.report import result, table
from freshet.store.value import Seq, encode_value
from freshet.stream.embedded import EmbeddedBroker
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.records import Outgoing
from freshet.stream.topics import TopicSettings, create

DIM, VERSION = 128, "bench"
GAP_S = 0.02
"""Between two new products."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", help="default: an embedded broker")
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--idle-s", type=float, default=5.0)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        kafka = KafkaSettings(bootstrap=args.bootstrap or stack.enter_context(EmbeddedBroker()).bootstrap)
        topics = TopicSettings()
        create(TopicAdmin(kafka), topics)
        producer = RecordProducer(kafka)

        def send(name: str, step: int) -> None:
            vector = rng.standard_normal(DIM).astype("<f4").tobytes()
            value = encode_value(vector, DIM, VERSION, Seq(1, step), -1, 0, None, [])
            producer.send(Outgoing(topics.embeddings_products, name.encode(), value))

        for i in range(args.products):
            send(f"product-{i}", i)
        producer.flush(60.0)
        start = time.perf_counter()
        live = stack.enter_context(freshet.LiveIndex(kafka.bootstrap))
        there_s = time.perf_counter() - start
        index, _ = live.pair()
        taken = []
        for i in range(args.new):
            start = time.perf_counter()
            send(f"new-{i}", args.products + i)
            while not index.get([f"new-{i}"])[1][0]:
                time.sleep(0.0005)
            taken.append((time.perf_counter() - start) * 1e3)
            time.sleep(GAP_S)
        cpu = time.process_time()
        time.sleep(args.idle_s)
        idle = (time.process_time() - cpu) / args.idle_s
    p50, p99 = np.percentile(taken, [50, 99])
    table(
        ["", ""],
        [[f"{args.products:,} products read, s", there_s], ["a new product found, p50 ms", p50],
         ["p99 ms", p99], ["a core when nothing comes", idle]],
    )  # fmt: skip
    shown = {"products": args.products, "there_s": round(there_s, 2), "new_ms_p50": round(float(p50), 1)}
    result({**shown, "new_ms_p99": round(float(p99), 1), "idle_core": round(idle, 3)})


if __name__ == "__main__":
    main()
