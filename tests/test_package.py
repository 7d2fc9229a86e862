"""The package as a package: light to import and to install, complete when installed."""

import ast
import functools
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def run_python(code, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout.strip()


def test_catalogue_loads_no_tensorflow(tmp_path):
    loaded = run_python(
        "import sys, bitlib; names = bitlib.zoo.names(); bitlib.zoo.card(names[1]);"
        "print(sorted({'tensorflow', 'keras', 'numpy', 'matplotlib'} & set(sys.modules)))",
        tmp_path,
    )
    assert loaded == "[]"


def test_unknown_attribute():
    import bitlib

    with pytest.raises(AttributeError, match="nonsense"):
        bitlib.nonsense  # noqa: B018
    assert {"load", "export", "port", "zoo"} <= set(dir(bitlib))


def test_old_addresses_lead_on_with_a_warning():
    import bitlib

    for old, new in bitlib._MOVED.items():
        sys.modules.pop(f"bitlib.{old}", None)
        vars(bitlib).pop(old, None)
        with pytest.warns(DeprecationWarning, match=rf"bitlib\.{old} is now bitlib\.{new}"):
            module = importlib.import_module(f"bitlib.{old}")
        assert module is getattr(bitlib, old) is importlib.import_module(f"bitlib.{new}")
        assert module.__spec__.name == f"bitlib.{new}"


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = set(PROJECT["dependencies"])
EXTRAS = PROJECT["optional-dependencies"]
EVERYDAY = EXTRAS.keys() - {"torch"}
"""PyTorch has environments of its own."""


def brought_by(*extras):
    """The requirements of the package with some extras, and of the extras that these include."""
    found = set(CORE)
    for extra in extras:
        for item in EXTRAS[extra]:
            inner = re.fullmatch(r"bitlib\[(.*)\]", item)
            found |= brought_by(*inner[1].split(",")) if inner else {item}
    return found


def project_name(requirement):
    return re.split(r"[<>=\[]", requirement)[0].lower().replace("_", "-")


@functools.cache
def homes():
    """Which projects every importable module is from."""
    return importlib.metadata.packages_distributions()


def imported(source):
    """The projects of other people that a piece of code imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.partition(".")[0])
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}  # which may import one another
    foreign = modules - sys.stdlib_module_names - {"bitlib", "scripts", "tests"} - scripts
    return {project_name(homes().get(module, [module])[0]) for module in foreign}


def code_of_pages():
    for page in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(page.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield "".join(cell["source"])


def test_environment_and_pyproject_agree():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = next(item["pip"] for item in dependencies if isinstance(item, dict))
    assert sorted(from_pip) == sorted(["-e .", *brought_by(*EVERYDAY)])
    assert f"python{PROJECT['requires-python']}" in dependencies


def test_every_dependency_has_its_reason():
    for line in (ROOT / "environment.yml").read_text().splitlines():
        if re.match(r"\s+- [a-z-]+[<>=]", line):
            assert " # " in line, line


def test_constraints_hold_every_dependency_exactly():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", pin) for pin in pins)
    versions = {project_name(pin): pin.split("==")[1] for pin in pins}
    assert {project_name(item) for item in brought_by(*EVERYDAY)} <= set(versions)
    assert versions["tensorflow"].rsplit(".", 1)[0] == versions["tf-keras"].rsplit(".", 1)[0]


def test_the_package_imports_only_its_core_and_names_the_extra_of_anything_else():
    # Where a backend is missing, `bitlib.__init__` says so, or `bitlib.inputs.tensorflow`.
    core = {project_name(item) for item in CORE} | {"tensorflow"}
    elsewhere = {
        "__init__.py": {"ipython", "tensorflow-hub"},
        "plots.py": {"ipython"},
        "console.py": {"ipython"},
        "ops.py": {"jax"},
        "devices.py": {"jax", "torch"},
    }
    for path in (ROOT / "bitlib").rglob("*.py"):
        source = path.read_text()
        for project in imported(source) - core - elsewhere.get(path.name, set()):
            (extra,) = (
                name
                for name in ("datasets", "jax", "litert", "onnx", "safetensors", "tensorboard")
                if f"{project}>=" in str(EXTRAS[name])
            )
            assert f"pip install 'bitlib[{extra}]'" in source, (path.name, project)


def test_pages_import_only_what_their_extra_brings():
    brought = {project_name(item) for item in brought_by("pages")}
    assert set().union(*map(imported, code_of_pages())) <= brought


def test_scripts_and_tests_import_only_what_is_declared():
    declared = {project_name(item) for item in brought_by("test", "teach", "torch")} | {
        "grimp"
    }  # import-linter is made on it
    files = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "tests").glob("*.py"), ROOT / "conftest.py"]
    assert set().union(*(imported(path.read_text()) for path in files)) <= declared


OPTIONAL = (
    "tensorflow_hub",
    "tf_keras",
    "setuptools",
    "tensorflow_datasets",
    "tensorboard",
    "onnx",
    "ai_edge_litert",
    "IPython",
    "papermill",
    "jax",
)
"""What the package must do without."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True)
    (path,) = folder.glob("bitlib-*.whl")
    return path


def test_installing_the_wheel_alone_brings_its_core_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert "bitlib/py.typed" in archive.namelist()
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    required = re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)
    assert {project_name(item) for item in required if "extra ==" not in item} == {
        "filelock", "google-crc32c", "keras", "matplotlib", "numpy", "pillow", "platformdirs", "requests",
        "scikit-learn", "scipy", "threadpoolctl", "tqdm", "urllib3",
    }  # fmt: skip
    extras = re.findall(r"^Provides-Extra: (.*)$", metadata, re.M)
    assert set(extras) == {
        "hub",
        "jax",
        "tensorflow",
        "safetensors",
        "tasks",
        "pages",
        "datasets",
        "tensorboard",
        "site",
        "teach",
        "torch",
        "onnx",
        "litert",
        "test",
    }


@pytest.mark.slow
def test_installed_wheel_works_in_an_empty_folder_without_the_extras(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        assert "bitlib/data/BiT-XS-R14x0.5.npz" in archive.namelist()
        archive.extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()
    printed = run_python(
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}));"
        "import bitlib, numpy; print(bitlib.__file__);"
        "all(getattr(bitlib, name) for name in bitlib.__all__);"
        "model = bitlib.load('BiT-XS-R14x0.5'); print(model(numpy.zeros((1, 64, 64, 3), 'float32')).shape);"
        "print(len(bitlib.labels.names('glyph1k')))",
        empty,
        PYTHONPATH=str(tmp_path / "site"),
    ).splitlines()
    assert printed == [str(tmp_path / "site" / "bitlib" / "__init__.py"), "(1, 1000)", "1000"]
    assert not list(empty.iterdir())
