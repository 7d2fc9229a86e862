"""What the page that one draws on loads: the network, its names and glyphs, and onnxruntime-web from npm.

`scripts/site.py` puts it into `play/` beside the page; `docs/site/play/` has the page's own modules.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.resources
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import bitlib
from bitlib import datasets, features, images, labels
from bitlib.checkpoint import HEAD
from bitlib.layout import BUNDLED
from bitlib.model import BiT

ROOT = Path(__file__).parent.parent
RUNTIME = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The SHA-512 of npm's package, as npm writes it."""
PARTS = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm.gz"}
"""The files of it that are needed: computing in WebAssembly, without GPU. Servers know `.js` for a module."""
SIDE = 48
"""Height and width in pixels of a glyph on the page."""


class Missing(Exception):
    """Why the page cannot be built, in a sentence."""


def build(folder: Path) -> None:
    """Write everything into a folder that is not there yet. Raises: Missing; then there is none."""
    with tempfile.TemporaryDirectory() as temporary:
        package = brought(Path(temporary))
        shutil.copytree(ROOT / "docs" / "site" / "play", folder)
        vendor(package, folder / "vendor")
    model = bitlib.load(BUNDLED)
    with tempfile.TemporaryDirectory() as temporary:
        pack(folder / "model.onnx.gz", network(model, Path(temporary, "model.onnx")).SerializeToString())
    write_table(model, folder)


def pack(path: Path, content: bytes) -> None:
    """Write bytes gzipped; the same bytes give the same file."""
    path.write_bytes(gzip.compress(content, mtime=0))


def brought(folder: Path) -> Path:
    """npm's package of the runtime, from whichever registry npm is set to, verified. Raises: Missing."""
    name = "@".join(RUNTIME)
    try:
        command = ["npm", "pack", name, "--prefer-offline", "--silent", "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except FileNotFoundError:
        raise Missing(f"npm, which brings {name}, is not installed") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"npm did not bring {name} within five minutes") from None
    found = list(folder.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        raise Missing(f"npm could not bring {name}")
    if base64.b64encode(hashlib.sha512(found[0].read_bytes()).digest()).decode() != INTEGRITY:
        raise Missing(f"what npm brought as {name} has another SHA-512 than it should")
    return found[0]


def vendor(package: Path, folder: Path) -> None:
    """The runtime's files, and its licence out of Python's package: npm's, of the same source, has none."""
    folder.mkdir()
    with tarfile.open(package) as archive:
        for name, ours in PARTS.items():
            content = archive.extractfile(f"package/dist/{name}").read()
            pack(folder / ours, content) if ours.endswith(".gz") else (folder / ours).write_bytes(content)
    for name in ("LICENSE", "ThirdPartyNotices.txt"):
        (folder / name).write_bytes((importlib.resources.files("onnxruntime") / name).read_bytes())


def network(model: BiT, path: Path) -> onnx.ModelProto:
    """The model as `bitlib.export` writes it, smaller, and with more outputs.

    Beside `logits` it gives `features`, and `evidence`, float32 `[N, h, w, classes]`: the head without bias,
    at each place of the last feature map. Kernels are the checkpoint's, in float16: it has 9 bits of
    fraction. The scale and shift that standardise each filter stand beside them; runtimes apply them once,
    when they load the file.
    """
    proto = onnx.load(bitlib.export(model, path, format="onnx"))
    graph, arrays = proto.graph, model.arrays
    before, constants = [], []
    for tensor in graph.initializer:
        if not tensor.name.endswith("kernel"):
            constants.append(tensor)
            continue
        values, raw = numpy_helper.to_array(tensor).astype(float), np.asarray(arrays[tensor.name], np.float16)
        halves = raw.transpose(3, 2, 0, 1) if values.ndim == 4 else raw[0, 0]
        constants.append(numpy_helper.from_array(np.ascontiguousarray(halves), f"{tensor.name}/half"))
        cast = tensor.name if tensor.name == HEAD[0] else f"{tensor.name}/float"
        before.append(helper.make_node("Cast", [f"{tensor.name}/half"], [cast], to=TensorProto.FLOAT))
        if tensor.name == HEAD[0]:
            continue
        axes = {"axis": (1, 2, 3), "keepdims": True}
        scale = values.std(**axes) / halves.astype(float).std(**axes)
        shift = values.mean(**axes) - scale * halves.astype(float).mean(**axes)
        for name, numbers in (("scale", scale), ("shift", shift)):
            constants.append(numpy_helper.from_array(numbers.astype(np.float32), f"{tensor.name}/{name}"))
        scaled = f"{tensor.name}/scaled"
        before.append(helper.make_node("Mul", [cast, f"{tensor.name}/scale"], [scaled]))
        before.append(helper.make_node("Add", [scaled, f"{tensor.name}/shift"], [tensor.name]))
    after = [
        helper.make_node("Transpose", ["resnet/group_norm"], ["places"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["places", HEAD[0]], ["evidence"]),
    ]
    nodes = [*before, *graph.node, *after]
    outputs = [
        *graph.output,
        helper.make_tensor_value_info(
            "features", TensorProto.FLOAT, ["N", model.head.convolution.kernel.shape[2]]
        ),
        helper.make_tensor_value_info("evidence", TensorProto.FLOAT, ["N", "h", "w", model.num_classes]),
    ]
    proto.graph.CopyFrom(helper.make_graph(nodes, graph.name, graph.input, outputs, constants))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def write_table(model: BiT, folder: Path) -> None:
    """The card, and of a glyph of each class its picture and its features, as `model.js` reads them."""
    card = model.card
    if card.short_side is not None:
        raise ValueError(f"{card.name}: the page resizes pictures straight to their size, and crops none")
    names, _ = labels.of_card(card, model.num_classes)
    pictures, numbers, titles = datasets.labelled("glyphs")
    first = {titles[number]: index for index, number in reversed(list(enumerate(numbers)))}
    pictured = [index for index, name in enumerate(names) if name in first]
    glyphs = [pictures[first[names[index]]] for index in pictured]
    vectors = features.extract(model, images.batch(glyphs, card))
    mean, deviation = vectors.mean(0), vectors.std(0) + 1e-6
    vectors = (vectors - mean) / deviation
    rows = np.round(127 * vectors / abs(vectors).max(1, keepdims=True)).astype(np.int8)
    table = [np.asarray(values, "<f4").tobytes() for values in (mean, deviation)]
    pack(folder / "table.bin.gz", b"".join([*table, rows.tobytes()]))
    columns = int(np.ceil(len(glyphs) ** 0.5))
    sheet = Image.new("RGB", (columns * SIDE, -(-len(glyphs) // columns) * SIDE), "white")
    for place, picture in enumerate(glyphs):
        small = Image.fromarray(images.read(picture)).resize((SIDE, SIDE), Image.Resampling.BOX)
        sheet.paste(small, (place % columns * SIDE, place // columns * SIDE))
    sheet.save(folder / "glyphs.webp", quality=80, method=6)
    described = {
        "name": card.name, "resolution": card.resolution, "antialias": card.antialias,
        "activation": card.activation, "channels": vectors.shape[1], "classes": names,
        "side": SIDE, "columns": columns, "pictured": pictured,
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(described), "utf-8")
