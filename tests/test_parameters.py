"""The parameters of the pages, as papermill's command line and learners write them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from papermill.cli import _resolve_type
from PIL import Image

from bitlib import pages
from bitlib.datasets import tasks

PAGES = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))

RIGHT = {
    "whole": (
        pages.whole(),
        {5: [5, "5", " 5 ", 5.0, "5.0", np.int64(5), np.float32(5)], 0: [0, "0", None, "None"]},
    ),
    "whole, at least 1": (pages.whole(1), {1: [1, "1"], 2024: [2024, "2024", "2_024"]}),
    "pixels": (pages.pixels, {64: [64, "64", 64.0], 0: [0, "0", None, "None"], 2048: [2048]}),
    "number": (pages.number(), {0.5: [0.5, "0.5", ".5"], 3.0: [3, "3", "3e0"], 0.0: [0, None, "None"]}),
    "switch": (
        pages.switch,
        {
            True: [True, "true", "True", "yes", "on", 1, "1", 1.0, np.True_],
            False: [False, "false", "False", "FALSE", " no ", "off", 0, "0", 0.0, np.False_],
        },
    ),
    "text": (pages.text, {"a b": ["a b"], "2024": [2024, "2024"], "": ["", None, "None"], "5.0": [5.0]}),
    "wholes": (
        pages.several(pages.whole(1)),
        {
            (5,): [5, "5", [5], "[5]", "5,", 5.0],
            (1, 2): [
                [1, 2],
                (1, 2),
                "1, 2",
                "1,2",
                "[1, 2]",
                "(1, 2)",
                np.array([1, 2]),
                ["1", "2"],
                [1.0, "2"],
            ],
            (1, 2, 3): [range(1, 4), "[1, 2, 3]"],
        },
    ),
    "texts": (
        pages.several(pages.text),
        {
            ("a", "b"): [["a", "b"], ("a", "b"), "[a, b]", "['a', 'b']", '["a", "b"]', "a, b", "a,b,"],
            ("a/b-1", "c.d"): ["[a/b-1, c.d]", np.array(["a/b-1", "c.d"])],
            ("7",): [7, "7", [7], "[7]"],
            ("",): ["", None, "None"],
        },
    ),
    "input_range": (
        pages.input_range,
        {(0.0, 1.0): [[0, 1], (0, 1), "0, 1", "[0, 1]", np.array([0, 1])], (-1.0, 1.0): [[-1, 1], "-1, 1"]},
    ),
    "head": (
        pages.head,
        {"keep": ["keep", ["keep"]], 7: [7, "7"], ("ash", "birch"): [["ash", "birch"], "ash, birch"]},
    ),
    "data_set": (pages.data_set(), {name: [name] for name in (*tasks.TASKS, "glyphs")}),
}

WRONG = {
    "whole": (
        pages.whole(),
        "a whole number, at least 0, ",
        [-1, 5.5, "five", "64px", True, "", [5], float("nan")],
    ),
    "whole, at least 1": (
        pages.whole(1),
        "a whole number, at least 1, ",
        [0, None, "None", "1, 2", 10**30, b"1"],
    ),
    "whole, at most 9": (pages.whole(1, 9), "a whole number, from 1 to 9, ", [0, 10, "10"]),
    "pixels": (
        pages.pixels,
        "0, or a whole number of pixels, from 32 to 2,048, ",
        ["64px", 16, 31, 2049, "64x64", 48.5, -64, [64, 64], True, "large"],
    ),
    "number": (
        pages.number(),
        "a number, at least 0, ",
        ["low", -0.1, True, "", float("inf"), [1.0], "1e400", 1j],
    ),
    "switch": (
        pages.switch,
        "true or false, ",
        ["maybe", 2, None, "", "None", [True], "truee", np.array([1, 0])],
    ),
    "text": (pages.text, "text, ", [True, ["a"], {"a": 1}, b"a", object(), np.zeros(3)]),
    "wholes": (
        pages.several(pages.whole(1)),
        "a whole number, at least 1, ",
        [[], "", None, 0, "[0, 1]", "ten", "1, ten", [1.5], [[1]], {"a": 1}, True, "[1"],
    ),
    "input_range": (
        pages.input_range,
        "two numbers, such as ",
        ["[0, 255", [1, 0], [0], 1, None, "0-1", [0, 1, 2], [0, float("inf")], "low, high", [[0], [1]]],
    ),
    "head": (
        pages.head,
        "head: expected 'keep', None, a number of classes or ",
        [0, -1, 2.5, True, None, "", [], {"a": 0}, float("nan")],
    ),
    "folder": (pages.folder, "a folder to write to, ", ["", None, __file__]),
    "data_set": (
        pages.data_set(),
        "one of digits, mnist, .*, a folder, or a name of TensorFlow Datasets, ",
        ["no_such_folder", "./no/such", "~/no_such", 2025, "mnits", "", None, "a\0b", "x" * 300],
    ),
    "pictures": (
        pages.pictures(8),
        "pictures or a folder of them, ",
        ["no_such_folder", "a.png, b.png", ["a.png"], 2025, "x" * 300, "~/no_such"],
    ),
}


def read(kind, value):
    page = {"name": value}
    pages.read(page, name=kind)
    return page["name"]


def cases(table):
    return [
        pytest.param(kind, expected, value, id=f"{name} {value!r:.20}")
        for name, (kind, *rest) in table.items()
        for expected, values in (rest[0].items() if len(rest) == 1 else [(rest[0], rest[1])])
        for value in values
    ]


@pytest.mark.parametrize(("kind", "expected", "value"), cases(RIGHT))
def test_right(kind, expected, value):
    found = read(kind, value)
    assert (tuple(found) if isinstance(found, list) else found) == expected
    assert type(found) in (type(expected), list)


@pytest.mark.parametrize(("kind", "expected", "value"), cases(WRONG))
def test_wrong(kind, expected, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (ValueError, OSError), match=f"^parameter name of this page: (expected )?{expected}"
    ) as caught:
        read(kind, value)
    assert "received " in str(caught.value)


def test_an_error_that_takes_other_arguments():
    with (
        pytest.raises(ValueError, match="^parameter name of this page: 'utf-8' codec"),
        pages.parameter("name"),
    ):
        b"\xff".decode()


class TestPictures:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for file in ("my photo, 2.jpg", "b.jpg", "2024/c.jpg", "p (1)/d.jpg"):
            Path(file).parent.mkdir(exist_ok=True)
            Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file)
        Path("broken.jpg").write_bytes(b"no picture")
        Path("empty").mkdir()

    @pytest.mark.parametrize(
        ("value", "names"),
        [
            ("", []),
            (None, []),
            ([], []),
            ("b.jpg", ["b.jpg"]),
            (["b.jpg"], ["b.jpg"]),
            (Path("b.jpg"), ["b.jpg"]),
            ("~/b.jpg", ["b.jpg"]),
            ("my photo, 2.jpg", ["my photo, 2.jpg"]),
            ("[my photo, 2.jpg]", ["my photo, 2.jpg"]),
            ("b.jpg, my photo, 2.jpg", ["b.jpg", "my photo, 2.jpg"]),
            ("my photo, 2.jpg,b.jpg", ["my photo, 2.jpg", "b.jpg"]),
            ('["my photo, 2.jpg", "b.jpg"]', ["my photo, 2.jpg", "b.jpg"]),
            (["my photo, 2.jpg", "b.jpg"], ["my photo, 2.jpg", "b.jpg"]),
            (np.array(["b.jpg"]), ["b.jpg"]),
            (2024, ["c.jpg"]),
            ("2024", ["c.jpg"]),
            ("p (1)", ["d.jpg"]),
            ("2024, b.jpg", ["c.jpg", "b.jpg"]),
        ],
    )
    def test_found(self, value, names):
        found = read(pages.pictures(8), value)
        assert list(found) == names
        assert all(picture.shape == (40, 40, 3) for picture in found.values())

    def test_at_most(self, capsys):
        assert list(read(pages.pictures(1), "b.jpg, 2024")) == ["b.jpg"]
        assert "the first 1 of 2 pictures are shown" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            ("no_such_folder", "there is no no_such_folder in {here}"),
            ("b.jpg, nope.jpg", "there is no nope.jpg in {here}"),
            ("empty", "empty: "),
            ("broken.jpg", "none of 1 pictures can be read; broken.jpg: not a picture"),
        ],
    )
    def test_named(self, value, told):
        with pytest.raises((ValueError, OSError)) as caught:
            read(pages.pictures(8), value)
        assert str(caught.value).startswith("parameter name of this page: ")
        assert told.format(here=os.getcwd()) in str(caught.value)

    @pytest.mark.parametrize("value", [2024, "2024", "~/2024"])
    def test_a_folder_called_like_a_number(self, value):
        assert Path(read(pages.data_set(), value)).name == "2024"


class TestSources:
    @pytest.mark.parametrize(
        "value",
        ["[R50x1_160, google/bit/m-r50x1/1]", "R50x1_160, google/bit/m-r50x1/1", ["R50x1_160", "M-R50x1"]],
    )
    def test_names_are_not_fetched(self, monkeypatch, tmp_path, value):
        monkeypatch.setenv("BITLIB_OFFLINE", "1")
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path))
        assert read(pages.sources, value)[0] == "R50x1_160"
        assert read(pages.sources, "sayakpaul/collections/bit-resnet/1") == [
            "sayakpaul/collections/bit-resnet/1"
        ]

    @pytest.mark.parametrize("value", ["R51x1", "R50x1_160, R51x1", 5, "no/such.npz", "model.h5", "/"])
    def test_refused(self, value):
        with pytest.raises(
            (ValueError, OSError), match="^parameter name of this page: .*(R51x1|5|such|h5|/: a)"
        ):
            read(pages.sources, value)


def first_cells(path):
    """The source of the cells of a page before it imports what it uses, of which one holds the parameters."""
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    end = next(i for i, cell in enumerate(code) if cell.source.startswith("# @title Import"))
    return [cell.source for cell in code[:end]]


def typed_for_papermill(value):
    """A value as papermill's command line makes it of what was typed."""
    return _resolve_type(value) if isinstance(value, str) else value


MISTAKES = {
    "00": {"checkpoint": "R50", "images": "mnits", "seed": "-1"},
    "01": {
        "checkpoint": "R50x1-224", "checkpoints": "[R51x1]", "output": "None", "head": "0",
        "input_range": "0-255",
    },
    "02": {"checkpoint": "None", "images": "no_such_folder", "top_k": "five", "resolution": "64px"},
    "03": {
        "checkpoint": "resnet50", "images": "no/such", "most": "all", "shots": "ten", "draws": "0",
        "resolution": "-1", "seed": "x", "output": "",
    },
    "04": {
        "checkpoint": "m.h5", "data_set": "no_such", "shots": "1e9", "num_test": "0", "draws": "None",
        "batch_size": "-1", "steps": "1.5", "base_lr": "low", "resolution": "16",
    },
    "05": {"checkpoint": "q.npz", "task": "cuonting", "seed": "-1", "steps": "many"},
    "06": {
        "checkpoint": "2024", "images": "True", "shots": "[5]", "others": "nothing", "steps": "0",
        "width": "wide", "crop": "0", "seed": "zero",
    },
    "07": {"checkpoint": "", "images": "a.png, b.png", "resolution": "4096", "output": ""},
    "08": {
        "checkpoint": "x.keras", "images": "2025", "shots": "0", "seed": "1e", "steps": "x",
        "resolution": "big",
    },
}  # fmt: skip


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
class TestPages:
    def test_every_parameter_is_read_first(self, path):
        install, parameters, reading, *_ = first_cells(path)
        assert "ADDRESS" in install
        (call,) = [
            node.value for node in ast.parse(reading).body
            if isinstance(node, ast.Expr) and ast.unparse(node).startswith("pages.read(globals(), ")
        ]  # fmt: skip
        assert [keyword.arg for keyword in call.keywords] == re.findall(r"^(\w+) = ", parameters, re.M)

    def test_mistakes_are_named_before_anything_slow(self, path, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("BITLIB_OFFLINE", "1")
        _, parameters, *rest = first_cells(path)
        for name, typed in MISTAKES[path.name[:2]].items():
            page = {}
            exec(parameters, page)
            assert name in page
            page[name] = typed_for_papermill(typed)
            # Too many shots are found out by the data, and the error is the data's.
            told = "(data_set of this page: shots)" if typed == "1e9" else f"{name} of this page"
            with pytest.raises((ValueError, OSError), match=f"^parameter {told}: "):
                exec("\n".join(rest), page)

    @pytest.mark.slow
    def test_in_a_kernel(self, path, tmp_path):
        name, typed = next(iter(MISTAKES[path.name[:2]].items()))
        with pytest.raises(
            papermill.PapermillExecutionError, match=f"parameter {name} of this page: "
        ) as caught:
            papermill.execute_notebook(
                str(path), str(tmp_path / "executed.ipynb"), {name: typed_for_papermill(typed)},
                cwd=str(tmp_path), kernel_name="python3", progress_bar=False,
            )  # fmt: skip
        assert (
            caught.value.exec_count <= 5
        )  # installation, parameters, those of papermill, reading, looking up


@pytest.mark.slow
def test_nothing_slow_is_imported_first(tmp_path):
    """TensorFlow takes seconds, during which nobody knows of a mistake."""
    code = [f"exec({chr(10).join(first_cells(path)[1:])!r}, page := {{}})" for path in PAGES]
    code += ["assert page['source'].card.name == 'BiT-XS-R14x0.5'"]
    code += ["import sys; print({'tensorflow', 'keras', 'jax'} & set(sys.modules))"]
    run = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert done.stderr == ""
