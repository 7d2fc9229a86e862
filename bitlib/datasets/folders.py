"""People's own pictures as labelled sets: a folder with a subfolder a class, its splits, a table of files."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bitlib import images
from bitlib.files.writing import expanded, sha256
from bitlib.inputs import check_flag, described

Labelled = tuple[list[Path], np.ndarray, list[str]]

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "evaluation": ("eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev", "development"),
}
"""What splits are called; of those to test on, the first that is there is taken."""

COLUMNS = {
    "path": "path paths file files filename filenames filepath image images imagename imagepath imagefile "
    "img imgname imgpath picture pictures photo photos",
    "label": "label labels class classes classname classlabel category target",
    "split": "split subset partition",
}
"""What the columns of a table are called, in any case, with or without blanks and underscores. Of splits, one
whose values are words of `SPLITS` will do."""


_MISSING = ("na", "n/a", "#n/a", "nan", "null")  # as spreadsheets and pandas write them


def folder(path: str | os.PathLike, verify: bool = True) -> Labelled:
    """A folder with one subfolder of pictures a class, as a labelled set; one without any keeps its place.

    Args:
        path: the folder. If all it holds is a folder of its own name, as zip files do, that is taken.
        verify: read every file once, whatever it is called, and leave out those that cannot be read, with one
            warning that says why. Without it, files that are meant as pictures are taken
            (`bitlib.images.is_picture`), and such a one is an error when it is used.

    Returns:
        the pictures' paths, their labels int64 `[N]`, and the class names: those of the subfolders, numbers
        by size, others sorted.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: pictures lie beside the subfolders, which look like splits, or fewer than two have any.

    Warns:
        UserWarning: some files cannot be read, or are in two classes; a class has no pictures; the order of
            the classes is not that of text; or they hold the same subfolders, which may be the classes meant.
    """
    check_flag("verify", verify)
    root, subfolders, files = _opened(path)
    for file in files:
        if images.is_picture(file) or not file.exists():  # the link to a class may be broken
            beside = "beside its subfolders" if subfolders else "and no subfolders"
            raise ValueError(f"path: {root} holds {file.name} {beside}, expected one subfolder a class")
    _refuse_splits(root, subfolders)
    owned = [(file, _name(sub)) for sub in subfolders for file in images.walk(sub)]
    owned = [each for each in owned if verify or images.is_picture(each[0])]
    if not owned:
        raise FileNotFoundError(f"{root}: holds no pictures, expected subfolders of them, one a class")
    if len(subfolders) == 1:
        inner = images.listed(subfolders[0])[0]
        hint = f"; it holds {_some(_name(sub) for sub in inner)}: was {subfolders[0]} meant?" if inner else ""
        raise ValueError(f"path: {root} has one class, {_name(subfolders[0])}; expected at least two{hint}")
    class_names = _ordered(map(_name, subfolders))
    if class_names != sorted(class_names):
        order = f"{_some(class_names)}, which Keras and PyTorch sort as text"
        warnings.warn(f"path: {root}: the classes are in the order of their numbers, {order}", stacklevel=3)
    files, owners = map(list, zip(*owned, strict=True))
    labels = np.array(list(map(class_names.index, owners)), np.int64)
    good = _good(f"path: {root}", files, labels, class_names, verify)
    return [files[i] for i in np.flatnonzero(good)], labels[good], class_names


def parts(path: str | os.PathLike) -> list[Labelled]:
    """The training and the test split of a folder, each as `folder` gives it; of one without, the whole."""
    root, subfolders, _ = _opened(path)
    known = _split_folders(subfolders)
    if not known:
        return [folder(path)]
    if others := [_name(sub) for sub in subfolders if sub not in known.values()]:
        warnings.warn(f"path: {root}: {_some(others)}, beside the splits, left out", stacklevel=4)
    return [folder(known[kind]) for kind in SPLITS if kind in known][:2]


def _name(path: Path) -> str:
    return unicodedata.normalize("NFC", path.name)  # macOS takes accents apart


def _some(names: Iterable) -> str:
    names = list(map(str, names))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _ordered(names: Iterable[str]) -> list[str]:
    """Class names, each once: sorted, or by size if all are numbers."""
    found = sorted(set(names))
    return sorted(found, key=int) if all(re.fullmatch(r"-?\d+", name) for name in found) else found


def _copies(files: Sequence[str | os.PathLike], groups: Sequence) -> list[tuple[int, int]]:
    """The indices of files with the contents of one in another group, and of that: by size, then SHA-256."""
    sizes = [os.path.getsize(file) for file in files]
    several = Counter(sizes)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda file, size: sha256(file) if several[size] > 1 else "", files, sizes)
        first: dict[tuple[int, str], int] = {}
        found = [first.setdefault(key, i) for i, key in enumerate(zip(sizes, digests, strict=True))]
    return [(i, other) for i, other in enumerate(found) if groups[i] != groups[other]]


def warn_of_copies(learnt: Sequence, tested: Sequence) -> None:
    """Warn of pictures to test on that are to learn from, too: the same files, or copies of them."""
    files = [*learnt, *tested]
    if all(isinstance(file, Path) and file.is_file() for file in files) and (
        twice := _copies(files, [False] * len(learnt) + [True] * len(tested))
    ):
        these = f"{len(twice)} of {len(tested)} pictures to test on are also learnt from"
        warnings.warn(f"name: {these}, such as {files[twice[0][0]]}", stacklevel=3)


def _opened(path: str | os.PathLike) -> tuple[Path, list[Path], list[Path]]:
    """A folder, its subfolders and its files; of one that holds nothing but its own name, of that."""
    root = images.directory(path)
    subfolders, files = images.listed(root)
    name = root.resolve().name
    while [sub.name for sub in subfolders] == [name] and not any(map(images.is_picture, files)):
        subfolders, files = images.listed(root := subfolders[0])
    return root, subfolders, files


def _kinds(name: str, inside: bool) -> dict[tuple[str, str], str]:
    """The kinds of splits that a name may mean, by what is around the word; also `inside` others, if so."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()
    letter = r"[^\W\d_]"
    return {
        (text[: match.start()], text[match.end() :]): kind
        for kind, words in SPLITS.items()
        for word in words
        for match in re.finditer(word if inside else rf"(?<!{letter}){word}(?!(?!set|data){letter})", text)
    }


def known_splits(names: Iterable[str]) -> dict[str, str]:
    """The names of splits among others, by kind: words of `SPLITS` in any case, with the same around each
    (`seg_train`, `seg_test`); none unless there are `train` and another."""
    families: dict[tuple[str, str], dict[str, str | None]] = {}
    for name in names:
        for around, kind in _kinds(name, inside=True).items():
            family = families.setdefault(around, {})
            family[kind] = None if kind in family else name
    for _, family in sorted(families.items(), key=lambda item: len("".join(item[0]))):
        if "train" in family and len(family) > 1 and None not in family.values():
            return {kind: name for kind, name in family.items() if name}
    return {}


def _split_folders(subfolders: Sequence[Path]) -> dict[str, Path]:
    """As `known_splits`, of folders that hold folders, or else of those that hold no pictures themselves."""
    full = {sub.name: sub for sub in subfolders if images.listed(sub)[0]}
    bare = {sub.name: sub for sub in subfolders if not any(map(images.is_picture, images.listed(sub)[1]))}
    known = known_splits(full) or known_splits(bare)
    return {kind: bare.get(name) or full[name] for kind, name in known.items()}


def _refuse_splits(root: Path, subfolders: Sequence[Path]) -> None:
    """Refuse folders that are splits, or look like it, as classes; warn where they may be neither."""
    if known := _split_folders(subfolders):
        these = f"{' and '.join(sub.name for sub in known.values())}; expected one of them"
        raise ValueError(f"path: {root} holds the splits {these}, or bitlib.datasets.splits(...)")
    names = [sub.name for sub in subfolders]
    alike = [set(_kinds(name, inside=False).values()) for name in names]
    kinds = set().union(*alike)
    inner = [{sub.name for sub in images.listed(sub)[0]} for sub in subfolders]
    same = sorted(set.intersection(*inner)) if len(inner) > 1 else []
    all_alike = len(names) > 1 and all(alike) and kinds != {"train"}
    if all_alike or known_splits({re.sub(r"[\W\d_]", "", name) for name in names}) or (kinds and same[1:]):
        hint = "expected names such as train and test, each with one subfolder of pictures a class"
        raise ValueError(f"path: {root} holds {_some(names)}, which look like splits, not classes; {hint}")
    if len(same) > 1:
        taken = f"{_some(names)} are taken as the classes, though each of them holds {_some(same)}"
        warnings.warn(f"path: {root}: {taken}", stacklevel=4)


def _good(where: str, files: Sequence[Path], labels: np.ndarray, class_names: list[str], verify=True):
    """Which files can be read, bool `[N]`; one warning says which cannot, and which classes are empty."""

    def trouble(file: Path) -> str:
        try:
            images.read(file)
        except (ValueError, OSError) as error:
            return str(error).removeprefix(f"{file}: ")
        return ""

    with ThreadPoolExecutor() as pool:
        troubles = list(pool.map(trouble, files)) if verify else [""] * len(files)
    good = np.array([not reason for reason in troubles], bool)
    alike: dict[tuple[int, str], list[str]] = {}
    for i in np.flatnonzero(~good).tolist():
        kind = (labels[i], troubles[i].split(" (")[0])
        alike.setdefault(kind, []).append(f"{files[i].name}: {troubles[i]}")
    lines = [f"{(~good).sum()} of {len(files)} pictures cannot be read and are left out:"] if alike else []
    lines += [f"{class_names[n]}: {len(each)}, such as {each[0]}" for (n, _), each in sorted(alike.items())]
    full = [class_names[label] for label in np.unique(labels[good])]
    fine = np.flatnonzero(good).tolist() if verify else []
    if twice := _copies([files[i] for i in fine], labels[fine].tolist()):
        these = " and ".join(f"{class_names[labels[fine[i]]]}/{files[fine[i]].name}" for i in twice[0][::-1])
        lines.append(f"{len(twice)} pictures are in several classes, such as {these}")
    empty = [name for name in class_names if name not in full]
    if full and empty:
        lines.append(f"no pictures of {_some(empty)}, which keeps its place among the classes")
    if lines:
        warnings.warn(f"{where}: " + "\n".join(lines), stacklevel=4)
    if len(full) < 2:
        found = f"one class, {full[0]}" if full else "no picture that can be read"
        raise ValueError(f"{where} has {found}; expected at least two classes of pictures")
    return good


def is_table(source: Any) -> bool:
    """Whether `table` takes it: a path that ends in `.csv` or `.tsv`, or a DataFrame."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source).lower().endswith((".csv", ".tsv")) and not os.path.isdir(source)
    return hasattr(source, "columns") and hasattr(source, "__getitem__")


def table(
    source: Any, columns: Mapping[str, str] | None = None, root: str | os.PathLike | None = None
) -> Labelled:
    """A table with a row for each picture, as a labelled set like that of `folder`.

    Args:
        source: a CSV file (UTF-8 or 16; commas, semicolons or tabs; names in its first row), or a DataFrame.
        columns: their names, `{"path": ..., "label": ..., "split": ...}`; others are looked for by `COLUMNS`.
        root: the folder that relative paths count from; None for that of the file, or the current one.

    Raises: as `folder`; FileNotFoundError, if it or files of it are missing; ValueError, if columns or values
        are missing or of several meanings, or a picture has two classes.

    Warns: as `folder`; or rows are repeated; or there are splits, which are put together here.
    """
    whole, splits = _read(source, columns, root)
    if splits:
        these = f"the splits {_some(sorted(set(splits)))} are put together"
        warnings.warn(f"source: {these}; bitlib.datasets.splits keeps them apart", stacklevel=3)
    return whole


def table_parts(
    source: Any, columns: Mapping[str, str] | None = None, root: str | os.PathLike | None = None
) -> list[Labelled]:
    """As `parts`, of a table: two labelled sets if it has a column of splits, else one."""
    whole, splits = _read(source, columns, root)
    if not splits:
        return [whole]
    files, labels, class_names = whole
    known = known_splits(set(splits))
    if not known:
        raise ValueError(f"source: its splits are {_some(sorted(set(splits)))}; expected train and test")
    if others := sorted(set(splits) - set(known.values())):
        warnings.warn(f"source: the splits {_some(others)} are left out", stacklevel=4)
    indices = [np.flatnonzero(np.array(splits) == known[kind]) for kind in SPLITS if kind in known]
    return [([files[i] for i in part], labels[part], class_names) for part in indices[:2]]


def _read(source, columns, root) -> tuple[Labelled, list[str]]:
    """The labelled set of a table; and the split of each picture, none if there is no such column."""
    columns = columns or {}
    if not hasattr(source, "columns") and not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"source: expected a CSV file or a DataFrame, received {described(source)}")
    if not isinstance(columns, Mapping) or set(columns) - set(COLUMNS):
        raise ValueError(f"columns: expected the keys {_some(COLUMNS)}, received {columns!r:.200}")
    if hasattr(source, "columns"):
        where, base, names = "source: the table", Path(), list(source.columns)
        cells = [np.asarray(source[name], object).tolist() for name in names]
        numbers: Sequence[int] = range(len(source))
    else:
        path = Path(os.path.expanduser(source))
        where, base = f"source: {path}", path.parent
        names, numbers, cells = _csv(path)
    base = expanded(root, "root") if root not in (None, "") else base
    found = {role: _column(role, columns.get(role), names) for role in COLUMNS}
    if found["split"] is None:  # the one column, of any name, whose values are those of splits will do
        others = {name: set(map(_text, column)) for name, column in zip(names, cells, strict=True)}
        right = [name for name in names if len(others[name]) < 9 and known_splits(others[name])]
        right = [name for name in right if name not in found.values()]
        found["split"] = right[0] if len(right) == 1 else None
    named = [name for name in found.values() if name is not None]
    if len(set(named)) < len(named):
        raise ValueError(f"columns: expected a column for each, received {_some(named)}")
    used = {role: cells[names.index(name)] for role, name in found.items() if name is not None}
    texts = {role: list(map(_text, column)) for role, column in used.items()}
    for role, column in texts.items():
        odd = [described(value) for value in used[role] if _is_several(value)]
        if odd:
            raise ValueError(f"{where} has {odd[0]} as {role}; expected one text or number for each picture")
        empty = [f"row {number}" for number, text in zip(numbers, column, strict=True) if not text]
        if empty:
            raise ValueError(f"{where} has no {role} in {_some(empty)}; expected one for each picture")
    files = [base / os.path.expanduser(text) for text in texts["path"]]
    if not any(map(os.path.isfile, files)):  # paths of Windows
        files = [base / text.replace("\\", "/") for text in texts["path"]]
    if not files:
        raise ValueError(f"{where} has no rows; expected one for each picture")
    rows = zip(numbers, files, strict=True)
    if lost := [f"row {row}: {file}" for row, file in rows if not os.path.isfile(file)]:
        raise FileNotFoundError(f"{where}: {len(lost)} of {len(files)} files are missing, {_some(lost)}")
    labels, class_names = _classes(where, numbers, texts["label"])
    first: dict[str, int] = {}
    splits = texts.get("split", [])
    for index, file in enumerate(files):
        other = first.setdefault(os.path.realpath(file), index)
        if labels[index] != labels[other] or (splits and splits[index] != splits[other]):
            these = f"rows {numbers[other]} and {numbers[index]} differ on {file}"
            raise ValueError(f"{where}: {these}; expected one class and one split for each picture")
    kept = np.array(sorted(first.values()))
    if len(kept) < len(files):
        warnings.warn(f"{where}: {len(files) - len(kept)} rows repeat others and are left out", stacklevel=5)
    kept = kept[_good(where, [files[i] for i in kept], labels[kept], class_names)]
    return ([files[i] for i in kept], labels[kept], class_names), [splits[i] for i in kept if splits]


def _csv(path: Path) -> tuple[list[str], list[int], list[tuple[str, ...]]]:
    """The names of the columns of a CSV file, the numbers of its rows, and the columns."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        text = re.sub(r"^sep=.(?=\r?\n)", "", text)  # of Excel
        delimiter = max(",;\t", key=text.lstrip().split("\n", 1)[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [(reader.line_num, tuple(row)) for row in reader if any(map(str.strip, row))]
    except FileNotFoundError:
        raise FileNotFoundError(f"source: {path}: no such file, expected a CSV file or a DataFrame") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(f"source: {path}: cannot be read as CSV in UTF-8 or UTF-16 ({error})") from error
    names = [name.strip() for name in rows[0][1]] if rows else []
    for number, row in rows:
        if len(row) != len(names):
            expected = f"{len(names)}, as in the first row; a value with {delimiter!r} in it needs quotes"
            raise ValueError(f"source: {path}: row {number} has {len(row)} values, expected {expected}")
    columns = list(zip(*(row for _, row in rows), strict=True))
    return names, [number for number, _ in rows[1:]], [column[1:] for column in columns]


def _column(role: str, wanted: str | None, names: Sequence) -> Any:
    """The name of the column for a role; None if there is none for splits and none is wanted."""
    words = COLUMNS[role].split()
    plain = [re.sub(r"[\W_]", "", str(name).casefold()) for name in names]
    fits = [text in words for text in plain] if wanted is None else [name == wanted for name in names]
    found = list(itertools.compress(names, fits))
    if len(found) != 1 and (found or wanted is not None or role != "split"):
        looked = f'expected one for "{role}" ({wanted or ", ".join(words)}), found {_some(found) or None}'
        raise ValueError(f'columns: {looked} in {_some(names)}; say which it is, columns={{"{role}": ...}}')
    return found[0] if found else None


def _is_several(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)


def _text(value: Any) -> str:
    """A cell as text; empty if its value is missing."""
    if _is_several(value):
        return str(value)
    try:
        return "" if value is None or value != value else str(value).strip()
    except TypeError:  # pandas' NA is neither equal nor unequal to itself
        return ""


def _classes(where: str, numbers: Sequence[int], texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Class numbers int64 `[N]` of a column of labels, and the class names: numbers by size, texts sorted."""
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    try:
        values = [float(text.replace("_", "?")) for text in texts]  # to Python, 1_0 is 10
    except ValueError:
        pass
    else:
        rows = zip(numbers, values, strict=True)
        if odd := [f"{value} in row {number}" for number, value in rows if not value.is_integer()]:
            raise ValueError(f"{where} has the labels {_some(odd)}; expected whole numbers or names")
        texts = [t if t.isdigit() else str(int(value)) for t, value in zip(texts, values, strict=True)]
    class_names = _ordered(texts)
    if missing := [name for name in class_names if name.casefold() in _MISSING]:
        warnings.warn(f"{where}: {_some(missing)}: taken as a class, not as missing values", stacklevel=5)
    places = {name: place for place, name in enumerate(class_names)}
    return np.array([places[text] for text in texts], np.int64), class_names
