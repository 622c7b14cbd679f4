"""Settings of a training over several months: each is trained on what was before a month and ranks what came in it.

    python -m bench.origins LOG --cuts 2011-05-01,2011-06-01,2011-07-01,2011-08-01,2011-09-01 \\
        --settings '{}' '{"train": {"runs": 1}}' \\
        '{"train": {"runs": 1, "start": "random", "start_share": 0, "learning_rate": 3e-3}}'

A month is from one of `--cuts` to the next. Settings are what a settings file holds (`docs/training.md`); one month
alone is too noisy to choose by. Recall@20 / MAP@12 of the towers alone, over the whole catalogue.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from bench.ablation import quality
from bench.report import result, table
from freshet.model.settings_file import Chosen, read_settings
from freshet.model.train import train
from freshet.store.history import History
from freshet.stream.eventlog import EventLog
from freshet.stream.modelling import day_ms


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--cuts", required=True)
    parser.add_argument("--settings", nargs="+", default=["{}"])
    args = parser.parse_args()
    log = EventLog(args.log)
    cuts = [cut for text in args.cuts.split(",") if (cut := day_ms(text, "--cuts")) is not None]
    chosen = {text: _read(text) for text in args.settings}
    months = [(History.of(list(log.columns(until_ms=b))), a, b) for a, b in pairwise(cuts)]
    rows, seconds = [], []
    for text, settings in chosen.items():
        start, found = time.perf_counter(), []
        for history, cut_ms, until_ms in months:
            made = train(history, replace(settings.train, validate=False), settings.towers.config(), split_ms=cut_ms)
            found.append(quality(history, made, cut_ms, until_ms))
        seconds.append(time.perf_counter() - start)
        rows.append([text, found])
        print(text, np.round(found, 3).tolist(), flush=True)
    means = {text: np.mean(found, axis=0).tolist() for text, found in rows}
    head = ["settings", "novel recall@20", "MAP@12", "all recall@20", "MAP@12", "seconds, ratio"]
    table(head, [[text, *(f"{v:.4f}" for v in means[text]), f"{s / seconds[0]:.2f}"]
                 for text, s in zip(means, seconds, strict=True)])  # fmt: skip
    result({text: [round(v, 4) for v in mean] for text, mean in means.items()})


def _read(text: str) -> Chosen:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        return read_settings(Path(file.name))


if __name__ == "__main__":
    main()
