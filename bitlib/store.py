"""From the name of a published file to the file: bundled, cached, on a mirror, or downloaded."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bitlib import zoo
from bitlib.digests import noted, verify
from bitlib.download import download
from bitlib.paths import bundled, cache_folder
from bitlib.settings import mirror, offline
from bitlib.writing import replacing

_INSIDE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]*/)*[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""A path that stays in its folder, and names nothing hidden, on any system."""


class Stored(NamedTuple):
    """A file on this machine, and its SHA-256 in hexadecimal where it has been compared."""

    path: Path
    sha256: str | None


def of_card(card: zoo.Card) -> Stored:
    """The weights that a card describes. Raises: as `fetch`."""
    if card.url is None:
        return Stored(bundled(card.file), None)
    return of_file(card.file)


def of_file(file: str) -> Stored:
    """Any file below the published address (`ilsvrc2012_wordnet_lemmas.txt`).

    Raises: as `fetch`; and ValueError if it would lie elsewhere, or a variable makes no sense.
    """
    if not isinstance(file, str) or not _INSIDE.fullmatch(file):
        raise ValueError(
            f"file: expected a path below the published address, like vtab/some.npz, received {file!r}"
        )
    cached, source = cache_folder() / file, mirror()
    if path := on_disk(file):
        return Stored(path, verify(path))
    by_hand = f"put the file at {cached}, or name a folder that holds {file} in BITLIB_MIRROR"
    if isinstance(source, Path):
        known = "" if source.is_dir() else ", which is no folder"
        raise ConnectionError(
            f"{file}: not in BITLIB_MIRROR ({source}{known}); put it there, or unset the variable"
        )
    if offline():
        raise ConnectionError(
            f"{file}: not on this machine, and BITLIB_OFFLINE forbids to download it; unset it, or {by_hand}"
        )
    path = download(f"{source or zoo.BASE_URL.rstrip('/')}/{file}", cached)
    return Stored(path, noted(path))  # download has just compared it


def on_disk(file: str) -> Path | None:
    """Where a file below the published address lies on this machine: in the cache or a mirror's folder."""
    source = mirror()
    folders = [cache_folder(), *([source] if isinstance(source, Path) else [])]
    return next((folder / file for folder in folders if (folder / file).is_file()), None)


def fetch(name: str) -> Path:
    """The file of a published model: bundled, else cached, else from the mirror or the published address.

    What comes over the network is compared with the server's length and hash, and stays in the cache: the
    folder `BITLIB_CACHE`, by default the user's own. Its SHA-256 is noted beside it and compared at
    every later use. `BITLIB_MIRROR`, a folder or a base URL laid out like the published one, is asked
    instead of the published address. `BITLIB_OFFLINE=1` never touches the network.

    Raises:
        ValueError: no published BiT has that name, or one of the variables makes no sense.
        ConnectionError: it cannot be had, or is not what it should be. What came of it stays hidden in the
            cache, if the next call can go on from there.
        OSError: it cannot be written: the cache is read-only, the disk is full.
    """
    return of_card(zoo.card(name)).path


def fetch_file(file: str) -> Path:
    """As `fetch`, for any file below the published address (`ilsvrc2012_wordnet_lemmas.txt`)."""
    return of_file(file).path


def prefetch(names: Iterable[str], folder: str | os.PathLike) -> list[Path]:
    """Copy models and their class lists into a folder that then serves others as `BITLIB_MIRROR`.

    Args:
        names: names of `bitlib.zoo.names()`, or hub handles.
        folder: created if need be; files keep their published sub-folders.

    Returns:
        The path of each model's copy.

    Raises: as `fetch`.
    """

    def copied(source: Path, file: str) -> Path:
        copy = Path(folder).expanduser() / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as temporary:
            shutil.copyfile(source, temporary)
        verify(copy)
        return copy

    listed: Any = [names] if isinstance(names, str) or not isinstance(names, Iterable) else names
    cards = [zoo.card(name) for name in listed]
    lists = {zoo.CLASS_LISTS[card.labels] for card in cards if card.labels and card.url}
    for file in sorted(lists):
        copied(fetch_file(file), file)
    return [copied(of_card(card).path, card.file) for card in cards]
