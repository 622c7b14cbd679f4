"""One of the processes of `test_checkpoint.py`: trains with its peers and writes what it ended with."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from freshet.model.config import DAY_MS
from freshet.model.peers import joined
from freshet.model.train import train
from freshet.store.history import History
from tests.unit.test_train import FEATURES, SMALL, shop


def main(folder: Path) -> None:
    """Train, and write weights and losses."""
    with joined() as peers:
        settings = replace(SMALL, epochs=4, start="random", start_share=0.0, learning_rate=3e-3)
        made = train(History.of([shop()]), settings, features=FEATURES, split_ms=66 * DAY_MS, peers=peers)
    losses = [row["loss"] for row in made.card["training"]["trace"] if "loss" in row]
    np.savez(folder / f"{peers.rank}.npz", losses=losses, **made.weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
