"""Every page runs with other parameters than its own, and looks as pages should."""

import copy
import gc
import itertools
import logging
import re
import subprocess
import sys
from pathlib import Path

import keras
import nbconvert
import nbformat
import numpy as np
import papermill
import pytest
import tensorflow_hub as hub
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from bitlib import checkpoint, datasets, zoo
from bitlib.checkpoint import Architecture
from scripts import student
from tests.conftest import PEAK, SMALL, random_arrays

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")


def page_called(name):
    (path,) = [path for path in PAGES if path.name.startswith(name)]
    return path


@pytest.fixture
def papermilled(tmp_path):
    """Run a page by papermill in an empty folder -> what it printed and showed. Binder's machines have 2 GB
    of memory, of which JupyterLab takes a fifth: on the bundled model, a page stays below the rest. Page 08
    does not, where it has three runtimes beside TensorFlow; Binder installs none of them.
    """

    def run(page, most=0, **parameters):
        watched = nbformat.read(page_called(page), 4)
        watched.cells.append(nbformat.v4.new_code_cell(PEAK + "\nprint(f'peak: {peak():.0f} MiB')"))
        nbformat.write(watched, tmp_path / "watched.ipynb")
        executed = papermill.execute_notebook(
            str(tmp_path / "watched.ipynb"), str(tmp_path / "executed.ipynb"), parameters,
            cwd=str(tmp_path), kernel_name="python3", progress_bar=False,
            coalesce_streams=True,  # or one line may come in two pieces, the second "\n" alone
        )  # fmt: skip
        outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
        assert not [output.text for output in outputs if output.get("name") == "stderr"]
        most = most or (2400 if "checkpoint" in parameters or page == "08" else 1600)
        assert float(outputs[-1].text.split()[1]) < most
        shown = [output.get("data", {}).get("text/markdown", "") for output in outputs]
        return "".join(output.get("text", "") for output in outputs) + "".join(shown)

    return run


@pytest.fixture
def run(tmp_path, monkeypatch, caplog):
    """As `papermilled`, in this process: neither a kernel nor TensorFlow has to be started. Each exercise is
    met without an answer first: its checks say so then."""

    def run(page, **parameters):
        monkeypatch.chdir(tmp_path)
        with caplog.at_level(logging.WARNING, logger="papermill"):
            cells = parameterize_notebook(load_notebook_node(str(page_called(page))), parameters).cells
        assert not caplog.text
        shell = InteractiveShell.instance()
        shell.reset(new_session=True)
        text = ""
        for cell in cells:
            if cell.cell_type == "code":
                if "solution" in cell.metadata.get("tags", []):
                    unanswered(shell, cells[cells.index(cell) :])
                with capture_output() as captured:
                    result = shell.run_cell(cell.source)
                result.raise_error()
                shown = [output.data.get("text/markdown", "") for output in captured.outputs]
                if hasattr(result.result, "_repr_markdown_"):
                    shown.append(result.result._repr_markdown_())
                text += captured.stdout + "".join(shown)
        return text

    yield run
    InteractiveShell.instance().reset()
    InteractiveShell.clear_instance()
    keras.utils.clear_session()  # a page leaves models and traced functions, in circles
    gc.collect()


def unanswered(shell, cells):
    """Run the first cell as learners get it, and the checks that follow: the page goes on, nbgrader marks."""
    empty = student.handed_out(nbformat.from_dict({"cells": copy.deepcopy(cells[:1])})).cells[0]
    with capture_output():
        shell.run_cell(empty.source).raise_error()
    for check in itertools.takewhile(lambda cell: "check" in cell.metadata.get("tags", []), cells[1:]):
        with capture_output() as captured:
            shell.run_cell(check.source).raise_error()
        assert captured.stdout.endswith("not answered yet\n"), check.source
        with pytest.MonkeyPatch.context() as patched, capture_output():
            patched.setenv("NBGRADER_EXECUTION", "autograde")
            error = shell.run_cell(check.source).error_in_exec
        assert isinstance(error, AssertionError), f"{check.source}: {error!r}"


@pytest.fixture
def deep_npz(tmp_path):
    path = tmp_path / "deep.npz"
    np.savez(path, **random_arrays(Architecture((2, 1, 3, 1), 1, 21), seed=4))
    return path


@pytest.fixture
def wide_npz(tmp_path):
    path = tmp_path / "wide.npz"
    np.savez(path, **random_arrays(SMALL, seed=5))
    return path


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A mirror with small networks under published names: 21843 classes, 1000, and five of a task."""
    folder = tmp_path / "published"
    classes = {"BiT-M-R50x1": 21843, "R50x1_160": 1000, "BiT-M-R50x1-run0-dtd": 5}
    for seed, (name, num_classes) in enumerate(classes.items()):
        file = folder / zoo.card(name).file
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **random_arrays(Architecture((1, 1, 1, 1), 0.5, num_classes), seed))
    monkeypatch.setenv("BITLIB_MIRROR", str(folder))
    monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def letters(tmp_path):
    """A folder of pictures of three characters, 14 of each, in noise."""
    rng = np.random.default_rng(0)
    for name in ("A", "B", "Ж"):
        (tmp_path / "letters" / name).mkdir(parents=True)
        for index in range(14):
            glyph = 255 - datasets.render_glyph(name).astype(float)
            noisy = np.clip(glyph + rng.normal(0, 40, glyph.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / "letters" / name / f"{index}.png")
    return tmp_path / "letters"


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures of several kinds."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, photo in datasets.photographs().items():
        image = Image.fromarray(photo)
        image.save(folder / name)
        image.convert("L").resize((90, 50)).save(folder / f"grey_{name[:-4]}.png")
    return folder


class TestFirstPage:
    def test_a_folder_of_classes_and_another_checkpoint(self, papermilled, letters, wide_npz):
        page = papermilled("00", checkpoint=str(wide_npz), images=str(letters), seed=3)
        assert "examples a class: BiT features" in page
        assert "pre-training helps:" in page

    def test_a_published_model(self, run, published):
        page = run("00", checkpoint="R50x1_160", images="faces")
        assert "random weights:" in page


class TestPorting:
    def test_another_depth_and_width(self, papermilled, deep_npz, tmp_path):
        page = papermilled("01", checkpoint=str(deep_npz))
        assert "the port agrees with the reference" in page
        assert "identical: " in page
        image = np.random.default_rng(0).uniform(-1, 1, (1, 48, 48, 3)).astype("float32")
        logits = hub.load(str(tmp_path / "models" / "deep" / "classifier" / "1"))(image)
        np.testing.assert_allclose(logits, checkpoint.load(deep_npz)(image), atol=1e-4 * np.abs(logits).max())

    def test_a_new_head_for_inputs_in_0_1(self, run, wide_npz, tmp_path):
        page = run("01", checkpoint=str(wide_npz), head=7, input_range=[0, 1], output="elsewhere")
        assert page.count("agrees\n") == 4
        loaded = hub.load(str(tmp_path / "elsewhere" / "wide" / "ported" / "1"))
        assert loaded(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 7)
        features = hub.load(str(tmp_path / "elsewhere" / "wide" / "features" / "1"))
        image = np.random.default_rng(0).uniform(-1, 1, (1, 48, 48, 3)).astype("float32")
        expected = checkpoint.load(wide_npz, head=None)(image)
        np.testing.assert_allclose(features((image + 1) / 2), expected, atol=1e-4 * np.max(expected))

    def test_a_list_of_checkpoints(self, run, published, tmp_path):
        page = run("01", checkpoints="[R50x1_160, google/bit/m-r50x1/1]")
        assert "3 SavedModels, all of them agree with the reference" in page
        image = np.random.default_rng(0).uniform(-1, 1, (1, 48, 48, 3)).astype("float32")
        expected = checkpoint.load(published / "BiT-M-R50x1.npz", head=None)(image)
        features = hub.load(str(tmp_path / "models/hub/google/bit/m-r50x1/1"))((image + 1) / 2)
        np.testing.assert_allclose(features, expected, atol=1e-4 * np.max(expected))
        assert (
            tmp_path / "models/hub/sayakpaul/distill_bit_resnet50x1_160_classification/1/README.md"
        ).is_file()

    def test_a_broken_checkpoint_stops_the_page(self, papermilled, wide_npz, tmp_path):
        wide_npz.write_bytes(wide_npz.read_bytes()[:-500])
        with pytest.raises(papermill.PapermillExecutionError, match="truncated or corrupt zip"):
            papermilled("01", checkpoint=str(wide_npz))
        assert not (tmp_path / "models").exists()


class TestInference:
    def test_a_folder_of_photographs_and_another_checkpoint(self, papermilled, photos, deep_npz):
        page = papermilled("02", checkpoint=str(deep_npz), images=str(photos), top_k=3, resolution=64)
        assert "classes are shown as numbers: the model has no published class list" in page
        assert "flower.jpg: class " in page
        assert "grey_china.png: class " in page

    def test_a_list_of_files_and_a_vtab_task(self, run, photos, published):
        files = [str(photos / "china.jpg"), str(photos / "flower.jpg")]
        page = run("02", checkpoint="BiT-M-R50x1-run0-dtd", images=files, resolution=96, top_k=1)
        assert "BiT-M-R50x1-run0-dtd: R50x1, 5 classes, 96 pixels" in page

    def test_21843_classes(self, run, published):
        lemmas = "\n".join(f"synset_{index}, other" for index in range(21843))
        (published / "imagenet21k_wordnet_lemmas.txt").write_text(lemmas)
        page = run("02", checkpoint="google/bit/m-r50x1/imagenet21k_classification/1", resolution=64)
        assert "BiT-M-R50x1: R50x1, 21843 classes, 64 pixels" in page
        assert "flower.jpg: synset " in page

    def test_no_class_list_at_hand(self, run, published):
        page = run("02", checkpoint="R50x1_160")
        assert "R50x1_160: R50x1, 1000 classes, 160 pixels" in page
        missing = "classes are shown as numbers: ilsvrc2012_wordnet_lemmas.txt: not in BITLIB_MIRROR"
        assert missing in page


class TestFeatureExtraction:
    def test_a_folder_of_classes(self, papermilled, letters):
        page = papermilled("03", images=str(letters), shots=[1, 2], draws=2)
        assert "42 pictures of 3 classes, 18 for testing" in page

    def test_a_published_model(self, run, published):
        page = run("03", checkpoint="R50x1_160", resolution=48, shots=[1], draws=1)
        assert "the exported features are those of the Keras model" in page

    def test_another_seed_and_other_shots(self, run):
        page = run("03", seed=7, shots="[1, 3]", draws=3)
        assert "points ahead of untrained network: " in page


QUICK = {"steps": 8, "batch_size": 16}


class TestFineTuning:
    def test_a_folder_of_classes(self, papermilled, letters, tmp_path):
        page = papermilled("04", data_set=str(letters), shots=4, **QUICK)
        assert "12 pictures to learn from, 30 others to test on\n3 classes: A, B, Ж" in page
        tuned = checkpoint.load(tmp_path / "models" / "BiT-XS-R14x0.5" / "tuned.npz")
        assert tuned.num_classes == 3

    def test_another_seed_and_other_shots(self, run, letters):
        page = run("04", data_set=str(letters), seed=5, shots=2, draws=2, **QUICK)
        assert "6 pictures to learn from, 36 others to test on" in page
        assert "fine-tuned against linear probe: " in page
        assert "by hand and by the package: the same losses" in page

    def test_a_data_set_of_tfds_and_another_checkpoint(self, run, trees, wide_npz):
        data = {"data_set": "trees", "data_dir": str(trees), "shots": 1}
        page = run("04", checkpoint=str(wide_npz), resolution=48, **data, **QUICK)
        assert "3 pictures to learn from, 5 others to test on" in page
        assert "through the hub: the same logits" in page
        assert re.search(r"\| crop \| \d+ \| 48 \|", page)


class TestOneRule:
    def test_another_task_and_seed(self, papermilled):
        page = papermilled("05", task="faces", seed=4, steps=4)
        assert "BiT-XS-R14x0.5 on faces, 100 pictures to learn from" in page
        assert page.count("nothing stored to compare with") == 2

    def test_a_folder_and_another_checkpoint(self, run, letters, wide_npz):
        page = run("05", task=str(letters), checkpoint=str(wide_npz), steps=3)
        assert "wide on " in page
        assert "21 pictures to learn from" in page


class TestDistillation:
    def test_another_task_and_width(self, papermilled):
        page = papermilled("06", images="digits", shots=5, steps=12, width=8, seed=3, others="faces")
        assert "BiT-XS-R14x0.5 on digits, 10 classes" in page
        assert "1438 pictures, of which 50 have a label" in page
        assert "points to the teacher" in page

    def test_a_folder_and_another_teacher(self, run, letters, wide_npz):
        page = run("06", checkpoint=str(wide_npz), images=str(letters), shots=2, steps=6, others="digits")
        assert "wide on " in page
        assert "34 pictures, of which 6 have a label" in page

    def test_a_larger_crop_of_a_published_teacher(self, run, published):
        page = run("06", checkpoint="R50x1_160", images="faces", shots=3, steps=5, crop=48)
        assert "R50x1_160 on faces, " in page
        assert "matched on textures: " in page


class TestJax:
    @pytest.fixture(autouse=True)
    def where_there_is_jax(self):
        pytest.importorskip("jax")

    def test_pictures_of_ones_own_at_another_resolution(self, papermilled, photos, tmp_path):
        page = papermilled("07", most=2600, images=str(photos), resolution=48, output="elsewhere")
        assert "4 pictures: china.jpg, flower.jpg, grey_china.png, grey_flower.png" in page
        assert "8 devices share each batch of 8" in page
        assert (tmp_path / "elsewhere" / "BiT-XS-R14x0.5" / "jax" / "1" / "saved_model.pb").is_file()

    def test_another_depth(self, papermilled, wide_npz):
        page = papermilled("07", most=2900, checkpoint=str(wide_npz), resolution=32)
        assert "wide: 54 arrays, 11 classes, 32 pixels" in page
        assert page.count("hub.load gives NumPy's logits") == 2

    def test_a_published_model(self, run, published):
        page = run("07", checkpoint="R50x1_160", resolution=32)
        assert "R50x1_160: 45 arrays, 1000 classes, 32 pixels" in page

    def test_without_jax_it_says_how_to_get_it(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "jax", None)
        with pytest.raises(ImportError, match=r"pip install 'bitlib\[jax\]'"):
            run("07")

    def test_without_tensorflow_the_rest_goes_on(self, run, monkeypatch):
        """As in Colab's TPU runtime."""
        monkeypatch.setitem(sys.modules, "tensorflow", None)
        page = run("07")
        assert "tensorflow: not installed, left out" in page
        assert "8 devices share each batch of 8" in page
        assert "skipped: TensorFlow or tensorflow-hub is not installed" in page


class TestOutOfTheNotebook:
    """In float32 every way agrees with the live model: the page's own assertions say so."""

    def test_another_task_and_resolution(self, papermilled, tmp_path):
        page = papermilled("08", images="faces", shots=5, seed=3, steps=4, resolution=32, output="elsewhere")
        assert "BiT-XS-R14x0.5 on faces, 2 classes\n10 pictures to learn from, " in page
        assert "scale: frozen, compiled, ONNX Runtime, OpenVINO, LiteRT float32\n" in page
        assert "a text: InvalidArgumentError, a picture is neither a JPEG nor a PNG\n" in page
        assert "the next request: answered as before" in page
        exported = tmp_path / "elsewhere" / "BiT-XS-R14x0.5"
        assert {"tuned.npz", "tuned.onnx", "int8.tflite"} <= {path.name for path in exported.iterdir()}

    def test_a_folder_and_another_checkpoint(self, run, letters, wide_npz):
        page = run("08", checkpoint=str(wide_npz), images=str(letters), shots=4, steps=4, resolution=32)
        assert "12 pictures to learn from, 30 others to test on" in page
        assert "the same names, and the same probabilities to 1e-4" in page
        assert page.count("| LiteRT int8 |") == 2

    def test_what_is_missing_is_named_and_left_out(self, run, letters, wide_npz, monkeypatch):
        for package in ("onnx", "onnxruntime", "openvino", "ai_edge_litert"):
            monkeypatch.setitem(sys.modules, package, None)
        page = run("08", checkpoint=str(wide_npz), images=str(letters), shots=2, steps=4, resolution=32)
        assert "ONNX Runtime: left out; pip install 'bitlib[onnx]' onnxruntime\n" in page
        assert "OpenVINO: left out; pip install 'bitlib[onnx]' openvino\n" in page
        assert "LiteRT: left out; pip install 'bitlib[litert]'\n" in page
        assert "scale: frozen, compiled\n" in page
        assert "left out: ONNX Runtime is not here" in page
        assert "| LiteRT" not in page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
class TestStyle:
    def test_format(self, path):
        page = nbformat.read(path, 4)
        nbformat.validate(page)
        assert page.metadata.kernelspec.name == "python3"
        tagged = [cell for cell in page.cells if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1
        assert all(re.fullmatch(r"\w+ = [^=]+", line) for line in tagged[0].source.splitlines())

    def test_outputs_are_stored_in_order(self, path):
        code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))

    def test_nothing_of_the_machine_is_stored(self, path):
        for cell in nbformat.read(path, 4).cells:
            outputs = str(cell.get("outputs", ""))
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|opt)/|site-packages|Warning", outputs)

    def test_cells_are_short(self, path):
        code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        assert max(len(cell.source.splitlines()) for cell in code) <= 25
        closed = {"check", "solution", "setup", "install"}
        to_read = [cell for cell in code if not closed & set(cell.metadata.get("tags", []))]
        assert np.median([len(cell.source.splitlines()) for cell in to_read]) <= 10

    def test_a_page_is_no_book(self, path):
        most = 18 if path.name.startswith("00") else 55
        assert len(nbformat.read(path, 4).cells) <= most

    def test_results_are_never_far(self, path):
        """No run of more than three cells without an output, but for what only prepares."""
        silent = 0
        for cell in nbformat.read(path, 4).cells:
            closed = {"parameters", "solution", "setup", "install"} & set(cell.metadata.get("tags", []))
            if cell.cell_type == "code" and not closed:
                silent = 0 if cell.outputs else silent + 1
                assert silent <= 3, cell.source

    def test_opening(self, path):
        opening = nbformat.read(path, 4).cells[0].source
        for words in ("# ", "**What you'll do**", "**What you'll learn**", "**What you'll need**"):
            assert words in opening

    def test_links_lead_to_files_that_jupyterlab_can_open(self, path):
        """`make lab` is rooted at the repository; what is outside of it cannot be opened."""
        for cell in nbformat.read(path, 4).cells:
            source = cell.source if cell.cell_type == "markdown" else ""
            for target in re.findall(r"\]\((?!http)([^)#]+)", source):
                assert (path.parent / target).exists(), target
                assert (path.parent / target).resolve().is_relative_to(ROOT), target
        lab = re.search(r"^lab:.*\n\t(.+)", (ROOT / "Makefile").read_text(), re.M)[1]
        assert "jupyter lab --ServerApp.root_dir=. " in lab

    def test_every_figure_has_a_text_alternative(self, path):
        outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", [])]
        figures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert figures
        for figure in figures:
            shown = figure.metadata["image/png"]
            assert len(shown["alt"]) > 40
            assert shown["width"] <= 830

    def test_nothing_is_written_to_stderr(self, path):
        outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", [])]
        assert not [output.text for output in outputs if output.get("name") == "stderr"]

    def test_solutions_are_closed(self, path, tmp_path):
        solutions = [c for c in nbformat.read(path, 4).cells if "solution" in c.metadata.get("tags", [])]
        assert solutions
        for cell in solutions:
            assert cell.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}
            assert cell.metadata.cellView == "form"  # which closes it in Colab
            assert cell.source.startswith("# @title Answer to exercise ")  # what is shown of it
        html, _ = nbconvert.HTMLExporter(
            template_name="closed",
            extra_template_basedirs=[str(ROOT / "scripts" / "html")],
            extra_template_paths=[str(ROOT / "scripts" / "html")],
        ).from_filename(str(path))
        assert html.count('<details class="solution"><summary>') == len(solutions)
        assert "No description has been provided" not in html

    def test_as_a_script_it_compiles_and_names_what_it_uses(self, path, tmp_path):
        script, _ = nbconvert.PythonExporter().from_filename(str(path))
        compile(script, path.name, "exec")
        (tmp_path / "page.py").write_text(script)
        ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", tmp_path / "page.py"]
        found = subprocess.run(ruff, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout

    def test_nothing_is_wider_than_the_page(self, path):
        for cell in nbformat.read(path, 4).cells:
            shown = [output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", [])]
            code = [text for text in shown if text.startswith("```python")]
            texts = [output.get("text", "") for output in cell.get("outputs", [])]
            lines = "\n".join([cell.source if cell.cell_type == "code" else "", *code, *texts]).splitlines()
            assert max(map(len, lines), default=0) <= 99, max(lines, key=len)

    def test_size(self, path):
        assert path.stat().st_size < 1_500_000
