"""`freshet-sim`: the deterministic simulator of the checkout that this package is installed from (`make test`).

It is part of the tests and does not come with an installed package.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def main() -> int:
    """0 where every promise held; 2 where there is no checkout."""
    if not (CHECKOUT / "tests" / "simulation").is_dir():
        print("freshet-sim is part of a checkout: clone the repository and run `make test` there", file=sys.stderr)
        return 2
    sys.path.insert(0, str(CHECKOUT))
    return int(import_module("tests.simulation.__main__").main())


if __name__ == "__main__":
    sys.exit(main())
