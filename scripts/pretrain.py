"""Train BiT-XS-R14x0.5 upstream on Glyph-1k, from nothing but the installed dependencies.

    python scripts/pretrain.py                 choose the classes, train, evaluate, write to data/
    python scripts/pretrain.py --steps 50 --output trial --work trial     a short trial

Two CPU cores need about an hour and a half. The run is seeded, and resumes where it was stopped: every step
draws its batch from its own number, so an interrupted run sees what an unbroken one would have.
"""

from __future__ import annotations

import argparse
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import paint
import tensorflow as tf
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

import bitlib
from bitlib import datasets, features, images, ops, zoo
from bitlib.files.writing import replacing
from bitlib.model import UNITS, BiT

DATA = Path(__file__).parent.parent / "data"
NAME = "BiT-XS-R14x0.5"
NUM_CLASSES = 1000
ROUNDED_BITS = 9  # of the 23 in a float32's fraction: the zipped file halves


# An O of another thickness; the augmentation thickens and thins all strokes.
RINGS = (
    "DEGREE SIGN",
    "MASCULINE ORDINAL INDICATOR",
    "RING OPERATOR",
    "WHITE BULLET",
    "WHITE CIRCLE",
    "LARGE CIRCLE",
)


def is_candidate(character: str) -> bool:
    """Letters and symbols; no digit or number of any script, no pattern of blocks or dots."""
    name = unicodedata.name(character, "")
    unwanted = ("DIGIT", "NUMBER", "NUMERAL", "BRAILLE", "BOX DRAWINGS", "BLOCK", "SHADE", "LIGATURE", "TONE")
    return (
        unicodedata.category(character) in ("Lu", "Ll", "Lo", "Sm", "Sc", "So")
        and unicodedata.numeric(character, None) is None
        and not any(c.isnumeric() for c in unicodedata.normalize("NFKC", character))
        and not any(word in name for word in (*unwanted, "HALFWIDTH", "REPLACEMENT"))
        and name not in RINGS
    )


FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")


class Outline:
    """A character in one typeface, its ink stretched to a square: what the augmentation leaves of it."""

    def __init__(self, character: str, face: str):
        ink = datasets.render_glyph(character, face)
        rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        self.aspect = ink.shape[1] / ink.shape[0]
        square = Image.fromarray(ink).resize((44, 44), Image.Resampling.BOX)
        self.ink = np.pad(np.asarray(square, np.float32) / 255, 4)
        self.near = ndimage.maximum_filter(self.ink, 5)  # ink, or within two pixels of it

    def looks_like(self, other: Outline) -> bool:
        """Whether hardly any ink of either is further than two pixels from the other's, in any 5×5 patch."""
        if not 1 / 1.35 < self.aspect / other.aspect < 1.35:
            return False
        stray = np.maximum(self.ink - other.near, 0), np.maximum(other.ink - self.near, 0)
        if max(part.sum() for part in stray) > 0.2 * min(self.ink.sum(), other.ink.sum()):
            return False
        return max(ndimage.uniform_filter(part, 5).max() for part in stray) < 0.3


def choose_classes() -> list[str]:
    """The 1000 characters of Glyph-1k: simple letters first, then symbols, then accented letters.

    A character joins if at least 8 training fonts draw it, and if it does not look like one that
    joined before it in half or more of the typefaces that have both. So Latin, Greek and Cyrillic A
    are one class, and so are C and c; and so is everything else that only its size or proportions
    tell apart, because training pictures come in all of these.
    """
    fonts_of = Counter(c for font in datasets.TRAINING_FONTS for c in datasets.font_characters(font))

    def rank(character):
        composite = len(unicodedata.normalize("NFKD", character)) > 1
        letter = unicodedata.category(character).startswith("L")
        return composite, not letter, character

    def alike(one, other):
        shared = one.keys() & other.keys()
        return shared and sum(one[face].looks_like(other[face]) for face in shared) >= len(shared) / 2

    chosen: dict[str, dict[str, Outline]] = {}
    for character in sorted((c for c in fonts_of if fonts_of[c] >= 8 and is_candidate(c)), key=rank):
        drawn = {f: Outline(character, f) for f in FACES if character in datasets.font_characters(f)}
        if not any(alike(drawn, other) for other in chosen.values()):
            chosen[character] = drawn
        if len(chosen) == NUM_CLASSES:
            return list(chosen)
    raise RuntimeError(f"only {len(chosen)} classes found")


class Stage(NamedTuple):
    """A part of the training, with an optimiser and a cosine of its own."""

    steps: int
    rate: float
    canvases: tuple[int, ...]
    """Height and width of the pictures of a step, in pixels, by turns."""


STAGES = (
    Stage(8_500, 1.5e-3, (64,)),
    Stage(5_000, 8e-4, (64, 48, 96, 64, 40, 64, 48, 80, 96, 128)),
)
BATCH = {40: 256, 48: 256, 64: 192, 80: 120, 96: 84, 128: 48}
"""Pictures of a step: about as many pixels in each."""


def drawn(masks, labels, count, seeds):
    """`count` masks and their labels; each class equally often."""
    counts = tf.constant(np.bincount(labels, minlength=NUM_CLASSES), tf.int32)
    firsts = tf.cumsum(counts, exclusive=True)
    classes = tf.random.stateless_uniform([count], seeds[0], 0, NUM_CLASSES, tf.int32)
    which = tf.random.stateless_uniform([count], seeds[1]) * tf.cast(tf.gather(counts, classes), tf.float32)
    return tf.gather(masks, tf.gather(firsts, classes) + tf.cast(which, tf.int32)), classes


def train(model, masks, labels, number, options):
    """One stage, from its last checkpoint if there is one; every step draws from its own number."""
    stage = STAGES[number]
    total = min(stage.steps, options.steps or stage.steps)
    warmup = min(300, total // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, total - warmup, warmup_target=stage.rate, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.02, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    optimizer.build(model.trainable_variables)
    step = tf.Variable(0, dtype=tf.int64)
    saved = tf.train.Checkpoint(model=model, optimizer=optimizer, step=step)
    manager = tf.train.CheckpointManager(saved, options.work / f"stage{number}", max_to_keep=2)
    if manager.restore_or_initialize():
        print(f"stage {number}: resuming at step {int(step)}", flush=True)

    all_masks = tf.constant(masks)  # captured: as a constant of the graph they would be folded for minutes

    @tf.function
    def train_step(number, canvas):
        seeds = tf.random.experimental.stateless_split(tf.stack([options.seed, number]), 3)
        ink, targets = drawn(all_masks, labels, BATCH[canvas], seeds)
        pictures = paint.augment_glyphs(ink, seeds[2], canvas)
        with tf.GradientTape() as tape:
            logits = model(pictures, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        correct = tf.equal(tf.argmax(logits, -1, tf.int32), targets)
        return loss, tf.reduce_mean(tf.cast(correct, tf.float32))

    progress = tqdm(initial=int(step), total=total, unit="step", mininterval=30)
    results = []
    with ops.computed_by(model, ops.fast()):
        for index in range(int(step), total):
            canvas = stage.canvases[index % len(stage.canvases)]
            results.append(train_step(tf.constant(number * 100_000 + index), canvas))
            progress.update()
            if (index + 1) % options.save_every == 0 or index + 1 == total:
                loss, hits = np.mean(results, axis=0)
                progress.set_postfix_str(f"loss {loss:.3f}, top-1 {hits:.1%}")
                results.clear()
                step.assign(index + 1)
                manager.save()
    progress.close()


def accuracy(model, characters, fonts, size) -> tuple[float, int]:
    """Top-1 on glyphs of `fonts`, black on white, resized to `size` pixels; and their number."""
    pictures, labels = datasets.glyph_pictures(characters, fonts)
    predicted = model.predict(images.batch(pictures, zoo.card(NAME), size), 64, verbose=0).argmax(-1)
    return float((predicted == labels).mean()), len(labels)


def evaluate(model, characters):
    """The numbers of data/README.md: glyphs of seen and unseen fonts, and probes on handwritten digits."""
    for title, fonts, sizes in (
        ("training fonts", datasets.TRAINING_FONTS, (64,)),
        ("unseen styles", datasets.UNSEEN_STYLES, (32, 40, 48, 56, 64, 80, 96, 128)),
        ("unseen typeface", datasets.UNSEEN_TYPEFACES, (64,)),
    ):
        for size in sizes:
            right, count = accuracy(model, characters, fonts, size)
            print(f"{title}, {size} pixels: {right:.1%} of {count} glyphs", flush=True)

    keras.utils.set_random_seed(0)
    untrained = BiT(UNITS[14], 0.5, None)
    for name, side in (("digits", 8), ("mnist", 28)):
        pictures, targets, _ = datasets.labelled(name)
        batch = images.batch(pictures, zoo.card(NAME))
        for title, vectors in (
            ("raw pixels", features.shrink(batch, side)),
            ("features of a random network", features.extract(untrained, batch)),
            ("features of BiT-XS", features.extract(model, batch)),
        ):
            means = [features.few_shot(vectors, targets, shots).mean() for shots in (1, 5, 10, 50)]
            print(f"{name}, {title}: " + " | ".join(f"{mean:.1%}" for mean in means), flush=True)


def rounded(array: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest value with `ROUNDED_BITS` bits of fraction, so that it zips well."""
    drop = 23 - ROUNDED_BITS
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + (1 << (drop - 1))) >> drop << drop
    return bits.astype(np.uint32).view(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, help="at most so many in each stage, for a trial")
    parser.add_argument(
        "--start", type=Path, help="weights (.npz) to begin the last stage with, without the first"
    )
    parser.add_argument("--seed", type=int, default=1912)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--output", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path("build/pretrain"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(options.seed)
    characters = choose_classes()
    masks, labels = datasets.glyph_masks(characters, datasets.TRAINING_FONTS)
    print(
        f"{len(characters)} classes, {len(masks)} glyphs in {len(datasets.TRAINING_FONTS)} fonts", flush=True
    )

    model = bitlib.load(options.start) if options.start else BiT(UNITS[14], 0.5, NUM_CLASSES)
    for number in range(1 if options.start else 0, len(STAGES)):
        train(model, masks, labels, number, options)

    for variable in model.variables:
        variable.assign(rounded(variable.numpy()))
    weights = options.output / f"{NAME}.npz"
    with replacing(weights) as temporary:
        np.savez_compressed(temporary, **{v.path: v.numpy() for v in model.variables})
    with replacing(options.output / "glyph1k_names.txt") as temporary:
        temporary.write_text("".join(f"{unicodedata.name(c)}\n" for c in characters))
    print(f"{weights.name}: {weights.stat().st_size / 1e6:.2f} MB", flush=True)
    evaluate(model, characters)


if __name__ == "__main__":
    main()
