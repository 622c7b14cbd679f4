"""`freshet demo`: the whole path on real data, on the embedded servers, ending in one line of JSON.

Every step goes through the same doors that a user has: the worker is a process of its own, recommendations
come from the reader, events go through Kafka. What can be kept between runs (event log, bundle) is.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle, BundleError
from freshet.reader import Reader
from freshet.store.snapshot_settings import SnapshotSettings
from freshet.stream.convert import convert
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind, Purchase
from freshet.stream.live_index import LiveIndex
from freshet.stream.local import LocalSystem
from freshet.stream.modelling import TrainOrder, train_bundle
from freshet.stream.progress import Bars
from freshet.stream.replay import Pace
from freshet.stream.settings import Settings
from freshet.stream.wiring import (
    next_event_ms,
    one_click,
    open_live_index,
    open_producer,
    read_status,
    run_replay,
    run_verify,
)

SPLIT = "2017-12-01"
"""The model is trained, and the worker's history taken, before this date."""
REPLAY_UNTIL = "2017-12-15"
"""The days from the split to this date are replayed through Kafka."""
RATE = 1_000.0
"""Events a second of the replay: an open loop, so that freshness is what a reader would see."""
LIVE_TIMEOUT_S = 120.0
QUIET_TIMEOUT_S = 60.0
SNAPSHOT_TIMEOUT_S = 60.0


def run_demo(console: Console, cache: Path, budget_s: float, keep: bool) -> None:
    """Run the demo; with `keep`, leave everything running until Ctrl-C."""
    began = time.perf_counter()
    with ExitStack() as stack:
        demo = Demo(console, cache, budget_s, stack)
        summary = demo.run()
        summary["seconds"] = round(time.perf_counter() - began, 1)
        _show(console, summary)
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
        sys.stdout.flush()
        if keep:
            demo.wait()


class Demo:
    """The steps of the demo; `stack` ends every process that a step started."""

    def __init__(self, console: Console, cache: Path, budget_s: float, stack: ExitStack) -> None:
        self.console = console
        self.log, self.bundle = cache / "log", cache / "bundle"
        self.work = cache / "run"
        self.budget_s = budget_s
        self.stack = stack
        snapshots = SnapshotSettings(place=str((self.work / "snapshots").resolve()))
        self.system = LocalSystem(self.work, Settings(snapshot=snapshots))

    def run(self) -> dict[str, Any]:
        """Every step in order; returns the figures of the last line."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self._servers()
        self._log()
        card = self._bundle()
        self._step("worker: history before the split from the log, then live")
        self.system.start_worker(self.bundle, self.log, SPLIT)
        status = self.system.wait_live(LIVE_TIMEOUT_S)
        users, products = status["users"], status["products"]
        self.console.print(f"  live with {users} users and {products} products")
        replayed = self._replay()
        moments = self._moments()
        self._kill()
        report = self._verify()
        return {
            "events": replayed["events"],
            "users": users,
            "products": products,
            "events_per_s": replayed["events_per_s"],
            "freshness_ms_p50": replayed["p50"],
            "freshness_ms_p99": replayed["p99"],
            **moments,
            "parity_compared": report.users.compared + report.products.compared,
            "parity_max_abs_error": max(report.users.max_abs_error, report.products.max_abs_error),
            "recall_at_20": _quality(card, "two_tower"),
            "recall_at_20_popularity": _quality(card, "popular_recent"),
        }

    def wait(self) -> None:
        """Say what to try next, and stay until Ctrl-C."""
        where = f"--bootstrap {self.settings.kafka.bootstrap} --redis {self.settings.redis.url}"
        self.console.print("\nEverything is running. Try, in another terminal:", highlight=False)
        for command in ("status", "recommend 900", "click 900 1095275", "similar 1095275", "verify"):
            options = f"--redis {self.settings.redis.url}" if command == "status" else where
            self.console.print(f"  .venv/bin/freshet {command} {options}", highlight=False, soft_wrap=True)
        self.console.print("Ctrl-C ends it all.")
        signal.pause()

    # --- steps ----------------------------------------------------------------------------------

    def _servers(self) -> None:
        self._step("embedded broker and Redis")
        self.stack.enter_context(self.system)
        self.settings = self.system.settings
        self.console.print(
            f"  Kafka at {self.settings.kafka.bootstrap}, Redis at {self.settings.redis.url_shown}", highlight=False
        )

    def _log(self) -> None:
        if (self.log / "log.json").exists():
            self._step(f"event log: kept from an earlier run ({self.log})")
            return
        self._step("event log from completejourney: a grocery chain's year 2017")
        self._compile_meanwhile()
        with Bars(self.console) as bars:
            convert("completejourney", None, self.log, bars.counts("convert"), overwrite=True)
        self.console.print(f"  {EventLog(self.log).counts}", highlight=False)

    def _compile_meanwhile(self) -> None:
        """The first run on a machine compiles the loops of training and serving; a log is made on one core."""
        compiling = subprocess.Popen([sys.executable, "-m", "freshet.stream.warming"], stdin=subprocess.DEVNULL)

        def end() -> None:
            compiling.terminate()
            compiling.wait()

        self.stack.callback(end)

    def _bundle(self) -> dict[str, Any]:
        try:
            kept = Bundle.load(self.bundle)
        except BundleError:
            kept = None
        if kept is not None and kept.kind == "trained":
            self._step(f"bundle: {kept.model_version}, kept from an earlier run")
            return dict(kept.card)
        self._step(f"training on the time before {SPLIT} ({self.budget_s:.0f} s)")
        with Bars(self.console) as bars:
            card = train_bundle(TrainOrder(self.log, self.bundle, SPLIT, budget_s=self.budget_s), bars)
        return dict(card["card"])

    def _replay(self) -> dict[str, Any]:
        self._step(f"replay of {SPLIT} to {REPLAY_UNTIL} through Kafka at {RATE:.0f} events/s")
        with Bars(self.console) as bars:
            done = run_replay(self.settings, self.log, Pace(rate=RATE), SPLIT, REPLAY_UNTIL, bars, lambda: False)
        status = self.system.wait_quiet(QUIET_TIMEOUT_S)
        fresh = status["freshness_ms"]
        self.console.print(
            f"  {done.events} events in {done.seconds:.1f} s; in Redis after p50 {fresh['p50']:.1f} ms, "
            f"p99 {fresh['p99']:.1f} ms",
            highlight=False,
        )
        return {
            "events": done.events,
            "events_per_s": round(done.events / done.seconds, 1),
            "p50": fresh["p50"],
            "p99": fresh["p99"],
        }

    def _moments(self) -> dict[str, float]:
        """The moments that a reader sees, by one reader that follows the changelog of products."""
        with open_live_index(self.settings) as index, Reader(self.settings.redis, index) as reader:
            return {"click_ms": self._click(reader), "cold_product_ms": self._cold_product(reader, index)}

    def _click(self, reader: Reader) -> float:
        self._step("one click")
        user = self._some_user()
        before = reader.recommend(user, 5).items
        product = before[3][0]
        result = one_click(self.settings, user, product)
        after = reader.recommend(user, 5).items
        self.console.print(f"  {user} before the view of {product}: {[i[0] for i in before]}", highlight=False)
        self.console.print(f"  {user} after it:  {[i[0] for i in after]}", highlight=False)
        self.console.print(f"  {result['click_ms']:.1f} ms in between", highlight=False)
        return round(float(result["click_ms"]), 2)

    def _some_user(self) -> str:
        first = next(EventLog(self.log).stream([Kind.PURCHASE]), None)
        if not isinstance(first, Purchase):
            raise FreshetError(f"{self.log} names no user")
        return first.user_id

    def _cold_product(self, reader: Reader, live: LiveIndex) -> float:
        self._step("a product nobody has seen")
        status = read_status(self.settings)
        like = self._some_product()
        with open_producer(self.settings) as producer:
            start = time.perf_counter()
            producer.product(
                "demo-new-product", category=like.category, brand=like.brand, description=like.description,
                timestamp=next_event_ms(status, int(time.time() * 1e3)),
            )  # fmt: skip
            producer.flush(10.0)
            index, _ = live.pair()
            while not index.get(["demo-new-product"])[1][0]:
                time.sleep(0.0005)
                if time.perf_counter() - start > 30:
                    raise FreshetError("the new product did not reach the index within 30 s")
        taken = (time.perf_counter() - start) * 1e3
        vector = index.get(["demo-new-product"])[0]
        near = [i for i in index.search(vector, 4).ids[0] if i != "demo-new-product"][:3]
        similar = [name for name, _ in reader.similar("demo-new-product", 3)]
        self.console.print(
            f"  demo-new-product: {' / '.join(like.category or ())}, {like.description}", highlight=False
        )
        self.console.print(
            f"  found by search after {taken:.1f} ms; nearest {near}; similar {similar}", highlight=False
        )
        return round(taken, 2)

    def _some_product(self) -> Any:
        for event in EventLog(self.log).stream():
            if getattr(event, "category", None) and getattr(event, "description", None):
                return event
        raise FreshetError(f"{self.log} has no product with a category and a description")

    def _kill(self) -> None:
        self._step("a worker killed (SIGKILL) and restarted from its snapshot: nothing may be lost")
        self.system.wait_snapshot(SNAPSHOT_TIMEOUT_S)
        self.system.kill_worker()
        began = time.perf_counter()
        self.system.start_worker(self.bundle)
        self.system.wait_live(LIVE_TIMEOUT_S)
        self.console.print(f"  live again after {time.perf_counter() - began:.1f} s", highlight=False)

    def _verify(self) -> Any:
        self._step("verify: every embedding against the plain PyTorch Geometric layers")
        with Bars(self.console) as bars:
            report = run_verify(self.settings, None, None, None, QUIET_TIMEOUT_S, bars)
        for name, part in (("users", report.users), ("products", report.products)):
            self.console.print(
                f"  {part.compared} {name}, largest difference {part.max_abs_error:.1e}", highlight=False
            )
        if not report.passed:
            raise FreshetError(f"verify failed: {report}")
        return report

    def _step(self, text: str) -> None:
        self.console.print(f"[bold]{text}[/]", highlight=False)


def _quality(card: dict[str, Any], system: str) -> float:
    """Recall@20 of products new to the user, in the week after the one that training was stopped by."""
    return round(float(card["windows"]["test"]["systems"][system]["novel"]["recall@20"]), 4)


def _show(console: Console, summary: dict[str, Any]) -> None:
    table = Table(title="freshet demo", show_header=False)
    for name, value in summary.items():
        table.add_row(name, f"{value}")
    console.print(table)
