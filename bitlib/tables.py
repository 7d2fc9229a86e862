"""Cards of models as a table that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitlib.zoo import Card


class Table(list):
    """Cards, shown as a table: as Markdown on a page, as lines in a terminal."""

    HEADER = ("name", "trained on", "classes", "pixels", "top-1 %", "parameters", "file")

    def rows(self) -> list[tuple[str, ...]]:
        """What each row shows."""

        def row(card: Card) -> tuple[str, ...]:
            million = "as in the file" if card.parameters is None else f"{card.parameters / 1e6:,.1f} M"
            size = "as in the file" if card.size is None else f"{card.size / 1e6:,.0f} MB"
            pixels = f"{card.short_side} → {card.resolution}" if card.short_side else str(card.resolution)
            classes = "per task" if card.num_classes is None else f"{card.num_classes:,}"
            return card.name, card.trained_on, classes, pixels, card.top1 or "", million, size

        return [row(card) for card in self]

    def _repr_markdown_(self) -> str:
        lines = [self.HEADER, ("---",) * len(self.HEADER), *self.rows()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def __str__(self) -> str:
        rows = [self.HEADER, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    __repr__ = __str__
