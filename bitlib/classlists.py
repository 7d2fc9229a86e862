"""Lists of the names of classes: one class a line, line number = index. What a published list looks like."""

from __future__ import annotations

LINES = {"ilsvrc2012": 1000, "imagenet21k": 21843}
"""Lines of the published lists, by the beginning of their file's name."""

BYTES = {"ilsvrc2012_wordnet_lemmas.txt": 21675}
"""Bytes of the published lists, where they are known."""

MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
"""Byte-order marks of UTF-8 and UTF-16."""


def parse(content: bytes, file: str) -> tuple[str, ...]:
    """The lines of a list.

    Args:
        content: of the file.
        file: its published name, which says how many lines it has; any number for other names.

    Raises:
        ValueError: it is not such a list; the message says why, without the file's name.
    """
    if content.startswith(MARKS):
        raise ValueError("begins with a byte-order mark, expected plain UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 (byte {error.start:,})") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    expected = LINES.get(file.partition("_")[0], len(lines))
    if len(lines) != expected:
        raise ValueError(f"{len(lines):,} lines, expected {expected:,}, one for each class")
    for number, line in enumerate(lines, 1):
        # Two classes of ImageNet-21k are empty.
        if not line.isprintable() or line.startswith("<") or not (line.strip() or expected == 21843):
            raise ValueError(f"line {number:,} is {line[:40]!r}, expected the name of a class")
    return tuple(lines)
