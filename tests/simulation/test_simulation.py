"""Nothing lost, nothing counted twice: the simulator over many seeds, and over what once broke it."""

from __future__ import annotations

import os

import pytest

from tests.simulation.__main__ import main
from tests.simulation.play import Schedule, play_all, regressions

SEEDS = 1_000
JOBS = min(2, os.cpu_count() or 1)


def test_every_promise_holds_over_a_thousand_seeds() -> None:
    reports = list(play_all([Schedule(seed) for seed in range(SEEDS)], JOBS, shrink_it=False))
    broken = [f"seed {r.seed}: {r.violation}" for r in reports if r.violation]
    assert not broken, "\n".join([*broken, "again: freshet-sim --seeds 1 --first-seed SEED"])
    struck = {what for r in reports for what in r.fired}
    assert {"crash before", "crash after", "Redis goes back", "a second worker", "is taken for dead"} <= struck


@pytest.mark.parametrize(("shards", "seeds"), [(2, 150), (3, 50)])
def test_every_promise_holds_where_products_are_cut_into_shards(shards: int, seeds: int) -> None:
    schedules = [Schedule(20_000 + i, shards=shards) for i in range(seeds)]
    broken = {r.seed: r.violation for r in play_all(schedules, JOBS, shrink_it=False) if r.violation}
    assert not broken, f"{broken}; again: freshet-sim --seeds 1 --shards {shards} --first-seed SEED"


def test_a_gap_is_refused_and_never_jumped_over() -> None:
    gaps = [("any", 60 + seed % 100, "retention leaves a gap", 0) for seed in range(120)]
    reports = list(play_all([Schedule(7000 + i, faults=[gap]) for i, gap in enumerate(gaps)], JOBS, shrink_it=False))
    assert not [(r.seed, r.violation) for r in reports if r.violation]
    assert any(r.gap for r in reports)


def test_what_once_broke_a_promise_does_not_again() -> None:
    kept = regressions()
    assert all(schedule.why for schedule in kept)
    broken = {r.seed: r.violation for r in play_all(kept, JOBS, shrink_it=False) if r.violation}
    assert not broken


def test_a_seed_decides_everything() -> None:
    some = [Schedule(seed) for seed in (3, 11, 23)]
    first, second = ([(r.effects, r.trace) for r in play_all(some, 1)] for _ in range(2))
    assert first == second


def test_the_command_ends_with_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "2", "--jobs", "1", "--json"]) == 0
    assert capsys.readouterr().out.startswith('{"runs":2,"failed":[]')
