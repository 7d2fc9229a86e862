"""Accuracies that a script takes long to compute: a CSV file of dated rows, completed one by one.

A kind of row is a `NamedTuple` of texts and numbers whose last two fields are `accuracy` and `date`; the
fields before say what was computed.
"""

from __future__ import annotations

import csv
import datetime
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from tqdm import tqdm

from bitlib.writing import replacing

Row = TypeVar("Row", bound=tuple)


def read(path: str | os.PathLike, kind: type[Row]) -> list[Row]:
    """The rows of a file.

    Args:
        path: of the file.
        kind: of its rows; their types are those of its annotations.
    """
    types = get_type_hints(kind)
    with Path(path).open(newline="") as file:
        return [kind(*(types[name](row[name]) for name in types)) for row in csv.DictReader(file)]


def complete(
    path: str | os.PathLike, kind: type[Row], wanted: Iterable[tuple], compute: Callable[..., float]
) -> None:
    """Compute the rows that a file lacks. Each is written when it is known: a run that was stopped goes on.

    Args:
        path: of the file; made if it is not there.
        kind: of its rows.
        wanted: the fields before `accuracy`, of every row that there should be.
        compute: takes these fields, and returns the accuracy in [0, 1].
    """
    path = Path(path)
    make: Any = kind
    rows = read(path, kind) if path.is_file() else []
    known = {row[:-2] for row in rows}
    for fields in tqdm([fields for fields in wanted if fields not in known], unit="row", disable=None):
        rows.append(make(*fields, round(compute(*fields), 4), str(datetime.date.today())))
        print(*rows[-1], flush=True)
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([make._fields, *sorted(rows)])
