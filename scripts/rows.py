"""A CSV file of accuracies that take long to compute, completed row by row."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bitlib.files.writing import replacing
from bitlib.pages.vtab import read_rows


def complete(path: Path, kind: Any, wanted: Iterable[tuple], compute: Callable[..., float]) -> None:
    """Compute the rows that a CSV file lacks. Each is written as soon as it is known: a stopped run goes on.

    Args:
        path, kind: as of `bitlib.pages.vtab.read_rows`; the file is made if it is not there.
        wanted: the fields before `accuracy`, of every row that there should be.
        compute: takes these fields, and returns the accuracy in [0, 1].
    """
    rows = read_rows(path, kind) if path.is_file() else []
    known = {row[:-2] for row in rows}
    for fields in tqdm([fields for fields in wanted if fields not in known], unit="row", disable=None):
        rows.append(kind(*fields, round(compute(*fields), 4), str(datetime.date.today())))
        print(*rows[-1], flush=True)
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([kind._fields, *sorted(rows)])
