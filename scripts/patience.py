"""Train the student of page 06 by every method, at several lengths; store accuracies in data/patience.csv.

    python scripts/patience.py                       what is missing in the file: nothing, usually
    python scripts/patience.py --output trial.csv --seeds 1 --steps 100

Two CPU cores need about half an hour for everything. A run that was stopped goes on with the next row.
"""

from __future__ import annotations

import argparse
import os
from functools import cache
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import rows

from bitlib import checkpoint, zoo
from bitlib.pages import patience

OUTPUT = Path(__file__).parent.parent / "data" / "patience.csv"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", default=zoo.BUNDLED)
    parser.add_argument("--steps", type=int, nargs="*", default=patience.LENGTHS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()

    source = checkpoint.find(options.checkpoint)
    seeds = range(options.seeds)

    @cache
    def prepared(seed):
        given = patience.data(source, seed=seed)
        return given, patience.teacher(source, given, seed)

    def compute(method, steps, seed):
        return patience.METHODS[method](*prepared(seed), steps, seed)

    wanted = [
        (method, steps, seed)
        for steps in sorted(options.steps)
        for seed in seeds
        for method in patience.METHODS
    ]
    rows.complete(options.output, patience.Result, wanted, compute)


if __name__ == "__main__":
    main()
