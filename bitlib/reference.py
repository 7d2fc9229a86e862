"""The whole network in NumPy and float64: slow, short, and the oracle every port is checked against.

Or in any namespace with NumPy's names, such as `jax.numpy`. It shares no code with `bitlib.model`, and
follows the paper (arXiv 1912.11370, section 2.1; arXiv 1603.05027; 1803.08494; 1903.10520) step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras
    from numpy.typing import ArrayLike

Arrays = Mapping[str, np.ndarray]


def standardize(kernel: np.ndarray, xp: Any = np) -> np.ndarray:
    """Zero mean and unit variance for each output channel of an HWIO kernel."""
    kernel = xp.array(kernel, dtype=float)
    kernel -= kernel.mean(axis=(0, 1, 2))
    kernel /= xp.sqrt(kernel.var(axis=(0, 1, 2)) + 1e-10)
    return kernel


def pad(x: np.ndarray, by: int, xp: Any = np) -> np.ndarray:
    """Surround `[N, H, W, C]` with zeros."""
    return xp.pad(x, ((0, 0), (by, by), (by, by), (0, 0)))


def windows(x: np.ndarray, size: int, stride: int) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """For each place in a size×size window, the `[N, H', W', C]` of pixels that fall on it."""
    height, width = (n - size + 1 for n in x.shape[1:3])
    for i in range(size):
        for j in range(size):
            yield (i, j), x[:, i : i + height : stride, j : j + width : stride]


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int = 1, xp: Any = np) -> np.ndarray:
    """A convolution with a standardised kernel, padded on both sides by half its size."""
    size = len(kernel)
    kernel = standardize(kernel, xp)
    padded = pad(x, size // 2, xp)
    return sum(pixels @ kernel[place] for place, pixels in windows(padded, size, stride))


def group_norm_relu(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, xp: Any = np) -> np.ndarray:
    """Normalise each image over 32 groups of channels, scale and shift each channel, rectify."""
    grouped = x.reshape(*x.shape[:3], 32, x.shape[3] // 32)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = grouped.var(axis=(1, 2, 4), keepdims=True)
    normal = ((grouped - mean) / xp.sqrt(variance + 1e-5)).reshape(x.shape)
    return xp.maximum(normal * gamma + beta, 0)


def unit(x: np.ndarray, arrays: Arrays, prefix: str, stride: int, xp: Any = np) -> np.ndarray:
    """A pre-activation bottleneck; the first of a block projects its shortcut."""

    def norm(x, name):
        gamma, beta = (arrays[f"{prefix}/{name}/group_norm/{p}"] for p in ("gamma", "beta"))
        return group_norm_relu(x, gamma, beta, xp)

    def kernel(name):
        return arrays[f"{prefix}/{name}/standardized_conv2d/kernel"]

    residual = norm(x, "a")
    projects = f"{prefix}/a/proj/standardized_conv2d/kernel" in arrays
    shortcut = convolve(residual, kernel("a/proj"), stride, xp) if projects else x
    residual = convolve(residual, kernel("a"), 1, xp)
    residual = convolve(norm(residual, "b"), kernel("b"), stride, xp)
    return shortcut + convolve(norm(residual, "c"), kernel("c"), 1, xp)


def root(arrays: Arrays, images: ArrayLike, xp: Any = np) -> np.ndarray:
    """The 7×7 convolution and the pool, which has zeros, not minus infinity, at the border."""
    kernel = arrays["resnet/root_block/standardized_conv2d/kernel"]
    x = convolve(xp.asarray(images, dtype=float), kernel, 2, xp)
    return xp.max(xp.stack([pixels for _, pixels in windows(pad(x, 1, xp), 3, 2)]), axis=0)


def units(arrays: Arrays) -> list[tuple[str, int]]:
    """The units in their order: the path of each, and its stride."""
    paths = sorted({name.partition("/a/")[0] for name in arrays if "/a/" in name})
    return [(path, 1 if "block1" in path or "unit01" not in path else 2) for path in paths]


def pool(arrays: Arrays, x: np.ndarray, xp: Any = np) -> np.ndarray:
    """The last GroupNorm and ReLU, averaged over height and width."""
    gamma, beta = (arrays[f"resnet/group_norm/{p}"] for p in ("gamma", "beta"))
    return group_norm_relu(x, gamma, beta, xp).mean(axis=(1, 2))


def apply_head(arrays: Arrays, features: np.ndarray, xp: Any = np) -> np.ndarray:
    """The classifier: a 1×1 convolution on a 1×1 map, which is a matrix product."""
    kernel = xp.asarray(arrays["resnet/head/conv2d/kernel"], dtype=float)
    return features @ kernel[0, 0] + arrays["resnet/head/conv2d/bias"]


def forward(arrays: Arrays, images: ArrayLike, head: bool = True, xp: Any = np) -> np.ndarray:
    """Run a BiT of any depth and width.

    Args:
        arrays: a checkpoint's arrays by their published names, as `bitlib.checkpoint.read` gives.
        images: `[N, H, W, 3]` in [-1, 1].
        head: whether to apply the classifier.
        xp: the namespace to compute in: `numpy`, or one with its names, such as `jax.numpy`.

    Returns:
        `[N, num_classes]` logits, or `[N, channels]` pooled features without the head. They are
        float64, or what `xp` makes of Python's `float`: JAX float32, unless it is set otherwise.
    """
    x = root(arrays, images, xp)
    for path, stride in units(arrays):
        x = unit(x, arrays, path, stride, xp)
    features = pool(arrays, x, xp)
    return apply_head(arrays, features, xp) if head else features


def disagreement(model: keras.Model, arrays: Arrays, size: int = 64, seed: int = 0) -> float:
    """How far a Keras model is from this reference, part by part, on one random image.

    Root, units, pool and head each get what the reference has computed up to there. So a wrong part
    shows undiluted, and rounding, which a hundred random layers may amplify, does not add up.

    Args:
        model: a `bitlib.model.BiT`.
        arrays: the checkpoint's arrays; a `bitlib.checkpoint.Archive` reads them one at a time.
        size: height and width of the image, in pixels.
        seed: of its values, uniform in [-0.02, 0.02]: so small that a wrong epsilon of GroupNorm shows.

    Returns:
        The largest difference of any part's output, as a share of that output's largest value; the head
        counts if the model kept the checkpoint's. Rounding to float32 leaves about 1e-6.
    """
    from keras import ops

    image = np.random.default_rng(seed).uniform(-0.02, 0.02, (1, size, size, 3)).astype(np.float32)
    differences = []

    def compare(ours, theirs):
        ours = ops.convert_to_numpy(ours)
        differences.append(float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)))
        return theirs

    x = compare(model.root(image), root(arrays, image))
    layers = [layer for block in model.blocks for layer in block]
    for layer, (path, stride) in zip(layers, units(arrays), strict=True):
        x = compare(layer(x.astype(np.float32)), unit(x, arrays, path, stride))
    features = compare(model.pool(x.astype(np.float32)), pool(arrays, x))
    stored = arrays.get("resnet/head/conv2d/bias")
    own = ops.convert_to_numpy(model.head.convolution.bias) if model.head else None
    if stored is not None and own is not None and np.array_equal(stored, own):
        compare(model.head(features.astype(np.float32)), apply_head(arrays, features))
    return max(differences)
