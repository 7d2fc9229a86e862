"""The package as a package: light to import, whole when installed, its dependencies told once."""

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


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = {item for group in lists for item in group if not item.startswith("bitlib")}
    return requirements, project["requires-python"]


def test_environment_and_pyproject_agree():
    requirements, python = declared()
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = next(item["pip"] for item in dependencies if isinstance(item, dict))
    assert requirements == set(from_pip) - {"-e ."}
    assert f"python{python}" in dependencies


def test_every_dependency_has_its_reason():
    for line in (ROOT / "environment.yml").read_text().splitlines():
        if re.match(r"\s+- [a-z-]+[<>=]", line):
            assert " # " in line, line


def test_constraints_hold_every_dependency_exactly():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", pin) for pin in pins)
    pinned = {pin.split("==")[0].lower() for pin in pins}
    assert {re.split(r"[<>=]", item)[0] for item in declared()[0]} <= pinned
    versions = dict(pin.lower().split("==") for pin in pins)
    assert versions["tensorflow"].rsplit(".", 1)[0] == versions["tf-keras"].rsplit(".", 1)[0]


def test_installed_wheel_works_in_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("bitlib-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "bitlib/data/BiT-XS-R14x0.5.npz" in archive.namelist()
        archive.extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()
    told = run_python(
        "import bitlib, numpy; print(bitlib.__file__);"
        "model = bitlib.load('BiT-XS-R14x0.5'); print(model(numpy.zeros((1, 64, 64, 3), 'float32')).shape);"
        "print(len(bitlib.labels.names('glyph1k')))",
        empty,
        PYTHONPATH=str(tmp_path / "site"),
    ).splitlines()
    assert told == [str(tmp_path / "site" / "bitlib" / "__init__.py"), "(1, 1000)", "1000"]
    assert not list(empty.iterdir())
