"""The README and the guides: links lead somewhere, and what can be copied runs in a clean folder."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import bitlib
from bitlib import hyperrule, zoo

ROOT = Path(__file__).parent.parent
DOCS = [*sorted(ROOT.glob("*.md")), ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def called(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, *languages):
    """Each block of code in these languages, after as many empty lines as stand before it in the file."""
    text = path.read_text()
    return [
        "\n" * text[: found.start(2)].count("\n") + found[2]
        for found in FENCED.finditer(text)
        if found[1] in languages
    ]


def with_blocks(*languages):
    return [pytest.param(path, id=called(path)) for path in DOCS if blocks(path, *languages)]


def anchors(path):
    """What links to headings may be called, as GitHub makes it of their text."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=called)
def test_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", FENCED.sub("", path.read_text())):
        file, _, heading = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        assert not heading or heading in anchors(found), target


@pytest.mark.parametrize("path", DOCS, ids=called)
def test_code_is_in_blocks_of_a_language_that_is_run_here_or_only_read(path):
    known = {"python", "bash", "json", "text", "bat", "slurm"}
    assert {language for language, _ in FENCED.findall(path.read_text())} <= known
    assert not re.search(r"(?<=\n\n)    \S", FENCED.sub("", path.read_text()))


def test_the_readme_is_short_and_says_what_a_maintainer_runs():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 1000
    assert "\n## Start\n" in text  # where the first cell of a page sends its readers
    assert re.findall(r"^make (run|test) ", text, re.M) == ["run", "test"]


@pytest.fixture
def place(tmp_path, monkeypatch, published, small_npz):
    """A folder with what the guides speak of: pictures, checkpoints, a mirror of published models."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "place"
    for name, colour in {"cat": (200, 90, 60), "dog": (60, 90, 200), "fox": (90, 190, 80)}.items():
        (folder / "my_classes" / name).mkdir(parents=True)
        for number in range(9):
            levels = rng.normal(colour, 30, (60, 80, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(levels).save(folder / "my_classes" / name / f"{number}.jpg")
    files = sorted((folder / "my_classes").rglob("*.jpg"))
    rows = [f"{file.relative_to(folder).as_posix()},{file.parent.name}" for file in files]
    (folder / "my_pictures.csv").write_text("\n".join(["path,label", *rows]))
    shutil.copytree(folder / "my_classes" / "cat", folder / "my_photos")
    shutil.copy(files[0], folder / "photo.jpg")
    shutil.copy(small_npz, folder / "my_bit.npz")
    for name, classes in {"ilsvrc2012": 1000, "imagenet21k": 21843}.items():
        (published / zoo.CLASS_LISTS[name]).write_text("a name\n" * classes)
    monkeypatch.chdir(folder)
    bitlib.checkpoint.save(bitlib.load("my_bit.npz"), "model.safetensors")
    return folder


def briefly(*args, plan=hyperrule.plan, **how):
    """A plan of two steps with small batches."""
    return plan(*args, **how | {"steps": 2, "batch_size": 4, "resize": 40, "crop": 32})


def a_client():
    """What the gRPC client of TensorFlow Serving has; it answers as the model itself does."""
    import tensorflow as tf

    def predict(request):
        (contents,) = (tf.constant(tf.make_ndarray(tensor)) for tensor in request.inputs.values())
        model = tf.saved_model.load(f"models/{request.model_spec.name}/1")
        answers = model.signatures[request.model_spec.signature_name](contents)
        return SimpleNamespace(outputs={name: tf.make_tensor_proto(value) for name, value in answers.items()})

    def request():
        return SimpleNamespace(
            model_spec=SimpleNamespace(), inputs=defaultdict(type(tf.make_tensor_proto(0)))
        )

    return {"predict_pb2": SimpleNamespace(PredictRequest=request), "stub": SimpleNamespace(Predict=predict)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("path", with_blocks("python"))
def test_python_runs(path, place, trees, monkeypatch):
    """The blocks of a guide one after the other, as one would type them."""
    monkeypatch.setattr(hyperrule, "plan", briefly)
    names = a_client() if path.name == "serving.md" else {}
    for code in blocks(path, "python"):
        if "keras.distribution" in code:  # of JAX
            environment = os.environ | {"KERAS_BACKEND": "jax"}
            subprocess.run([sys.executable, "-c", code], env=environment, check=True)
            continue
        code = code.replace('"imagenet2012", "train", 448', f'"trees", "train", 40, "{trees}"')
        exec(compile(code, path, "exec"), names)


def test_a_table_of_pictures_does_as_well_as_a_folder(place):
    (folder, *_), (table, *_) = (bitlib.datasets.splits(name) for name in ("my_classes", "my_pictures.csv"))
    assert [Path(path).resolve() for path in folder[0]] == [Path(path).resolve() for path in table[0]]
    np.testing.assert_array_equal(folder[1], table[1])


LONG = [
    (r"\bmake (?!student\b)", "make --dry-run "),
    (r"\bmake student\b", "make BIN=$(dirname $(which python)) --old-file=.venv/installed student"),
    (r"\bpapermill ", "papermill --prepare-only "),  # tests/test_pages.py runs what it prepares
    (r"\bjupyter lab\b.*", "jupyter lab --version"),
    (r"\b(scripts/reproduce\.py BiT-M\S+) cifar10", r"\1 --help"),
    (r"\bscripts/run_pages\.py\b.*", "-m py_compile scripts/run_pages.py"),
    (r"\bbenchmarks/(\w+\.py)\b.*", r"-m py_compile benchmarks/\1"),
    (r"^.*\b(pip|conda|tensorflow_model_server|curl|git diff)\b(?:.*\\\n)*.*$", ":"),
    (r"\bpython3\.12 -m venv bit\b", "mkdir bit"),
    (r"\bbit/bin/(?=jupyter|papermill)|\.venv/bin/(?=python)", ""),
]
"""Commands that take too long, or need what is not here, and what is run instead."""


@pytest.fixture
def clone(place, monkeypatch):
    """The place, with the files of the repository in it; the programs beside our Python come first."""
    for entry in ROOT.iterdir():
        if entry.name not in (".git", ".venv", "build", "student"):
            (shutil.copytree if entry.is_dir() else shutil.copy)(entry, place / entry.name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return place


@pytest.mark.slow
@pytest.mark.parametrize("path", with_blocks("bash"))
def test_commands_run(path, clone):
    for code in blocks(path, "bash"):
        for pattern, instead in LONG:
            code = re.sub(pattern, instead, code, flags=re.M)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], cwd=clone, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{code.strip()}\n{done.stderr[-3000:]}"
        assert "unknown parameter" not in done.stderr
    if path.name == "own_pictures.md":
        (instance,) = json.loads((clone / "request.json").read_text())["instances"]
        assert base64.b64decode(instance["b64"]) == (clone / "photo.jpg").read_bytes()


@pytest.mark.parametrize("path", with_blocks("bash", "bat"))
def test_pip_is_given_extras_and_files_that_exist(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in "".join(blocks(path, "bash", "bat")).splitlines():
        if found := re.search(r"\bpip (install|wheel) (.*)", line):
            for extras in re.findall(r"(?:bitlib|\.)\[([\w,]+)\]", found[2]):
                assert set(extras.split(",")) <= set(project["optional-dependencies"]), line
            assert all((ROOT / file).is_file() for file in re.findall(r"-c (\S+)", found[2])), line
