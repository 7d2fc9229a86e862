"""The environment variables that change where files come from, checked as they are read."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from bitlib.paths import expanded

TIMEOUT = 20.0
"""Seconds that a server may be silent, where `BITLIB_TIMEOUT` does not say otherwise."""

_NAME, _NUMBER = r"[^\s/?#@:.\[\]]{1,63}(\.[^\s/?#@:.\[\]]{1,63})*", r"\[[0-9A-Fa-f:.]+\]"
_ADDRESS = re.compile(rf"(?i:https?)://([^\s/?#]*@)?({_NAME}|{_NUMBER})(:[0-9]{{1,5}})?(/[^\s?#]*)?")


def offline() -> bool:
    """Whether `BITLIB_OFFLINE` forbids the network. Raises: ValueError if it is neither 0, 1 nor empty."""
    value = os.environ.get("BITLIB_OFFLINE", "").strip()
    if value not in ("", "0", "1"):
        raise ValueError(f"BITLIB_OFFLINE: expected 1 (no network), 0 or nothing, received {value!r}")
    return value == "1"


def timeout() -> float:
    """`BITLIB_TIMEOUT`, or `TIMEOUT`. Raises: ValueError if it is not a number of seconds up to an hour."""
    value = os.environ.get("BITLIB_TIMEOUT", "").strip()
    try:
        seconds = float(value or TIMEOUT)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise ValueError(f"BITLIB_TIMEOUT: expected seconds, above 0 and up to 3600, received {value!r}")
    return seconds


def mirror() -> Path | str | None:
    """`BITLIB_MIRROR`: a folder, or a web address without a slash at its end; None if it is not set.

    Raises: ValueError if it is another kind of address, or no complete one.
    """
    value = os.environ.get("BITLIB_MIRROR", "").strip()
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", value):  # two letters and more: C: is a folder
        return expanded(value, "BITLIB_MIRROR") if value else None
    if not _ADDRESS.fullmatch(value):
        expected = "a folder or an address like https://example.org/models"
        raise ValueError(f"BITLIB_MIRROR: expected {expected}, received {value!r}")
    return value.rstrip("/")
