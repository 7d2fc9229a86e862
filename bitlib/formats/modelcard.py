"""What is written beside an exported model: what it is, where it came from, how to feed and load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitlib import checkpoint, labels, zoo
from bitlib.model import BiT

_MARK = "`folder` is the one that this file lies in."

CARD = """# {title}

{what}

- **Weights:** {weights}
- **Input:** `inputs`, float32 `[N, height, width, 3]`, RGB in {range}; height and width at least 32.
- **Output:** {results}.{more}
- **Preprocessing:** {preprocessing}
- **Licence:** {licence}
- **Please cite:** {citation}

## How to load it

{mark}

TensorFlow alone:

    model = tf.saved_model.load(folder)
    {output} = model(images)

TensorFlow Hub{hub}:

    layer = hub.KerasLayer(folder{trainable})         # of tf_keras
    {output} = layer(images)

Keras 3, for inference:

    layer = keras.layers.TFSMLayer(folder, call_endpoint="serving_default")
    {output} = layer(images){key}
"""

_MORE = """
- **Signature `serving_bytes`:** takes `image_bytes`, string `[N]`: the contents of JPEG or PNG files; gives
  `probabilities`, `names` and `classes` of the likeliest classes, `[N, k]`, the best first."""


def text(
    model: BiT,
    input_range: tuple[float, float],
    frozen: bool,
    compiled: bool,
    serving_bytes: bool = False,
    stages: bool = False,
) -> str:
    """The card of a model that is exported so, with the arguments of `bitlib.export`, as Markdown."""
    card, source, published = model.card, model.source, _published(model)
    weights = "made here, not loaded from a file"
    if source and _changed(model):
        weights = f"made here, or changed since they were loaded from `{source.path.name}`"
    elif source:
        digest = f", SHA-256 `{source.sha256}`" if source.path.is_file() else ""
        address = f", published at {published.url}" if published and published.url else ""
        weights = f"`{source.path.name}`{digest}{address}"
    units, size = "-".join(map(str, model.units)), f"{model.count_params():,} parameters"
    what = f"A BiT-ResNet of {units} units and width {model.width:g}, {size}"
    what += f", trained on {published.trained_on}" if published else ""
    what += "; for inference only, its weights are constants" if frozen else ""
    what += "; XLA compiles parts of it at the first call with each shape of images" if compiled else ""
    output = "stages" if stages else "features" if model.head is None else "logits"
    known = card if published or model.tuned else None
    return CARD.format(
        mark=_MARK,
        title=card.name if card and not _changed(model) else "A BiT-ResNet",
        what=what + ".",
        weights=weights + (", fine-tuned since." if model.tuned else "."),
        range="[-1, 1]" if tuple(input_range) == (-1, 1) else "[0, 1]",
        output=output,
        results=_stages(model) if stages else _vectors(model, output),
        more=_MORE if serving_bytes else "",
        key="" if stages else f'["{output}"]',
        preprocessing=_preprocessing(known) if known else "that of the images it was trained on.",
        licence=f"{published.licence}." if published else "that of its weights.",
        citation=published.citation if published else zoo.BIT_CITATION,
        hub="" if frozen else ", to train it further with `trainable=True`",
        trainable="" if frozen else ", trainable=True",
    )


def metadata(model: BiT) -> dict[str, str]:
    """What a format of one file can hold of a model's card: texts by name, those that are known.

    Returns:
        `units` and `width`; where the weights come from, unless they were changed by others than this
        package: `source`, `source_sha256`, `fine_tuned`; and of the card `name`, `trained_on`, `licence`,
        `citation`, the preprocessing as `resolution`, `short_side`, `antialias` and in words, `activation`
        (`softmax` or `sigmoid`), `class_list`, and `class_names` as JSON.
    """
    card, source = model.card, model.source
    found: dict[str, Any] = {"units": "-".join(map(str, model.units)), "width": f"{model.width:g}"}
    if source and source.path.is_file() and not _changed(model):
        found |= {"source": source.path.name, "source_sha256": source.sha256}
    if card:
        found |= {} if _changed(model) else {"name": card.name, "trained_on": card.trained_on}
        found |= {"preprocessing": _preprocessing(card)}
        found |= {"licence": card.licence, "citation": card.citation} if _published(model) else {}
        found |= {name: getattr(card, name) for name in ("resolution", "short_side", "antialias")}
    if card and model.num_classes:
        names, missing = labels.of_card(card, model.num_classes)
        found |= {"activation": card.activation, "class_list": card.labels}
        found["class_names"] = None if missing else json.dumps(names, ensure_ascii=False)
    found["fine_tuned"] = None if _changed(model) else model.tuned
    known = {name: value for name, value in found.items() if value is not None}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in known.items()
    }


def _published(model: BiT) -> zoo.Card | None:
    """The model's card, if its weights were published."""
    source = None if _changed(model) else model.source
    return model.card if source and source.card.name in zoo.names() else None


def _changed(model: BiT) -> bool:
    """Whether the weights are not those loaded, nor tuned here: a clone's, or trained by Keras' own `fit`."""
    loaded = model.source.fingerprint if model.source and not model.tuned else None
    return loaded is not None and loaded != checkpoint.fingerprint(model)


def is_one(path: Path) -> bool:
    """Whether a file is such a card."""
    return _MARK.encode() in path.read_bytes()


def _vectors(model: BiT, output: str) -> str:
    size = model.num_features if model.head is None else model.num_classes
    meaning = _meaning(model.card) if model.card and output == "logits" else ""
    return f"`{output}`, float32 `[N, {size}]`{meaning}"


def _stages(model: BiT) -> str:
    channels = model.root.filters
    sizes = [("root", 4, 1), ("block1", 4, 4), ("block2", 8, 8), ("block3", 16, 16), ("block4", 32, 32)]
    maps = (f"`{name}` `[N, height / {s}, width / {s}, {channels * times}]`" for name, s, times in sizes)
    return f"feature maps by name, float32: {', '.join(maps)}; sides are rounded up"


def _meaning(card: zoo.Card) -> str:
    lists = {"ilsvrc2012": "the 1000 classes of ILSVRC-2012", "imagenet21k": "the 21843 of ImageNet-21k"}
    classes = f", of {lists.get(card.labels, f'the classes of {card.labels}')}" if card.labels else ""
    if names := card.class_names:
        classes = f", of the classes {', '.join(names[:20])}{', …' * (len(names) > 20)}"
    rest = "; a sigmoid, not a softmax, turns them into probabilities" if card.activation == "sigmoid" else ""
    return classes + rest


def _preprocessing(card: zoo.Card) -> str:
    size = f"{card.resolution}×{card.resolution}"
    how = f"(bilinear, {'antialiased' if card.antialias else 'not antialiased'})"
    if card.short_side:
        return f"resize the short side to {card.short_side} pixels {how}, cut out the central {size}."
    return f"resize straight to {size} pixels, whatever the shape {how}."
