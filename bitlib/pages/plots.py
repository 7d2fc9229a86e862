"""Every figure the pages draw: arrays in, a matplotlib Figure out.

Colours are those of Okabe and Ito, which colour-blind readers tell apart. A figure is closed, so a notebook
shows it once, as the value of its cell; and it has a text alternative, `alt`.
"""

from __future__ import annotations

import io
import string
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bitlib.files.layout import infer

if TYPE_CHECKING:
    from bitlib.finetune import History
    from bitlib.hyperrule import Plan

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#999999"

LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"), (PURPLE, "-."))
POINTS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PURPLE, "^"), (RED, "v"), (GREY, "x"))

WIDTH = 8.3
"""Width in inches of the widest figure: at 100 pixels an inch, what JupyterLab shows without shrinking it."""

Pairs = Sequence[Sequence[tuple[str, float]]]  # for each picture, names of classes and shares

STAGES = ("root", "block1", "block2", "block3", "block4", "head")


class Described(Figure):
    """A figure with a text alternative, shown on a page with twice the pixels of its size."""

    alt = ""

    def described(self, text: str, listed: Sequence[str] = (), between: str = "; ") -> Described:
        """The figure itself, with a text and what it lists as its text alternative."""
        self.alt = f"{text} {between.join(listed)}." if listed else text
        return self

    def _ipython_display_(self) -> None:
        from IPython.display import display
        from PIL import Image

        drawn, packed = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=200)
        few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)  # halves the pages
        few.save(packed, "png", optimize=True)
        width, height = (round(100 * side) for side in self.get_size_inches())
        shown = {"image/png": packed.getvalue(), "text/plain": f"<Figure of {len(self.axes)} axes>"}
        about = {"image/png": {"alt": self.alt, "width": width, "height": height}}
        display(shown, metadata=about, raw=True)


def _figure(rows: int = 1, columns: int = 1, size=(7.0, 3.0), **kwargs):
    kwargs |= {"figsize": size, "layout": "constrained", "FigureClass": Described}
    fig, axes = plt.subplots(rows, columns, **kwargs)
    plt.close(fig)
    return fig, axes


def _grid(rows: int, columns: int, size, **kwargs):
    """A figure of `rows` × `columns` axes that show nothing but what is drawn into them."""
    fig, axes = _figure(rows, columns, size, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.axis("off")
    return fig, axes


def _plain(ax, title: str = "", x: str = "", y: str = ""):
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(title=title, xlabel=x, ylabel=y)


def _rows_named(ax, names) -> None:
    """Name the rows of a chart, the first at the top."""
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.5, -0.5)


def _percent(axis, decimals: int | None = 0) -> None:
    axis.set_major_formatter(PercentFormatter(1, decimals))


def _pairs(names, values, spoken="{:.0%}".format) -> list[str]:
    """A sentence part for each name and value."""
    return [f"{name} {spoken(value)}" for name, value in zip(names, values, strict=True)]


def _legend_above(fig, ax, columns: int) -> None:
    entries = ax.get_legend_handles_labels()
    fig.legend(*entries, loc="outside upper center", ncols=columns, frameon=False)


def _keys(table: Mapping[str, Mapping]) -> list[str]:
    """The keys of the inner dictionaries, each once."""
    return list(dict.fromkeys(key for row in table.values() for key in row))


def _listed(table: Mapping[str, Mapping], spoken) -> list[str]:
    """A sentence part for each row of a table; `spoken` says a value of it."""
    return [f"{name}: " + ", ".join(_pairs(row, row.values(), spoken)) for name, row in table.items()]


def _picture(ax, image, title: str = "", size: float = 9):
    image = np.asarray(image)
    if image.dtype.kind == "f":
        image = np.clip((image + 1) / 2, 0, 1)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    ax.set_title(title, fontsize=size)
    ax.axis("off")


def anatomy(shapes: Mapping[str, tuple[int, ...]], resolution: int) -> Figure:
    """The network of arrays of these shapes on images of `resolution` pixels, beside its parameters."""
    fig, (left, right) = _figure(1, 2, (WIDTH, 3.6), width_ratios=(1.25, 1))
    units, width, classes = infer(shapes)
    for row, stage in enumerate(STAGES):
        side = -(-resolution // (4 * 2 ** max(0, row - 1)))
        if stage == "root":
            text = f"7×7 convolution, pool → {side}×{side}×{int(64 * width)}"
        elif stage == "head":
            text = "GroupNorm, ReLU, average" + (f" → {classes} logits" if classes else "")
        else:
            count = units[row - 1]
            text = f"{count} unit{'s' * (count > 1)} → {side}×{side}×{int(64 * width) * 2 ** (row + 1)}"
        left.text(0.02, row, stage, weight="bold", va="center")
        left.text(0.2, row, text, va="center")
        if row:
            arrow = {"arrowstyle": "->", "color": GREY}
            left.annotate("", (0.08, row - 0.22), (0.08, row - 0.78), arrowprops=arrow)
    left.set(xlim=(0, 1), ylim=(5.6, -0.6), title=f"The network at {resolution}×{resolution} pixels")
    left.axis("off")

    kinds = ("7×7 kernel", "1×1 kernel", "3×3 kernel", "projection", "head", "gamma, beta, bias")
    totals = {kind: np.zeros(len(STAGES)) for kind in kinds}
    for name, shape in shapes.items():
        stage = name.split("/")[1].replace("root_block", "root")
        row = STAGES.index(stage) if stage in STAGES else -1  # the last norm, before the head
        kind = "head" if "/head/" in name else "projection" if "/proj/" in name else "{}×{} kernel"
        totals[kind.format(*shape) if len(shape) == 4 else kinds[-1]][row] += np.prod(shape)
    start = np.zeros(len(STAGES))
    for (kind, total), colour in zip(totals.items(), (PURPLE, BLUE, ORANGE, GREEN, RED, GREY), strict=True):
        right.barh(STAGES, total / 1e6, left=start / 1e6, color=colour, label=kind)
        start += total
    right.invert_yaxis()
    right.legend(frameon=False, fontsize=8)
    _plain(right, "Where its parameters are", "parameters (millions)")
    text = f"Diagram of the network at {resolution} by {resolution} pixels, from the root through four blocks"
    said = _pairs(STAGES, start / 1e6, "{:.2g}".format)
    return fig.described(
        f"{text} to the head; beside it, bars of millions of parameters in each:", said, ", "
    )


def transfer(sources: Sequence[str], network: str, tasks: Sequence[str]) -> Figure:
    """The idea of BiT as a drawing: large data sets, one network, and tasks with a few examples each."""
    fig, ax = _figure(size=(WIDTH, 2.9))
    ax.set(xlim=(0, 10), ylim=(-0.25, 5))
    ax.axis("off")
    arrow = {"arrowstyle": "-|>", "color": GREY, "lw": 1.5, "shrinkA": 2, "shrinkB": 2}
    columns = ((1.3, BLUE, sources, "pre-train once"), (8.6, GREEN, tasks, "transfer to many tasks"))
    for x, colour, texts, title in columns:
        ax.text(x, 4.75, title, ha="center", weight="bold")
        box = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": colour, "lw": 1.5}
        for y, text in zip(np.linspace(3.7, 0.4, len(texts)), texts, strict=True):
            ax.text(x, y, text, ha="center", va="center", bbox=box, fontsize=9)
            ends = ((3.8, 2.05), (2.5, y)) if x < 5 else ((7.4, y), (6.2, 2.05))
            ax.annotate("", *ends, arrowprops=arrow)
    ax.fill([3.9, 6.1, 6.1, 3.9], [4, 3.2, 0.9, 0.1], color=ORANGE, alpha=0.35)
    ax.text(5, 2.05, network, ha="center", va="center")
    return fig.described(f"Drawing: pre-train once on {'; '.join(sources)}; one network; transfer to", tasks)


def standardization(kernel, standardized) -> Figure:
    """Mean and standard deviation of every filter `[height, width, in, filters]`, before and after."""
    fig, axes = _figure(1, 2, (8, 2.8))
    for ax, values, title in zip(axes, (kernel, standardized), ("as stored", "standardised"), strict=True):
        values = np.asarray(values).reshape(-1, np.shape(values)[-1])
        ax.plot(values.mean(axis=0), values.std(axis=0), "o", ms=5, color=BLUE, alpha=0.5)
        _plain(ax, f"{values.shape[-1]} filters, {title}", "mean of weights", "standard deviation")
    span = max(np.abs(axes[0].get_xlim()))
    axes[0].set(xlim=(-span, span), ylim=(0, 1.1 * axes[0].get_ylim()[1]))
    axes[0].locator_params(axis="x", nbins=5)
    axes[1].set(xlim=(-1, 1), ylim=(0, 2))
    text = "Two scatter plots of mean against standard deviation, a dot for each filter: scattered as stored,"
    return fig.described(f"{text} all at mean 0 and deviation 1 once standardised.")


def group_norm(before, after, groups: int = 32) -> Figure:
    """What GroupNorm does to a feature map `[H, W, C]`: the spread of each group's values."""
    fig, axes = _figure(1, 2, (8, 2.8))
    for ax, values, title in zip(axes, (before, after), ("going in", "coming out"), strict=True):
        values = np.asarray(values)
        grouped = np.moveaxis(values.reshape(*values.shape[:2], groups, -1), 2, 0).reshape(groups, -1)
        low, median, high = np.percentile(grouped, (5, 50, 95), axis=1)
        ax.vlines(np.arange(groups), low, high, color=GREY, lw=2, label="5 % to 95 %")
        ax.plot(np.arange(groups), median, ".", color=BLUE, label="median")
        ax.axhline(0, color="black", lw=0.5)
        _plain(ax, f"Values {title}", "group", "activation")
    axes[1].set_ylim(None, 1.3 * axes[1].get_ylim()[1])
    axes[1].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    text = f"Two plots of the values of {groups} groups of channels, median and the range from 5 to 95 %:"
    return fig.described(f"{text} spread differently going in, alike coming out.")


def agreement(values, reference, label: str = "logit") -> Figure:
    """A port's outputs `[N, classes]` against the reference's, and the differences."""
    values, reference = np.ravel(values), np.ravel(reference)
    fig, (left, right) = _figure(1, 2, (8, 2.9))
    left.plot(reference, values, ".", ms=3, color=BLUE)
    span = [reference.min(), reference.max()]
    left.plot(span, span, color="black", lw=0.7)
    _plain(left, "Port against reference", f"{label}, NumPy float64", f"{label}, Keras float32")
    scale = np.abs(reference).max()
    difference = np.maximum(np.abs(values - reference) / scale, 1e-12)
    right.hist(np.log10(difference), 40, color=BLUE)
    right.axvline(-4, color=RED, ls="--")
    right.text(-4.1, right.get_ylim()[1] * 0.9, "limit", color=RED, ha="right")
    _plain(right, "Their difference", "difference / largest logit (log10)", "count")
    largest = f"10 to the power of {np.log10(difference).max():.1f} of the largest value"
    text = (
        f"Left, {label}s of the port against those of the reference, on the diagonal; right, a histogram of"
    )
    return fig.described(f"{text} their differences, up to {largest}.")


def predictions(pictures: Sequence, top: Pairs, titles: Sequence[str]) -> Figure:
    """Pictures, uint8 or float in [-1, 1], with their `top` classes and probabilities as bars, best first."""
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    k = max(len(best) for best in top)
    size = (min(2.7 * columns, WIDTH), rows * (1.6 + 0.3 * k))
    fig, axes = _grid(2 * rows, columns, size, height_ratios=[1.3, 0.3 * k] * rows)
    for index, (picture, best, title) in enumerate(zip(pictures, top, titles, strict=True)):
        row, column = divmod(index, columns)
        _picture(axes[2 * row, column], picture, title)
        ax = axes[2 * row + 1, column]
        ax.axis("on")
        ax.barh(range(len(best)), [p for _, p in best], color=BLUE, alpha=0.35)
        for place, (name, probability) in enumerate(best):
            text = f"{probability:.0%}  {shorten(name.replace(' LETTER', ''), 26)}"
            ax.text(0.02, place, text, va="center", fontsize=8)
        ax.set(xlim=(0, 1), ylim=(k - 0.5, -0.5), xticks=[], yticks=[])
        ax.spines[["top", "right", "bottom"]].set_visible(False)
    answers = [f"{title}: {_share(best[0])}" for title, best in zip(titles, top, strict=True)]
    return fig.described(f"{len(answers)} pictures with bars of their most probable classes.", answers)


def shorten(name: str, length: int = 34) -> str:
    """The first of a class's names, fit for a figure: LATIN SMALL LETTER T -> Latin small letter t."""
    name = name.split(",")[0]
    if name.isupper():
        letters = () if "SMALL" in name and "CAPITAL" not in name else (*string.ascii_uppercase, "AE", "OI")
        name = " ".join(word if word in letters else word.lower() for word in name.split(" "))
        name = name[0].upper() + name[1:]
    return name if len(name) <= length else name[: length - 1] + "…"


def _share(pair: tuple[str, float]) -> str:
    return f"{shorten(pair[0])} {pair[1]:.0%}"


def confusions(pairs: Sequence[tuple], count: int = 6) -> Figure:
    """Pictures, with their true names, above a picture and the name of the class they were taken for."""
    pairs = pairs[:count]
    columns = max(1, len(pairs))
    fig, axes = _grid(2, columns, (min(1.75 * columns, WIDTH), 3.4))
    for above, below, (picture, true_name, other, other_name) in zip(*axes, pairs, strict=False):
        _picture(above, picture, _wrapped(true_name), 8)
        _picture(below, other, "taken for\n" + _wrapped(other_name), 8)
    taken = [f"{shorten(pair[1])} for {shorten(pair[3])}" for pair in pairs]
    return fig.described("Pictures above the class that they were taken for:", taken or ["none"])


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(shorten(name, 44), 17))


def near_misses(pictures: Sequence, rows: Pairs, drawn: Sequence = ()) -> Figure:
    """A picture of each class, uint8, and the names and shares of those that it is most often taken for.

    Beside it, if it is there, the one that is `drawn` of the most frequent of them.
    """
    columns = -(-len(pictures) // 2)
    fig, axes = _grid(4, columns, (min(2.1 * columns, WIDTH), 5.0), height_ratios=(1, 1.3) * 2)
    for index, (picture, best) in enumerate(zip(pictures, rows, strict=True)):
        row, column = divmod(index, columns)
        if len(drawn):
            gap = np.full((len(picture), 6, *picture.shape[2:]), 255, np.uint8)
            picture = np.hstack([picture, gap, drawn[index]])
        _picture(axes[2 * row, column], picture)
        lines = [f"{share:.0%} {shorten(name, 60)}" for name, share in best]
        text = "\n".join(part for line in lines for part in textwrap.wrap(line, 25, subsequent_indent="   "))
        axes[2 * row + 1, column].text(0.02, 1, text, va="top", fontsize=8)
    answers = [_share(best[0]) for best in rows]
    return fig.described("A picture of each class with what it is most often taken for:", answers)


def mistakes(pictures: Sequence, titles: Sequence[str], scores: Sequence[float], score_name: str) -> Figure:
    """One picture as the network sees it under several treatments, each with its score in [0, 1]."""
    size = (min(1.75 * len(pictures), WIDTH), 2.7)
    fig, axes = _figure(2, len(pictures), size, height_ratios=(2, 1), squeeze=False)
    for above, ax, picture, title, score in zip(*axes, pictures, titles, scores, strict=True):
        _picture(above, picture, title, 8)
        ax.barh([0], [score], color=GREEN if above is axes[0, 0] else RED)
        ax.text(0.03, 0, f"{score:.1%}", va="center", fontsize=9)
        ax.set(xlim=(0, 1), ylim=(-0.8, 0.8), xticks=[0, 1], yticks=[])
        ax.spines[["top", "right", "left"]].set_visible(False)
    axes[1, 0].set_xlabel(score_name)
    text = f"One picture under {len(titles)} treatments, and bars of the share with the {score_name}:"
    return fig.described(text, _pairs(titles, scores), ", ")


def curve(
    x: Sequence[float], y: Sequence[float], title: str, x_name: str, y_name: str, mark: float | None = None
) -> Figure:
    """A line with its points; `mark` draws a dashed line at that x."""
    fig, ax = _figure(size=(5.5, 2.8))
    ax.plot(x, y, "o-", color=BLUE)
    if mark is not None:
        ax.axvline(mark, color=GREY, ls="--")
    ax.set_xscale("log", base=2)
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.set_ylim(0, None)
    _plain(ax, title, x_name, y_name)
    points = [f"{b:.3g} at {a:g}" for a, b in zip(x, y, strict=True)]
    return fig.described(f"{title}: {y_name} against {x_name}:", points, ", ")


def neighbours(queries: Sequence, found: Sequence[Sequence], titles: Sequence[Sequence[str]]) -> Figure:
    """Each row a query, and the pictures found most like it, best first, with a title above each."""
    columns = 1 + max(len(row) for row in found)
    fig, axes = _grid(len(queries), columns, (1.15 * columns, 1.35 * len(queries)))
    for row, (query, pictures, names) in enumerate(zip(queries, found, titles, strict=True)):
        for column, (picture, name) in enumerate(zip([query, *pictures], names, strict=True)):
            _picture(axes[row, column], picture, name, 8)
        frame = {"transform": axes[row, 0].transAxes, "fill": False, "color": ORANGE, "lw": 3}
        axes[row, 0].add_patch(plt.Rectangle((0, 0), 1, 1, **frame))
    shown = [f"{row[0]}: {', '.join(row[1:])}" for row in titles]
    return fig.described("Rows of a picture and the pictures most like it, by class:", shown)


def maps(points: Mapping[str, np.ndarray], labels: Sequence[int], names: Sequence[str]) -> Figure:
    """Flat maps of vectors, float `[N, 2]` by title: at each point the name of its class, a character or two.

    `labels` are int `[N]`; `names` are by label.
    """
    fig, axes = _figure(1, len(points), (WIDTH, WIDTH / len(points) + 0.5), squeeze=False)
    colours = plt.colormaps["tab10"]
    for ax, (title, xy) in zip(axes.flat, points.items(), strict=True):
        for (x, y), label in zip(xy, labels, strict=True):
            ax.text(x, y, names[label], color=colours(label % 10), fontsize=6, ha="center", va="center")
        low, high = np.min(xy, axis=0), np.max(xy, axis=0)
        margin = 0.03 * (high - low) + 1e-6
        xlim, ylim = np.transpose([low - margin, high + margin])
        ax.set(title=title, xlim=xlim, ylim=ylim, xticks=[], yticks=[])
        ax.set(xlabel="t-SNE, no unit", ylabel="t-SNE, no unit")
    text = f"Maps of {len(labels)} pictures in the plane, each written as its class:"
    return fig.described(text, list(points), ", ")


def few_shot_curves(
    shots: Sequence[int],
    scores: Mapping[str, np.ndarray],
    title: str = "Learning from few examples",
    x_name: str = "examples of each class",
) -> Figure:
    """Accuracies by name, float `[len(shots), draws]` in [0, 1]: their mean, and the range over draws."""
    fig, ax = _figure(size=(6, 3.4))
    for (name, values), (colour, line), marker in zip(scores.items(), cycle(LINES), cycle("os^d")):
        mean = np.mean(values, axis=1)
        ax.plot(shots, mean, marker + line, color=colour, label=name)
        ax.fill_between(shots, np.min(values, axis=1), np.max(values, axis=1), color=colour, alpha=0.15)
    ax.set_xscale("log")
    ax.set_xticks(shots, [str(n) for n in shots])
    ax.minorticks_off()
    _percent(ax.yaxis)
    ax.legend(frameon=False, loc="lower right")
    _plain(ax, title, x_name, "accuracy on unseen pictures")
    last = _pairs(scores, (np.mean(values[-1]) for values in scores.values()))
    text = f"Accuracy against {x_name}, mean and range over draws; at {shots[-1]}:"
    return fig.described(text, last, ", ")


def feature_maps(picture, stages: Mapping[str, np.ndarray], count: int = 6) -> Figure:
    """A picture, and of its maps `[H, W, C]` by stage the `count` channels that vary most, in grey."""
    rows = len(stages) + 1
    fig, axes = _grid(rows, count + 1, (1.15 * (count + 1), 1.25 * rows))
    axes[0, 0].text(0.5, 0.5, "input", ha="center", va="center", fontsize=9)
    _picture(axes[0, 1], picture)
    for row, (name, values) in enumerate(stages.items(), start=1):
        values = np.asarray(values)
        height, width, _ = values.shape
        strongest = np.argsort(-values.std(axis=(0, 1)))[:count]
        axes[row, 0].text(0.5, 0.5, f"{name}\n{height}×{width}", ha="center", va="center", fontsize=9)
        for ax, channel in zip(axes[row, 1:], strongest, strict=False):
            ax.imshow(values[..., channel], cmap="gray")
            ax.set_title(f"channel {channel}", fontsize=7)
    sizes = [f"{name} {len(values)} by {len(values[0])}" for name, values in stages.items()]
    text = f"The input, and {count} grey maps for each stage of the network, ever coarser:"
    return fig.described(text, sizes, ", ")


def bars(
    names: Sequence[str], values: Sequence[float], title: str, y_name: str, x_name: str = "stage"
) -> Figure:
    """Shares in [0, 1] as bars, each with its number."""
    fig, ax = _figure(size=(6, 2.8))
    ax.bar(names, values, color=BLUE)
    for place, value in enumerate(values):
        ax.text(place, value, f"{value:.0%}", ha="center", va="bottom", fontsize=8)
    ax.set_ylim(0, 1.1)
    _percent(ax.yaxis)
    _plain(ax, title, x_name, y_name)
    return fig.described(f"{title}, bars of the {y_name} by {x_name}:", _pairs(names, values), ", ")


def rates(plans: Mapping[str, Mapping[str, Plan]]) -> Figure:
    """Learning rates against steps: a panel for each title, a line for each named plan in it."""
    fig, axes = _figure(1, len(plans), (min(3.1 * len(plans), WIDTH), 2.9), squeeze=False, sharey=True)
    falls = []
    for ax, (title, variants) in zip(axes.flat, plans.items(), strict=True):
        for (colour, style), (name, plan) in zip(cycle(LINES), variants.items()):
            values = [plan.learning_rate(step) for step in range(plan.steps)]
            ax.plot(values, style, color=colour, label=name, drawstyle="steps-post")
            steps = ", ".join(map(str, plan.boundaries))
            falls.append(f"{title}, {name}: falls at steps {steps} of {plan.steps}")
        ax.set_yscale("log")
        ax.locator_params(axis="x", nbins=4)
        _plain(ax, title, "step")
    axes[0, 0].set_ylabel("learning rate")
    axes[0, -1].legend(frameon=False, loc="lower left", fontsize=9)
    return fig.described("Learning rate against step, on a logarithmic scale:", falls)


def gallery(pictures: Sequence, titles: Sequence[str], columns: int = 8) -> Figure:
    """Pictures side by side, each with a line or two above it."""
    columns = min(columns, max(1, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    lines = max([title.count("\n") + 1 for title in titles], default=1)
    side = min(1.6, WIDTH / columns)
    fig, axes = _grid(rows, columns, (side * columns, rows * (side + 0.17 * lines)))
    for ax, picture, title in zip(axes.flat, pictures, titles, strict=False):
        _picture(ax, picture, title, 8)
    said = [title.replace("\n", " ") for title in titles]
    return fig.described(f"{len(titles)} pictures side by side, with their titles:", said)


def learning_curves(
    histories: Mapping[str, History], boundaries: Sequence[int] = (), loss: str = "cross-entropy"
) -> Figure:
    """The named loss of training batches, and validation accuracy, against steps; `boundaries` are marked."""
    fig, (left, right) = _figure(1, 2, (WIDTH, 3.2))
    ends = []
    for (colour, style), (title, history) in zip(cycle(LINES), histories.items()):
        left.plot(history.loss, style, color=colour, label=title)
        right.plot(history.validated, history.validation_accuracy, style, marker="o", ms=3, color=colour)
        ends += [f"{title} {accuracy:.0%}" for accuracy in history.validation_accuracy[-1:]]
    for ax in (left, right):
        for boundary in boundaries:
            ax.axvline(boundary, color=GREY, lw=0.8, ls=":")
    left.set_yscale("log")
    left.legend(frameon=False, fontsize=8)
    _percent(right.yaxis)
    _plain(left, "Loss while training", "step", f"{loss} (nats)")
    _plain(right, "Accuracy on pictures set aside", "step", "accuracy")
    text = "Loss while training and accuracy on pictures set aside, against steps; accuracy at the end:"
    return fig.described(text, ends, ", ")


def _intervals(values, title: str, x_name: str, written: Callable[[float], str]):
    """A chart of means and half intervals by row and name, each mean `written` beside it."""
    names = _keys(values)
    height = 0.9 + 0.2 * (len(names) > 4) + 0.16 * len(names) * len(values) + 0.12 * len(values)
    fig, ax = _figure(size=(WIDTH, height))
    for number, (name, (colour, marker)) in enumerate(zip(names, cycle(POINTS))):
        found = [(row, *pairs[name]) for row, pairs in enumerate(values.values()) if name in pairs]
        rows, means, halves = np.transpose(found)
        places = rows + 0.75 * ((number + 0.5) / len(names) - 0.5)
        halves = np.where(np.isfinite(halves), halves, np.nan)  # which draws none
        style = {"fmt": marker, "color": colour, "ms": 5, "elinewidth": 1.4, "label": name}
        ax.errorbar(means, places, xerr=halves, **style)
        beside = {"transform": ax.get_yaxis_transform(), "color": colour, "fontsize": 7, "va": "center"}
        for place, mean in zip(places, means, strict=True):
            ax.text(1.01, place, written(mean), **beside)
    _rows_named(ax, values)
    ax.grid(axis="x", color=GREY, alpha=0.3)
    _legend_above(fig, ax, min(len(names), 4))
    _plain(ax, title, x_name)
    return fig, ax


def by_task(values: Mapping[str, Mapping[str, tuple[float, float]]], title: str) -> Figure:
    """Mean accuracies in [0, 1] by task and method, and half their intervals; infinite ones are not drawn."""
    fig, ax = _intervals(values, title, "accuracy", "{:.1%}".format)
    ax.set_xlim(max(0, ax.get_xlim()[0]), 1.005)
    _percent(ax.xaxis)
    return fig.described(f"{title}, means with intervals.", _listed(values, lambda pair: f"{pair[0]:.0%}"))


def differences(values: Mapping[str, Mapping[str, tuple[float, float]]], title: str) -> Figure:
    """As `by_task`, of differences as shares, in percentage points beside a line at zero."""
    fig, ax = _intervals(values, title, "percentage points", lambda mean: f"{100 * mean:+.1f}")
    ax.axvline(0, color="black", lw=0.8)
    ax.xaxis.set_major_formatter(PercentFormatter(1, None, symbol=""))
    said = _listed(values, lambda pair: f"{100 * pair[0]:+.1f} ± {100 * pair[1]:.1f}")
    return fig.described(f"{title}, mean differences in points with intervals.", said)


def scatter(points: Mapping[str, tuple[float, float]], title: str, x_name: str, y_name: str) -> Figure:
    """Named points; y is logarithmic."""
    fig, ax = _figure(size=(WIDTH, 3.4))
    for (name, (x, y)), (colour, _), marker in zip(points.items(), cycle(POINTS), cycle("os^Dv")):
        ax.plot(x, y, marker, color=colour, ms=7, label=name)
    ax.set_yscale("log")
    ax.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    ax.set_xlim(0, None)
    ax.grid(color=GREY, alpha=0.3)
    fig.legend(loc="outside right center", frameon=False, fontsize=9)
    _plain(ax, title, x_name, y_name)
    said = [f"{name} {x:.3g}, {y:.2g}" for name, (x, y) in points.items()]
    return fig.described(f"{title}, points of {x_name} and {y_name}:", said)


def saliency(
    pictures: Sequence,
    gradients: Sequence | Mapping[str, Sequence],
    titles: Sequence[str],
    what: str = "the size of the gradient",
) -> Figure:
    """Pictures above the largest of each pixel's gradients `[H, W, C]`, in a row, or in one for each name."""
    rows = gradients if isinstance(gradients, Mapping) else {"": gradients}
    side = min(2.0, WIDTH / len(pictures))
    fig, axes = _grid(1 + len(rows), len(pictures), (side * len(pictures), side * (1 + len(rows)) + 0.6))
    for ax, picture, title in zip(axes[0], pictures, titles, strict=True):
        _picture(ax, picture, _wrapped(title))
    where = []
    for below, (name, values) in zip(axes[1:], rows.items(), strict=True):
        below[0].text(-0.04, 0.5, name, rotation=90, ha="right", va="center", transform=below[0].transAxes)
        for ax, gradient, title in zip(below, values, titles, strict=True):
            size = np.abs(np.asarray(gradient)).max(axis=-1)
            ax.imshow(size, cmap="magma")
            row, place = np.unravel_index(size.argmax(), size.shape)
            where.append(f"{name} {shorten(title)}: row {row}, column {place}".strip())
    return fig.described(f"Pictures above maps of {what}, which is largest at", where)
