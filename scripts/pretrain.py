"""Train BiT-XS-R14x0.5 upstream on Glyph-1k, from nothing but the installed dependencies.

    python scripts/pretrain.py                 choose the classes, train, evaluate, write to data/
    python scripts/pretrain.py --steps 50 --output /tmp/trial --work /tmp/trial     a short trial

Two CPU cores need about 45 minutes. The run is seeded, and resumes where it was stopped: every step
draws its batch from its own number, so an interrupted run sees what an unbroken one would have.
"""

from __future__ import annotations

import argparse
import os
import unicodedata
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from bitlib import datasets, features, images, zoo
from bitlib.model import UNITS, BiT
from bitlib.writing import replacing

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


def batches(masks, labels, batch_size, seed, start, steps):
    """Batches of step `start` to `steps`; each class equally often, each step drawn from its number."""
    counts = tf.constant(np.bincount(labels, minlength=NUM_CLASSES), tf.int32)
    firsts = tf.cumsum(counts, exclusive=True)
    masks = tf.constant(masks)

    def batch(step):
        draws = tf.random.experimental.stateless_split(tf.stack([seed, step]), 3)
        classes = tf.random.stateless_uniform([batch_size], draws[0], 0, NUM_CLASSES, tf.int32)
        which = tf.random.stateless_uniform([batch_size], draws[1])
        count = tf.gather(counts, classes)
        index = tf.gather(firsts, classes) + tf.cast(which * tf.cast(count, tf.float32), tf.int32)
        return datasets.augment_glyphs(tf.gather(masks, index), draws[2]), classes

    steps = tf.data.Dataset.range(start, steps, output_type=tf.int32)
    return steps.map(batch, num_parallel_calls=2, deterministic=True).prefetch(4)


def accuracy(model, characters, fonts, seed=None) -> tuple[float, int]:
    """Top-1 on glyphs of `fonts`, black on white, or augmented where a seed is given; and their number."""
    masks, labels = datasets.glyph_masks(characters, fonts)
    if seed is None:
        images = np.repeat(1 - masks[..., None] / np.float32(127.5), 3, axis=-1)
    else:
        order = np.random.default_rng(seed).permutation(len(masks))
        masks, labels = masks[order], labels[order]
        images = datasets.augment_glyphs(tf.constant(masks), (seed, seed)).numpy()
    return float((model.predict(images, 256, verbose=0).argmax(-1) == labels).mean()), len(labels)


def evaluate(model, characters):
    """The numbers of data/README.md: glyphs of seen and unseen fonts, and a probe on handwritten digits."""
    for title, fonts in (
        ("training fonts", datasets.TRAINING_FONTS),
        ("unseen styles", datasets.UNSEEN_STYLES),
        ("unseen typeface", datasets.UNSEEN_TYPEFACES),
    ):
        clean, count = accuracy(model, characters, fonts)
        augmented, _ = accuracy(model, characters, fonts, seed=1)
        print(f"{title}: {clean:.1%} clean, {augmented:.1%} augmented, {count} glyphs", flush=True)

    from sklearn.datasets import load_digits

    pictures, targets = datasets.digits()
    batch = images.batch(pictures, zoo.card(NAME))
    keras.utils.set_random_seed(0)
    untrained = BiT(UNITS[14], 0.5, None)
    for title, vectors in (
        ("raw pixels", load_digits().data / 16),
        ("features of a random network", features.extract(untrained, batch)),
        ("features of BiT-XS", features.extract(model, batch)),
    ):
        means = [features.few_shot(vectors, targets, shots).mean() for shots in (1, 5, 10, 50)]
        print(f"digits, {title}: " + " | ".join(f"{mean:.1%}" for mean in means), flush=True)


def rounded(array: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest value with `ROUNDED_BITS` bits of fraction, so that it zips well."""
    drop = 23 - ROUNDED_BITS
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + (1 << (drop - 1))) >> drop << drop
    return bits.astype(np.uint32).view(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=8_500)
    parser.add_argument("--batch-size", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1912)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--output", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path("build/pretrain"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(options.seed)
    characters = choose_classes()
    masks, labels = datasets.glyph_masks(characters, datasets.TRAINING_FONTS)
    print(
        f"{len(characters)} classes, {len(masks)} glyphs in {len(datasets.TRAINING_FONTS)} fonts", flush=True
    )

    model = BiT(UNITS[14], 0.5, NUM_CLASSES)
    warmup = min(500, options.steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, options.steps - warmup, warmup_target=options.learning_rate, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=options.weight_decay, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    optimizer.build(model.trainable_variables)
    step = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, step=step)
    manager = tf.train.CheckpointManager(checkpoint, options.work, max_to_keep=2)
    if manager.restore_or_initialize():
        print(f"resuming at step {int(step)}", flush=True)

    @tf.function
    def train_step(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(loss)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        correct = tf.equal(tf.argmax(logits, -1, tf.int32), labels)
        return loss, tf.reduce_mean(tf.cast(correct, tf.float32))

    progress = tqdm(initial=int(step), total=options.steps, unit="step", mininterval=10)
    losses, hits = [], []
    for pictures, targets in batches(
        masks, labels, options.batch_size, options.seed, int(step), options.steps
    ):
        loss, hit = train_step(pictures, targets)
        losses.append(float(loss))
        hits.append(float(hit))
        step.assign_add(1)
        progress.update()
        if int(step) % options.save_every == 0:
            progress.set_postfix_str(f"loss {np.mean(losses):.3f}, top-1 {np.mean(hits):.1%}")
            losses, hits = [], []
            manager.save()
    progress.close()

    arrays = {v.path: rounded(v.numpy()) for v in model.variables}
    for variable in model.variables:
        variable.assign(arrays[variable.path])
    weights = options.output / f"{NAME}.npz"
    with replacing(weights) as temporary:
        np.savez_compressed(temporary, **arrays)
    with replacing(options.output / "glyph1k_names.txt") as temporary:
        temporary.write_text("".join(f"{unicodedata.name(c)}\n" for c in characters))
    print(f"{weights.name}: {weights.stat().st_size / 1e6:.2f} MB", flush=True)
    evaluate(model, characters)


if __name__ == "__main__":
    main()
