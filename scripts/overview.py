"""Draw the picture that the README opens with, from the bundled model: docs/overview.png.

    python scripts/overview.py

All four panels show what is computed or stored: arrays of the file, the port beside the reference, an answer,
and accuracies of `data/small_vtab.csv`.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import bitlib
from bitlib import datasets, images, labels, reference
from bitlib.datasets import tasks
from bitlib.pages import vtab

ROOT = Path(__file__).parent.parent
BLUE, GREY = "#1f4e8c", "#9aa5b1"


def arrays_of_a_file(ax, arrays):
    names = [name for name in arrays if "block1/unit01" in name or "head" in name or "root" in name]
    lines = []
    for name in names[:11]:
        shape = "×".join(map(str, arrays[name].shape))
        short = (
            name.removeprefix("resnet/").replace("standardized_conv2d", "conv").replace("group_norm", "norm")
        )
        lines.append(f"{short:<30} {shape:>11}")
    ax.text(0, 1, "\n".join([*lines, "…"]), family="monospace", size=7, va="top", linespacing=1.75)
    ax.axis("off")


def agreement(ax, arrays, model):
    image = np.random.default_rng(1912).uniform(-1, 1, (1, 64, 64, 3)).astype("float32")
    ours, expected = model(image).numpy()[0], reference.forward(arrays, image)[0]
    ax.plot(expected, ours, ".", color=BLUE, markersize=3)
    exponent = np.floor(np.log10(np.abs(ours - expected).max() / np.abs(expected).max()))
    ax.text(
        0.05,
        0.9,
        f"1000 logits, differences\nbelow $10^{{{exponent + 1:.0f}}}$ of their scale",
        transform=ax.transAxes,
        va="top",
        size=8,
    )
    ax.set(xlabel="NumPy, float64", ylabel="Keras 3, float32")


def answer(ax, model):
    picture = 255 - datasets.render_glyph("Ω", datasets.UNSEEN_STYLES[1])
    logits = model(images.batch([picture], model.card))
    names, _ = labels.of_card(model.card, model.num_classes)
    (best,) = labels.top_k(labels.probabilities(logits, model.card.activation), names, 3)
    ax.imshow(picture, extent=(0.3, 0.7, 0.42, 1), cmap="gray", vmin=0, vmax=255, aspect="auto")
    for row, (name, probability) in enumerate(best):
        y = 0.3 - 0.13 * row
        ax.barh(y - 0.045, probability, 0.025, color=BLUE if row == 0 else GREY)
        ax.text(0, y, f"{name.lower()}  {probability:.0%}", size=8, va="center")
    ax.set(xlim=(0, 1), ylim=(-0.06, 1))
    ax.axis("off")


def learnt(fig, ax):
    by = vtab.by_task(vtab.stored(), tuple(vtab.METHODS))["counting"]
    means = {name: np.mean(values) for name, values in by.items()}
    for row, (name, value) in enumerate(sorted(means.items(), key=lambda item: item[1])):
        ax.barh(row, value, 0.55, color=BLUE if name == "fine-tuned" else GREY)
        ax.text(
            0.02,
            row,
            f"{name}  {value:.0%}",
            va="center",
            size=8,
            color="white" if name == "fine-tuned" else "black",
        )
    ax.set(xlim=(0, 1), ylim=(-0.5, 4.6), yticks=[], xticks=[0, 0.5, 1], xticklabels=["0", "50 %", "100 %"])
    pictures, truth, _ = tasks.counting()
    for place, count in enumerate((1, 2, 3, 4)):
        inset = ax.inset_axes((0.25 * place, 0.66, 0.23, 0.3))
        inset.imshow(
            pictures[list(truth).index(count - min(truth) if min(truth) else count - 1)], cmap="gray"
        )
        inset.set_title(f"{count}", size=8, pad=2)
        inset.axis("off")


def main():
    source = bitlib.checkpoint.find(bitlib.zoo.BUNDLED)
    arrays, model = bitlib.checkpoint.read(source.path), bitlib.load(source)
    fig, axes = plt.subplots(
        1, 4, figsize=(12, 3), dpi=160, width_ratios=(1.3, 1, 1, 1.1), layout="constrained"
    )
    titles = (
        "A file of arrays …",
        "… becomes a model, checked …",
        "… that names what it sees …",
        "… and learns, here to count digits",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, size=10, loc="left", color=BLUE)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7)
    arrays_of_a_file(axes[0], arrays)
    agreement(axes[1], arrays, model)
    answer(axes[2], model)
    learnt(fig, axes[3])
    fig.savefig(ROOT / "docs" / "overview.png")


if __name__ == "__main__":
    main()
