# ruff: noqa: E501  (texts of the code as they stand)
"""Does the simulator catch anything? Break the system on purpose, in a copy: `python -m tools.mutants`, `make mutants`.

A mutant replaces one exact text in one file. Where that text is not there any more, or nothing notices the mutant,
this fails. `docs/reliability.md` shows the table that `--table` prints.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
COPIED = ("freshet", "tests", "tools", "pyproject.toml", "constraints.txt")
SEEDS = 400
"""Seeds within which a mutant has to be caught, or else by a schedule that found the same before."""


@dataclass(frozen=True)
class Mutant:
    """What is broken: `old` becomes `new` in a file. `test` is what has to notice where the simulator cannot."""

    what: str
    file: str
    old: str
    new: str
    test: str | None = None


MUTANTS = (
    Mutant(
        "reads on from the committed offset, not from the snapshot's", "freshet/stream/reading.py",
        "return {tp: marks[tp][0] if known is None else known.get(tp, 0) for tp in tps}",
        "return {tp: max(marks[tp][0] if known is None else known.get(tp, 0), self.committed.get(tp, 0)) for tp in tps}",
    ),
    Mutant(
        "begins where the broker does when every snapshot is damaged", "freshet/stream/snapshots.py",
        "        if found is None:\n            return {} if known else None",
        "        if found is None:\n            return None",
        "tests/unit/test_worker_recovery.py",
    ),
    Mutant(
        "names a snapshot by the clock alone", "freshet/stream/snapshots.py",
        "created_ms=max([head.created_ms, *(name.created_ms + 1 for name in others)])",
        "created_ms=head.created_ms",
        "tests/unit/test_worker_recovery.py",
    ),
    Mutant(
        "commits before it writes", "freshet/stream/worker.py",
        "        polled = self.reading.poll(self.settings.poll_records_max)\n",
        "        polled = self.reading.poll(self.settings.poll_records_max)\n        self._commit_if_delivered()\n",
    ),
    Mutant(
        "commits while values are on their way", "freshet/stream/worker.py",
        "            self.sink.settle()  # which may send the changelog of users\n", "            pass\n",
    ),
    Mutant(
        "deletes who is on the way", "freshet/stream/sink.py",
        "        self.settle()  # a value on its way is older than its deletion, and would count as refused after it\n", "",
        "tests/unit/test_updater.py",
    ),
    Mutant(
        "a scope is whole while its last values are on their way", "freshet/stream/completeness.py",
        "        self.sink.settle()\n        if self._sentinel(scope)", "        if self._sentinel(scope)",
    ),
    Mutant(
        "a refused value takes a partition that was gained anew", "freshet/stream/sink.py",
        "if fence is not None and fence == fences.get(partition):", "if fence is not None:",
        "tests/unit/test_updater.py",
    ),
    Mutant(
        "commits before dead letters are delivered", "freshet/stream/worker.py",
        "        if not len(self.producer):\n            self._commit_now(offsets)",
        "        if True:\n            self._commit_now(offsets)",
    ),
    Mutant(
        "the store takes any value, whatever its sequence number", "freshet/store/memory_store.py",
        "            if new > held:\n                self._values[model_version, user] = value",
        "            if True:\n                self._values[model_version, user] = value",
        "tests/contract/test_embedding_store.py",
    ),
    Mutant(
        "the script in Redis takes any value, whatever its sequence number", "freshet/store/redis_store.py",
        "  if held < new or (held > new and not string.find(held, '{_SEQ_IN_LUA}')) then\n    if ttl",
        "  if true then\n    if ttl",
        "tests/contract/test_embedding_store.py",
    ),
    Mutant(
        "every worker has the same token", "freshet/stream/worker.py",
        "self.gaining[scope] = Gained(fence, self.reading.ends(tps))",
        "self.gaining[scope] = Gained(1, self.reading.ends(tps))",
    ),
    Mutant(
        "nobody looks whether the store has lost its data", "freshet/stream/completeness.py",
        "        self.sink.interrupted = False\n", "        self.sink.interrupted = False\n        return\n",
    ),
    Mutant(
        "a store that went back is not searched for the forgotten", "freshet/stream/completeness.py",
        "            self.rewrites.compare(self.sink.held_users())\n\n    def rewrite_once", "            pass\n\n    def rewrite_once",
    ),
    Mutant(
        "what is served later hides from the rest that the store was lost", "freshet/stream/completeness.py",
        "for scope in self._in_turn(self.serves) if changed else fences:", "for scope in fences:",
        "tests/unit/test_worker_recovery.py",
    ),
    Mutant(
        "goes on with a token that the store has forgotten", "freshet/stream/completeness.py",
        "        if last > held or (last == held and not changed):\n", "        if True:\n",
        "tests/unit/test_worker_recovery.py",
    ),
    Mutant(
        "takes a new token over another worker's", "freshet/stream/completeness.py",
        "        if last > held or (last == held and not changed):\n", "        if last == held and not changed:\n",
        "tests/unit/test_worker_recovery.py",
    ),
    Mutant(
        "a sentinel that is refused means nothing", "freshet/stream/completeness.py",
        "        if not taken and fence is not None:", "        if False:",
    ),
    Mutant(
        "items are whole though readers have not been told all of them", "freshet/stream/worker.py",
        "            if not self._flush():\n                return False\n", "            self._flush()\n",
    ),
    Mutant(
        "a delivery that failed is noticed only with the next commit", "freshet/stream/worker.py",
        "        self._check_deliveries()\n        offsets = self._uncommitted()", "        offsets = self._uncommitted()",
    ),
    Mutant(
        "readers are pointed to a version before all of it is there", "freshet/stream/completeness.py",
        "        if all(scope in self.whole or self._is_whole(scope) for scope in every):", "        if True:",
    ),
    Mutant(
        "products that were never sent count as whole after a loss", "freshet/stream/completeness.py",
        "delivered = is_items(scope) and scope in self.whole", "delivered = is_items(scope)",
        "tests/unit/test_worker_recovery.py",
    ),
    Mutant(
        "a shard of the products writes those of others", "freshet/stream/updater.py",
        "return products if self.graph.keeps is None else products[self.graph.keeps(products)]", "return products",
        "tests/simulation/test_simulation.py::test_every_promise_holds_where_products_are_cut_into_shards",
    ),
    Mutant(
        "a shard does not wait for the first one", "freshet/stream/sharding.py",
        "return self._shard.is_first or self._first == self._shard.first", "return True",
        "tests/unit/test_sharding.py",
    ),
    Mutant(
        "a shard of an older cut goes on", "freshet/stream/sharding.py",
        "            raise CutAnew(self._shard.scope, self._first)", "            pass",
        "tests/unit/test_sharding.py",
    ),
    Mutant(
        "a shard goes on with the token of when it began to wait", "freshet/stream/worker.py",
        "        self.sink.fence = self._take_token(scope, floor)\n", "",
        "tests/unit/test_sharding.py",
    ),
    Mutant(
        "after a loss a shard writes before the first one says what is served", "freshet/stream/worker.py",
        "return not is_items(scope) or self.cut.check()", "return True",
        "tests/unit/test_sharding.py",
    ),
    Mutant(
        "what a former cut left counts", "freshet/stream/completeness.py",
        "        if before is None or shards_in(before.scope) == shards:\n            return", "        return",
        "tests/unit/test_sharding.py",
    ),
    Mutant(
        "a shard keeps what a snapshot of another cut holds", "freshet/store/merge.py",
        "            kept = self.graph.keeps(rows)", "            pass",
        "tests/unit/test_sharding.py",
    ),
    Mutant(
        "is served before it has caught up", "freshet/stream/worker.py",
        "ready = [s for s, g in self.gaining.items() if all(positions[tp] >= end for tp, end in g.goal.items())]",
        "ready = list(self.gaining)",
    ),
    Mutant(
        "listing the store's users gives up when the store goes away", "freshet/stream/sink.py",
        "        while (name := self.insist(following)) is not None:", "        while (name := following()) is not None:",
    ),
    Mutant(
        "a snapshot is written under its own name", "freshet/store/snapshot_places.py",
        "        unfinished = self.folder / (_checked(name) + UNFINISHED)", "        unfinished = self.folder / _checked(name)",
    ),
    Mutant(
        "a snapshot is renamed before it is synced", "freshet/store/snapshot_places.py",
        "                os.fsync(file.fileno())\n                os.replace", "                os.replace",
    ),
    Mutant(
        "a snapshot's offsets are those of its end", "freshet/stream/snapshots.py",
        "            self._copy(running)\n",
        "            self._copy(running)\n            running.head.positions.update(scopes[running.head.scope])\n",
    ),
    Mutant(
        "a snapshot is put in place before its offsets are committed", "freshet/stream/snapshots.py",
        "all(committed.get(tp, -1) >= at for tp, at in running.head.positions.items())", "True",
        "tests/unit/test_worker_recovery.py",
    ),
    Mutant(
        "a snapshot drops the hashes of the forgotten", "freshet/store/snapshot.py",
        "    yield from _forgotten_hashes(graph, entries_max)\n", "",
    ),
    Mutant(
        "a snapshot drops until when users who are back were forgotten", "freshet/store/snapshot.py",
        "        if (until != NEVER_MS).any():", "        if False:",
    ),
    Mutant(
        "a list keeps what arrived last, not what happened last", "freshet/store/list_kernels.py",
        "            if time[s] < t or (time[s] == t and key[s] < k):", "            if key[s] != k:",
    ),
    Mutant(
        "an event that is applied twice is there twice", "freshet/store/list_kernels.py",
        "            if time[s] == t and key[s] == k:\n                same = s\n                break\n            pos -= 1",
        "            if time[s] == t and key[s] == k:\n                break\n            pos -= 1",
    ),
    Mutant(
        "a forgotten user's late events count", "freshet/store/graph.py",
        "        gone = time <= self.forgotten_until[users]", "        gone = time < 0 * self.forgotten_until[users]",
    ),
    Mutant(
        "a withdrawal in the changelog counts whoever sent it", "freshet/stream/follower.py",
        "            if seq >= held.seq.get(name, \"\"):", "            if True:",
        "tests/unit/test_follower.py",
    ),
    Mutant(
        "old snapshots that cannot be deleted end the worker", "freshet/stream/snapshots.py",
        "        except OSError as e:\n            self.error = f\"older snapshots of", "        except ZeroDivisionError as e:\n            self.error = f\"older snapshots of",
    ),
    Mutant(
        "a worker that has lost a partition goes on writing it", "freshet/stream/worker.py",
        "        for p in partitions:\n            scope = users_scope(p)\n            self._drop(scope)\n            if not self.settings.follow:",
        "        for p in partitions:\n            scope = users_scope(p)\n            if not self.settings.follow:",
    ),
    Mutant(
        "a standby does not go back to what its predecessor had committed", "freshet/stream/reading.py",
        "min(self.positions[tp], max(marks[tp][0], committed.get(tp, marks[tp][0])))", "self.positions[tp]",
    ),
    Mutant(
        "a worker serves a partition before it stands where its predecessor's writes ended", "freshet/stream/worker.py",
        "self.gaining[scope] = Gained(fence, self.reading.ends(tps))",
        "self.gaining[scope] = Gained(fence, {tp: self.reading.positions[tp] for tp in tps})",
    ),
    Mutant(
        "a gap in the topics is jumped over", "freshet/stream/reading.py",
        "return {tp: marks[tp][0] if known is None else known.get(tp, 0) for tp in tps}",
        "return {tp: max((known or {}).get(tp, 0), marks[tp][0]) for tp in tps}",
        "tests/simulation/test_simulation.py::test_a_gap_is_refused_and_never_jumped_over",
    ),
)  # fmt: skip


def mutated(mutant: Mutant, folder: Path) -> None:
    """Copy the tree into `folder` and break it. Raises ValueError where the text is not there exactly once."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".cache", "*.egg-info"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    path = folder / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.what!r}: {mutant.file} has its text {text.count(mutant.old)} times, not once")
    path.write_text(text.replace(mutant.old, mutant.new))


def caught(mutant: Mutant, jobs: int) -> tuple[str, str] | None:
    """What noticed a mutant, and what it said; None where nothing did."""
    with tempfile.TemporaryDirectory(prefix="freshet-mutant-") as name:
        folder = Path(name)
        mutated(mutant, folder)
        env = {**os.environ, "PYTHONPATH": str(folder)}
        if mutant.test is not None:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test]
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
            failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
            return (f"`{mutant.test}`", failed[0].partition("::")[2]) if done.returncode == 1 and failed else None
        for asked in (["--seeds", str(SEEDS)], ["--regressions"]):
            options = [*asked, "--jobs", str(jobs), "--first-failure", "--json"]
            command = [sys.executable, "-m", "tests.simulation", *options]
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
            if done.returncode not in (0, 1) or not done.stdout:
                raise RuntimeError(f"{mutant.what!r}: the simulator did not run:\n{done.stderr[-2000:]}")
            found = msgspec.json.decode(done.stdout.splitlines()[-1])
            if found["failed"]:
                by = f"seed {found['runs']}" if "--seeds" in asked else "a kept schedule"
                return by, found["failed"][0]["violation"]
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every mutant is caught."""
    parser = argparse.ArgumentParser("mutants", description="Break the system on purpose; the simulator has to notice.")
    parser.add_argument("--only", default="", help="those whose description holds this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", action="store_true", help="rows for docs/reliability.md")
    asked = parser.parse_args(arguments)
    missed = []
    for mutant in MUTANTS:
        if asked.only not in mutant.what:
            continue
        try:
            found = caught(mutant, asked.jobs)
        except (ValueError, RuntimeError) as e:  # the others are tried all the same
            print(e, file=sys.stderr, flush=True)
            found = None
        if found is None:
            missed.append(mutant.what)
        seeds, said = found or ("-", "NOT CAUGHT")
        said = said.strip().splitlines()[-1][:150]
        line = f"| {mutant.what} | {seeds} | {said} |" if asked.table else f"{mutant.what}: {seeds}: {said}"
        print(line, flush=True)
    if missed:
        print(f"{len(missed)} not caught: {missed}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
