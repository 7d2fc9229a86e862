"""The environment variables that change where files come from, checked as they are read."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from bitlib.paths import expanded

TIMEOUT = 20.0
"""Seconds that a server may be silent, where `BITLIB_TIMEOUT` does not say otherwise."""


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
    """`BITLIB_MIRROR`: a folder, or an address without a slash at its end; None if it is not set.

    Raises:
        ValueError: it is an address that is not of the web, or is not complete.
    """
    value = os.environ.get("BITLIB_MIRROR", "").strip()
    if not value:
        return None
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", value):  # two letters and more: C: is a folder
        return expanded(value, "BITLIB_MIRROR")
    try:
        address = urlsplit(value)
        host = re.fullmatch(r"[^\s.]{1,63}(\.[^\s.]{1,63})*", address.hostname or "")
        whole = address.scheme in ("http", "https") and host and address.port != 0
        if whole and not (address.query or address.fragment):
            return value.rstrip("/")
    except ValueError:  # a port that is no number
        pass
    raise ValueError(
        f"BITLIB_MIRROR: expected a folder or an address like https://example.org/models, received {value!r}"
    )
