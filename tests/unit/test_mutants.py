"""The mutants themselves, which `make mutants` runs: each still has something to break, and the page tells of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_breaks_one_place(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    if mutant.test is not None:
        assert (ROOT / mutant.test.partition("::")[0]).is_file()


def test_the_page_has_the_table_of_mutants() -> None:
    lines = (ROOT / "docs" / "reliability.md").read_text().splitlines()
    start = lines.index("| what is broken | noticed by | what it said |") + 2
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines[start:] if line.startswith("| ")]
    assert rows[: len(MUTANTS)] == [mutant.what for mutant in MUTANTS]
    assert not any("NOT CAUGHT" in line for line in lines)
