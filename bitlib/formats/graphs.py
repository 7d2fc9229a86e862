"""A model as functions that TensorFlow can save: one to train on, one that infers fast, one that reads files.

What TensorFlow's decoders pass over and Pillow does not is read from the file here: the orientation, and the
colour of a PNG that is transparent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import keras
import tensorflow as tf
from tensorflow import Tensor
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.saved_model.save_context import save_context

from bitlib import labels, ops
from bitlib.images import MAX_PIXELS
from bitlib.inputs import FARTHEST, SMALLEST, check_whole
from bitlib.model import BiT
from bitlib.zoo import Card

ops.require_tensorflow("bitlib.export")

INPUTS = tf.TensorSpec((None, None, None, 3), tf.float32, "inputs")  # of every export


@contextmanager
def without_log() -> Iterator[None]:
    """TensorFlow logs errors alone."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


class _Reusable(tf.Module):
    """The object that `tf.saved_model.save` writes, with names that tf.Module would derive."""

    variables: Any = None
    trainable_variables: Any = None
    regularization_losses: Any = None


def function(model: BiT, input_range: tuple[float, float]) -> tuple[Callable, str]:
    """The model as one function of what callers feed, and the name of what comes out."""
    output = "features" if model.head is None else "logits"
    return lambda inputs: model(scaled(inputs, input_range)), output


def scaled(inputs: tf.Tensor, input_range: tuple[float, float]) -> tf.Tensor:
    """What callers feed, in [-1, 1]."""
    return inputs if tuple(input_range) == (-1, 1) else 2 * inputs - 1


def checked(inputs: tf.Tensor, input_range: tuple[float, float]) -> tf.Tensor:
    """Images that a network can take, or an `InvalidArgumentError`: of a shape that is not `INPUTS`', which a
    loaded signature does not compare, and of finite values beyond `FARTHEST`, in [-1, 1]."""
    # What is declared is forgotten here, else TensorFlow would leave the check out as being true.
    inputs = tf.raw_ops.PlaceholderWithDefault(input=inputs, shape=tf.TensorShape(None))
    shape = tf.shape(inputs)
    sides = tf.concat([shape, [0] * 4], 0)
    right = (tf.size(shape) == 4) & (sides[3] == 3) & (tf.reduce_min(sides[1:3]) >= SMALLEST)
    trouble = f"inputs: expected float32 [N, H, W, 3], H and W at least {SMALLEST}; received shape"
    extent = tf.stack([reduce(tf.reshape(inputs, [-1]), 0) for reduce in (tf.reduce_min, tf.reduce_max)])
    far = tf.math.is_finite(extent) & (abs(scaled(extent, input_range)) > FARTHEST)
    beyond = f"inputs: expected values in {list(input_range)}; received from and to"
    near = tf.debugging.Assert(~tf.reduce_any(far), [beyond, extent])
    with tf.control_dependencies([tf.debugging.Assert(right, [trouble, shape]), near]):
        return tf.ensure_shape(tf.identity(inputs), INPUTS.shape)


def reusable(model: BiT, input_range: tuple[float, float]) -> tuple[tf.Module, Callable]:
    """A module to load, call and train further, and its signature; both share one graph."""
    compute, output = function(model, input_range)
    signature = tf.function(
        lambda inputs: {output: compute(checked(inputs, input_range))}, input_signature=[INPUTS]
    )
    return callable_as(signature, lambda results: results[output], *_values(model.variables)), signature


def _values(variables: Sequence[keras.Variable]) -> tuple[list[tf.Variable], list[tf.Variable]]:
    """TensorFlow's variables behind those of Keras: all, and those to train."""
    return [variable.value for variable in variables], [v.value for v in variables if v.trainable]


def callable_as(
    signature: Callable, result: Callable, variables: Sequence, trainable_variables: Sequence
) -> tf.Module:
    """The reusable module of a signature of `INPUTS`, to be saved with it. A call gives `result` of what the
    signature gives; in training, too: one graph serves."""
    module = _Reusable()
    module.__call__ = tf.function(lambda inputs, training=False: result(signature(inputs)))
    # Traced as `save` would trace it; else it would trace all again, and hold both graphs.
    with save_context(tf.saved_model.SaveOptions()):
        for training in (False, True):
            module.__call__.get_concrete_function(INPUTS, training=training)
    module.variables = list(variables)
    module.trainable_variables = list(trainable_variables)
    module.regularization_losses = []
    return module


def stages(model: BiT, input_range: tuple[float, float]) -> tuple[tf.Module, Callable]:
    """As `reusable`, of the feature maps by name, without the last norm and the head."""

    def compute(inputs):
        maps = model.feature_maps(scaled(checked(inputs, input_range), input_range))
        return {name: tf.cast(value, tf.float32) for name, value in maps.items()}

    signature = tf.function(compute, input_signature=[INPUTS])
    layers: list[keras.Layer] = [model.root, *chain(*model.blocks)]
    used = [variable for layer in layers for variable in layer.variables]
    return callable_as(signature, lambda results: results, *_values(used)), signature


def frozen(model: BiT, input_range: tuple[float, float], jit_compile: bool) -> tuple[tf.Module, Callable]:
    """A module for inference, with constants for weights, and its signature."""
    compute, output = function(model, input_range)
    operations = ops.fast(written_gradients=False, compiled=True) if jit_compile else ops.PLAIN
    with ops.constant_kernels(model, operations):
        traced = tf.function(compute, input_signature=[INPUTS]).get_concrete_function()
        constant = convert_variables_to_constants_v2(traced)
    module = tf.Module()
    module.__call__ = tf.function(_in_halves(constant, input_range), input_signature=[INPUTS])
    return module, tf.function(lambda inputs: {output: module.__call__(inputs)}, input_signature=[INPUTS])


def _in_halves(compute, input_range):
    """The same function of the two halves of a batch side by side: while cores wait in one, others go on."""

    def halves(inputs):
        inputs = checked(inputs, input_range)
        count = tf.shape(inputs)[0]
        size = (count + 1) // 2

        def add(start, results):
            (result,) = compute(inputs[start : start + size])
            return start + size, tf.concat([results, result], 0)

        none = tf.zeros((0, compute.outputs[0].shape[-1]))
        any_number = (tf.TensorShape(()), tf.TensorShape((None, none.shape[-1])))
        return tf.while_loop(lambda start, _: start < count, add, (0, none), any_number, 2)[1]

    return halves


# TF Serving's binary values have names that end so.
CONTENTS = tf.TensorSpec((None,), tf.string, "image_bytes")


def signature(
    compute: Callable, model: BiT, input_range: tuple[float, float], top: int = 5
) -> tf.types.experimental.PolymorphicFunction:
    """A function from files of pictures to the likeliest classes, to be saved as a signature.

    Args:
        compute: images, float32 `[N, H, W, 3]` in `input_range` -> a dictionary that has their `logits`.
        model: its card says how pictures are preprocessed and what the classes are called.
        input_range, top: what `compute` takes, and how many classes to give, at most.

    Returns:
        A function of `image_bytes`, string `[N]`: the contents of JPEG or PNG files. It gives, the best class
        first, `probabilities` float32 `[N, top]`, `names` string `[N, top]` and `classes` int32 `[N, top]`. A
        content that is no such file, or corrupt, or larger than `bitlib.images.MAX_PIXELS`, is an
        `InvalidArgumentError`, for the whole batch. Raises: as `check`.
    """
    card, names = check(model, top)
    count = min(top, len(names))
    spec = tf.TensorSpec((card.resolution, card.resolution, 3), tf.float32)
    turn = tf.sigmoid if card.activation == "sigmoid" else tf.nn.softmax

    def prepared(content):
        image = prepare(content, card) / 127.5 - 1
        return image if tuple(input_range) == (-1, 1) else (image + 1) / 2

    def classify(image_bytes):
        logits = compute(tf.map_fn(prepared, image_bytes, fn_output_signature=spec))["logits"]
        classes = tf.math.top_k(logits, count).indices
        shares = tf.cast(tf.gather(turn(tf.cast(logits, tf.float64)), classes, batch_dims=1), tf.float32)
        return {"probabilities": shares, "names": tf.gather(tf.constant(names), classes), "classes": classes}

    return tf.function(classify, input_signature=[CONTENTS])


def check(model: BiT, top: int) -> tuple[Card, tuple[str, ...]]:
    """The card of a model and the names of its classes. Raises: ValueError, if it has no head, no card or no
    class list on this machine, or `top` is below 1."""
    if model.num_classes is None:
        raise ValueError("serving_bytes: expected a model with a head, this one gives features")
    if model.card is None:
        expected = "a model with a card, which says how to preprocess pictures; bitlib.load gives one"
        raise ValueError(f"serving_bytes: expected {expected}")
    check_whole("top", top)
    card = model.card
    if card.labels and not card.class_names and not labels.are_here(card.labels):
        names: tuple[str, ...] = ()
        reason = f"{card.labels} is not on this machine; bitlib.labels.names({card.labels!r}) gets it"
    else:
        names, reason = labels.of_card(card, model.num_classes)
    if reason and card.labels:
        way = "name them yourself: model.card = dataclasses.replace(model.card, class_names=(...))"
        raise ValueError(f"serving_bytes: no names of classes: {reason}; or {way}")
    return card, names


def prepare(content: Tensor, card: Card) -> Tensor:
    """As `bitlib.images.prepare`, of a file's content, a string `[]`: float32 `[resolution, resolution, 3]`,
    levels in [0, 255]."""
    levels = tf.ensure_shape(turned(decoded(content), orientation(content)), (None, None, 3))
    side = card.resolution
    size = (side, side)
    if card.short_side:
        sides = tf.cast(tf.shape(levels)[:2], tf.float64)
        sides = tf.round(sides * (card.short_side / tf.reduce_min(sides)))
        size = tf.maximum(tf.cast(sides, tf.int32), card.short_side)
    few = tf.reduce_prod(tf.cast(size, tf.int64)) <= MAX_PIXELS
    with _provided(few, f"a picture is too long for a short side of {card.short_side}"):
        resized = tf.image.resize(levels, size, "bilinear", antialias=card.antialias)
    top, left = tf.unstack((tf.shape(resized)[:2] - side) // 2)
    return tf.ensure_shape(resized[top : top + side, left : left + side], (side, side, 3))


def decoded(content: Tensor) -> Tensor:
    """The content of a JPEG or PNG file, a string `[]` -> uint8 `[H, W, 3]`, transparency laid on white."""
    is_png = tf.strings.substr(content, 0, 8) == b"\x89PNG\r\n\x1a\n"
    with _provided(is_png | tf.io.is_jpeg(content), "a picture is neither a JPEG nor a PNG"):
        pixels = _pixels(content, is_png)
    with _provided(pixels <= MAX_PIXELS, f"a picture is larger than {MAX_PIXELS:,} pixels"):
        # JPEGs as Pillow computes them; TensorFlow's default is faster, and differs in the last digit.
        exact = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
        return tf.cond(is_png, lambda: _from_png(content), lambda: tf.io.decode_jpeg(content, **exact))


def _provided(condition, trouble: str):
    """A context whose operations run only if a condition holds; where it does not, the trouble is raised."""
    return tf.control_dependencies([tf.debugging.Assert(condition, [f"image_bytes: {trouble}"])])


def _pixels(content, is_png) -> Tensor:
    """Height times width, as the file's header has them."""

    def of_png():
        return tf.reduce_prod(_number(tf.reshape(_octets(content, 16, 8), (2, 4)), True))

    of_jpeg = tf.image.extract_jpeg_shape
    return tf.cond(is_png, of_png, lambda: tf.reduce_prod(of_jpeg(content, tf.int64)[:2]))


def _from_png(content) -> Tensor:
    depth, kind = tf.unstack(_octets(content, 24, 2))
    is_grey = kind == 0

    def of_16_bits():  # TensorFlow's 8 bits of them are cut off, not rounded
        levels = tf.cast(tf.io.decode_png(content, dtype=tf.uint16), tf.float32) / 65535
        return tf.cast(tf.round(levels * 255), tf.uint8)

    # Channels as they are: where TensorFlow adds an alpha to pictures of less than 8 bits, it is nearly zero.
    levels = tf.cond(is_grey & (depth == 16), of_16_bits, lambda: tf.io.decode_png(content))
    channels = tf.shape(levels)[2]
    # One colour may be transparent. Pillow looks for the low bytes of it, and in 16-bit grey for none.
    named = _behind(tf.strings.split(content, b"IDAT", maxsplit=1)[0], b"tRNS")
    has_one = (tf.strings.length(named) > 0) & (is_grey & (depth < 16) | (kind == 2))
    colour = _octets(named, 0, 6)[1::2]
    colour = tf.where(is_grey & (depth == 1), 255 * colour, colour)[: tf.minimum(channels, 3)]
    is_clear = has_one & tf.reduce_all(levels[..., :3] == colour, -1, keepdims=True)
    levels = tf.where(is_clear, tf.constant(255, tf.uint8), levels)
    colours = channels - 1 + channels % 2
    alpha = tf.cond(colours < channels, lambda: tf.cast(levels[..., -1:], tf.float32) / 255, lambda: 1.0)
    levels = tf.cast(levels[..., :colours], tf.float32) * alpha + 255 * (1 - alpha)
    shape = tf.concat([tf.shape(levels)[:2], [3]], 0)
    return tf.cast(tf.round(tf.broadcast_to(levels, shape)), tf.uint8)


def turned(levels: Tensor, orientation: Tensor) -> Tensor:
    """A picture `[H, W, 3]` as EXIF's orientation, 1 to 8, says that it is to be seen."""

    def where(orientations, change):
        nonlocal levels
        chosen = tf.reduce_any(orientation == tf.constant(orientations, orientation.dtype))
        levels = tf.cond(chosen, lambda: change(levels), lambda: levels)

    where((5, 6, 7, 8), lambda x: tf.transpose(x, (1, 0, 2)))
    where((2, 3, 6, 7), lambda x: x[:, ::-1])
    where((3, 4, 7, 8), lambda x: x[::-1])
    return levels


def orientation(content: Tensor) -> Tensor:
    """The orientation, int64 1 to 8, in the EXIF data of a JPEG or PNG file, else in its XMP; 1 if none.

    EXIF data, behind a mark, are a TIFF file: its byte order, the place of its first folder, and in that
    entries of twelve bytes (tag, type, number of values, value).
    """
    head = tf.strings.substr(content, 0, 1 << 17)
    mark = tf.where(tf.io.is_jpeg(content), b"Exif\0\0", b"eXIf")
    data = tf.cast(tf.io.decode_raw(_behind(head, mark) + b"\0" * 16, tf.uint8), tf.int64)
    from_high = data[0] == ord("M")
    folder = tf.minimum(_number(data[4:8], from_high), tf.size(data, tf.int64) - 2)
    count = _number(data[folder : folder + 2], from_high)
    entries = data[folder + 2 : folder + 2 + 12 * count]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], (-1, 12))
    is_it = _number(entries[:, :2], from_high) == 0x0112  # EXIF's tag of the orientation
    value = tf.reduce_max(tf.where(is_it, _number(entries[:, 8:10], from_high), 0))
    text = tf.cast(_octets(_behind(head, b"tiff:Orientation"), 0, 3), tf.int64)  # of XMP: `>6` or `="6`
    number = tf.where(text[0] == ord(">"), text[1], tf.where(text[0] == ord("="), text[2], 0)) - ord("0")
    value = tf.where(tf.reduce_any(is_it), value, number)
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _behind(content, mark) -> Tensor:
    """What stands behind the first of such a mark, a string `[]`; empty if there is none."""
    return tf.concat([tf.strings.split(content, mark, maxsplit=1), [b""]], 0)[1]


def _octets(content, start: int, count: int) -> Tensor:
    """Bytes of a string, uint8 `[count]`, as if zeros stood behind it."""
    octets = tf.strings.substr(content + b"\0" * (start + count), start, count)
    return tf.ensure_shape(tf.io.decode_raw(octets, tf.uint8), (count,))


def _number(octets, from_high) -> Tensor:
    """Bytes `[..., n]` as a number each, int64, the high byte first or last."""
    places = tf.constant(256, tf.int64) ** tf.range(tf.shape(octets)[-1], dtype=tf.int64)
    places = tf.where(from_high, places[::-1], places)
    return tf.reduce_sum(tf.cast(octets, tf.int64) * places, -1)
