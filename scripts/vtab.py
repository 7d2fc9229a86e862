"""Learn every task of the small VTAB by every method, and store the accuracies in data/small_vtab.csv.

    python scripts/vtab.py                       what is missing in the file: nothing, usually
    python scripts/vtab.py --output trial.csv --tasks mnist counting --seeds 1

Two CPU cores need about half an hour for everything. Each row is written when it is known; a run that was
stopped goes on with the next one.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import rows

from bitlib import checkpoint, zoo
from bitlib.datasets import tasks
from bitlib.pages import vtab

OUTPUT = Path(__file__).parent.parent / "data" / "small_vtab.csv"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", default=zoo.BUNDLED)
    parser.add_argument("--tasks", nargs="*", default=list(tasks.TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()

    source = checkpoint.find(options.checkpoint)
    wanted = [
        (task, method, seed)
        for seed in range(options.seeds)
        for task in options.tasks
        for method in (*vtab.METHODS, *vtab.MADE_ON.get(task, ()))
    ]

    def compute(task, method, seed):
        keras.utils.clear_session()
        return vtab.compute(source, task, method, seed)

    rows.complete(options.output, vtab.Result, wanted, compute)


if __name__ == "__main__":
    main()
