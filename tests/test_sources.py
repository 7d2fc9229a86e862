"""Whatever people name as the source of a model, at every door: the right file, or a sentence of our own."""

import io
import os
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from urllib3.util import connection

import bitlib
from bitlib import checkpoint, savedmodel, zoo
from bitlib.files import fetching
from tests.test_download import refused

ADDRESS = "https://storage.googleapis.com/bit_models/"

DOORS = {
    "find": checkpoint.find,
    "resolve": checkpoint.resolve,
    "load": bitlib.load,
    "card_of": zoo.card_of,
    "port": lambda source: bitlib.port(source, "ported"),
    "port_all": lambda source: savedmodel.port_all([source], "ported"),
}
NAME_DOORS = {
    "card": zoo.card,
    "fetch": checkpoint.fetch,
    "prefetch": lambda name: checkpoint.prefetch([name], "mirror"),
}

PUBLISHED = {
    f"{ADDRESS}BiT-M-R50x1.npz": "BiT-M-R50x1",
    f"{ADDRESS}distill/R50x1_224.npz?alt=media": "R50x1_224",
    f"{ADDRESS}vtab/BiT-M-R50x1-run0-svhn.npz": "BiT-M-R50x1-run0-svhn",
    "http://storage.googleapis.com/bit_models/BiT-M-R50x1.npz": "BiT-M-R50x1",
    "https://storage.cloud.google.com/bit_models/BiT-M-R50x1.npz": "BiT-M-R50x1",
    "gs://bit_models/BiT-M-R50x1.npz": "BiT-M-R50x1",
    "GS://bit_models/distill/R50x1_224.npz": "R50x1_224",
    "BiT-M-R50x1.npz": "BiT-M-R50x1",
    "bit-m-r50x1.NPZ": "BiT-M-R50x1",
    " BiT-M-R50x1 ": "BiT-M-R50x1",
    "R50x1_224.npz": "R50x1_224",
    "distill/R50x1_224.npz": "R50x1_224",
    "distill/R50x1_224": "R50x1_224",
    "vtab/BiT-M-R50x1-run0-svhn.npz": "BiT-M-R50x1-run0-svhn",
    "timm/resnetv2_50x1_bit.goog_in21k": "BiT-M-R50x1",
    "google/bit/m-r50x1/1": "BiT-M-R50x1",
    np.str_("BiT-M-R50x1"): "BiT-M-R50x1",
}

NO_NAMES = {
    "None": (None, "expected a name such as 'BiT-M-R50x1' .* received None"),
    "a number": (50, "expected a name .* received 50"),
    "a fraction": (2.5, "expected a name .* received 2.5"),
    "a truth value": (True, "expected a name .* received True"),
    "bytes": (b"BiT-M-R50x1", "expected a name .* received b'BiT-M-R50x1'"),
    "an array": (np.zeros((2, 2)), r"expected a name .* received array\(\[\[0\., 0\.\], \[0\., 0\.\]\]\)"),
    "a table": (pd.DataFrame({"a": [1]}), "expected a name .* received a 0 1"),
    "a dictionary": ({"name": "BiT-M-R50x1"}, "expected a name .* received {'name'"),
    "an open file": (io.BytesIO(b"PK"), "expected a name .* received <_io.BytesIO"),
    "nothing": ("", "expected a name .* received ''"),
    "blanks": (" \t", "expected a name .* received"),
    "another network": (
        "resnet50",
        r"no published BiT is called 'resnet50'.*; bitlib.zoo.names\(\) lists them",
    ),
    "a slip": ("R50x1-224", "no published BiT is called 'R50x1-224'.*; nearest: R50x1_224"),
    "another handle": ("google/bit/m-r50x2/1", "no published BiT .*nearest: google/bit/m-r50x3/1"),
    "an address elsewhere": (
        "https://example.org/BiT-M-R50x1.npz",
        f"no published BiT .*; of addresses, those below {ADDRESS} are known.*nearest: BiT-M-R50x1",
    ),
    "another bucket": ("gs://my_models/BiT-M-R50x1.npz", "no published BiT .*of addresses"),
    "a class list": (f"{ADDRESS}ilsvrc2012_wordnet_lemmas.txt", "no published BiT is called"),
    "a collection": (
        "google/collections/bit",
        "'google/collections/bit' is a collection; choose one of its members: google/bit/",
    ),
}

NO_FILES = {
    "a folder by name": ("a_folder_that_is_not_there", ValueError, "no such file is in .*lists them all"),
    "no npz": ("runs/mine.npz", FileNotFoundError, "mine.npz: no such file, expected one ending in .npz"),
    "no safetensors": ("q.safetensors", FileNotFoundError, "q.safetensors: no such file, .*.safetensors"),
    "no keras": ("m.keras", FileNotFoundError, "m.keras: no such file, .*.keras"),
    "no Path": (Path("mine"), FileNotFoundError, "mine: no such file, expected one ending in .npz"),
    "at home": ("~/mine.npz", FileNotFoundError, f"{Path.home()}/mine.npz: no such file"),
    "a name in a folder": ("runs/BiT-M-R50x1.npz", FileNotFoundError, "is loaded by its name, 'BiT-M-R50x1'"),
    "the same without suffix": ("runs/BiT-M-R50x1", FileNotFoundError, "by its name, 'BiT-M-R50x1'"),
    "a Path of a name": (Path("BiT-M-R50x1.npz"), FileNotFoundError, "by its name, 'BiT-M-R50x1'"),
    "Keras' weights": ("model.weights.h5", ValueError, "a file ending in .npz.*; this is a file of Keras"),
    "PyTorch's": ("weights.pth", ValueError, "expected a file ending in .npz.*; this is of another library"),
    "TensorFlow's": (Path("x.ckpt"), ValueError, "of another library"),
    "a graph": ("m.pb", ValueError, "an export, from which no weights are read"),
    "an ONNX file that is there": ("there.onnx", ValueError, "an export, from which no weights are read"),
    "a SavedModel": ("exported", ValueError, "exported: a SavedModel, an export .*`tf.saved_model.load`"),
    "one like a published model": ("out/BiT-XS-R14x0.5", ValueError, "a SavedModel, an export"),
    "a folder": ("plain", ValueError, "plain: a folder, expected a BiT checkpoint"),
    "this folder": (Path(""), ValueError, "a folder, expected a BiT checkpoint"),
    "any suffix": ("a.xyz", ValueError, "no published BiT is called 'a.xyz', and no such file is in"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of one's own, an empty cache, and no network."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITLIB_OFFLINE", "1")
    monkeypatch.delenv("BITLIB_MIRROR", raising=False)
    for folder in ("plain", "exported", "out/BiT-XS-R14x0.5"):
        Path(folder).mkdir(parents=True)
    for file in ("exported/saved_model.pb", "out/BiT-XS-R14x0.5/saved_model.pb", "there.onnx"):
        Path(file).touch()


@pytest.fixture
def cached(tmp_path, small_npz, monkeypatch):
    """A cache with small networks as the published ones."""
    for name in set(PUBLISHED.values()):
        file = tmp_path / "cache" / zoo.card(name).file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(small_npz.read_bytes())
    return tmp_path / "cache"


class TestPublished:
    @pytest.mark.parametrize("source", PUBLISHED)
    def test_leads_to_its_file(self, cached, source):
        name = PUBLISHED[source]
        found = checkpoint.find(source)
        assert (found.card.name, found.path) == (name, cached / zoo.card(name).file)
        assert checkpoint.fetch(source) == checkpoint.resolve(source) == found.path
        assert zoo.card(source) == zoo.card_of(source) == found.card

    def test_loads_and_ports(self, cached, tmp_path):
        assert bitlib.load(f"{ADDRESS}distill/R50x1_224.npz").card.name == "R50x1_224"
        assert (bitlib.port("R50x1_224.npz", tmp_path / "m") / "saved_model.pb").is_file()

    def test_a_file_that_is_here_comes_first(self, cached, small_arrays):
        np.savez("BiT-M-R50x1.npz", **small_arrays)
        assert checkpoint.find("BiT-M-R50x1.npz").path == Path("BiT-M-R50x1.npz")
        assert checkpoint.find("BiT-M-R50x1").path == cached / "BiT-M-R50x1.npz"

    def test_a_folder_called_like_a_model_does_not(self, cached):
        Path("BiT-M-R50x1").mkdir()
        assert checkpoint.find("BiT-M-R50x1").path == cached / "BiT-M-R50x1.npz"

    def test_home(self, small_npz, monkeypatch):
        monkeypatch.setenv("HOME", str(small_npz.parent))
        small_npz.with_name("weights").write_bytes(small_npz.read_bytes())
        for source in ("~/small.npz", Path("~/small.npz"), "~/weights"):
            assert checkpoint.find(source).path.parent == small_npz.parent


class TestRefused:
    @pytest.mark.parametrize("door", DOORS | NAME_DOORS)
    @pytest.mark.parametrize("kind", NO_NAMES)
    def test_what_is_no_name(self, door, kind):
        if kind == "a collection" and door == "port_all":
            assert len(list(savedmodel._targets(NO_NAMES[kind][0]))) == 25
            return
        argument = "source" if door in DOORS else "name"
        value, told = NO_NAMES[kind]
        with refused(f"(?s)^{argument}: {told}", ValueError) as caught:
            (DOORS | NAME_DOORS)[door](value)
        assert len(str(caught.value)) < (2500 if kind == "a collection" else 600)
        assert sorted(path.name for path in Path().iterdir()) == ["exported", "out", "plain", "there.onnx"]

    @pytest.mark.parametrize("door", ["find", "resolve", "load", "port"])
    @pytest.mark.parametrize("kind", NO_FILES)
    def test_what_is_no_file(self, door, kind):
        value, error, told = NO_FILES[kind]
        with pytest.raises(error, match=told):
            DOORS[door](value)

    def test_class_lists(self):
        for file in (None, 5, b"x", ["x"]):
            with refused("^file: expected a path below the published address", ValueError):
                fetching.fetch_file(file)

    def test_prefetch_of_no_list(self):
        for names in (None, 5):
            with refused("^name: expected a name", ValueError):
                checkpoint.prefetch(names, "mirror")


def unreachable(monkeypatch, how):
    """A network that is not there, in one of several ways."""
    monkeypatch.delenv("BITLIB_OFFLINE")
    if how == "the resolver fails":

        def failing(*arguments, **options):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        monkeypatch.setattr(connection.socket, "getaddrinfo", failing)
        return "Temporary failure in name resolution"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    if how == "the mirror is down":
        monkeypatch.setenv("BITLIB_MIRROR", address)
    else:
        monkeypatch.setenv("HTTPS_PROXY", address)
    return "Connection refused"


class TestWithoutANetwork:
    @pytest.mark.parametrize("how", ["the resolver fails", "the mirror is down", "the proxy is down"])
    @pytest.mark.parametrize("door", [checkpoint.find, bitlib.load, checkpoint.fetch])
    def test_told_at_once(self, monkeypatch, tmp_path, how, door):
        cause = unreachable(monkeypatch, how)
        pauses = []
        monkeypatch.setattr(fetching.time, "sleep", pauses.append)
        with refused("cannot be downloaded; see whether this machine has a network") as caught:
            door("BiT-M-R50x1")
        assert pauses == [1]  # seconds
        message = str(caught.value)
        assert message.endswith(f"No server was reached: {cause}")
        for advice in ("BITLIB_MIRROR", "prefetch", f"the bundled model, {zoo.BUNDLED!r}"):
            assert message.index(advice) < message.index(cause)
        assert ("BITLIB_MIRROR is right" in message) == (how == "the mirror is down")
        assert "Pool(" not in message
        assert "\n" not in message
        assert len(message) - len(str(tmp_path)) < 420
        assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]

    def test_what_cannot_pass_is_not_tried_five_times(self, monkeypatch):
        tries = []

        def get(self, url, **options):
            tries.append(url)
            raise requests.exceptions.SSLError("certificate verify failed: self-signed certificate")

        monkeypatch.delenv("BITLIB_OFFLINE")
        monkeypatch.setattr("bitlib.files.fetching.PAUSE", 0)
        monkeypatch.setattr(requests.Session, "get", get)
        with refused("No server was reached: certificate verify failed: self-signed certificate$"):
            checkpoint.fetch("BiT-M-R50x1")
        assert len(tries) == 2

    @pytest.mark.parametrize(
        "value", ["http://", "http://..", f"http://{'a' * 70}.org", "https://exa mple.org"]
    )
    def test_a_mirror_that_is_no_address(self, monkeypatch, value):
        monkeypatch.setenv("BITLIB_MIRROR", value)
        with refused("^BITLIB_MIRROR: expected a folder or an address like", ValueError):
            checkpoint.find("BiT-M-R50x1")

    def test_a_mirror_that_is_no_folder(self, monkeypatch):
        monkeypatch.setenv("BITLIB_MIRROR", "example.org/models")
        with refused(r"BiT-M-R50x1.npz: not in BITLIB_MIRROR \(example.org/models, which is no folder\)"):
            checkpoint.find("BiT-M-R50x1")

    def test_a_cache_that_is_an_address(self, monkeypatch):
        monkeypatch.setenv("BITLIB_CACHE", "https://example.org/cache")
        with refused("^BITLIB_CACHE: expected a folder, received 'https://example.org/cache'", ValueError):
            checkpoint.find("BiT-M-R50x1")
        assert not os.path.exists("https:")


NAMES = ("ash", "birch", "cedar")
HEADS = {
    "tuple": NAMES,
    "array": np.array(NAMES),
    "array of objects": np.array(NAMES, object),
    "index": pd.Index(NAMES),
    "series": pd.Series(NAMES, index=[7, 7, 7]),
    "categories": pd.Categorical(["cedar", "ash", "birch"]).categories,
    "values of a dictionary": {0: "ash", 1: "birch", 2: "cedar"}.values(),
}
NUMBERS = [3, 3.0, np.int64(3), np.uint8(3), np.array(3), np.float32(3)]
NO_HEADS = [
    True, np.True_, np.array(True),
    0, -1, 2.5, float("nan"), float("inf"), np.float64("inf"), 10**30, 3j, "three",
    "3", "", b"ash", [], (), ["ash", 1], ["ash", None], [1, 2, 3], np.arange(3), np.zeros((2, 2)), [["ash"]],
    ["a\x1b[31m"], (name for name in NAMES), {"ash": 0}, {"ash"}, pd.DataFrame({"ash": [1]}), object(), len,
    ["ash", "birch", "ash"], ["ash", ""], ["ash", " "],
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory, small_arrays):
    path = tmp_path_factory.mktemp("head") / "small.npz"
    np.savez(path, **small_arrays)
    return path


class TestHead:
    @pytest.mark.parametrize("kind", HEADS)
    def test_names(self, file, kind):
        model = bitlib.load(file, head=HEADS[kind])
        assert (model.num_classes, model.card.class_names) == (3, NAMES)
        assert {type(name) for name in model.card.class_names} == {str}

    @pytest.mark.parametrize("head", NUMBERS, ids=repr)
    def test_numbers(self, file, head):
        assert bitlib.load(file, head=head).num_classes == 3

    @pytest.mark.parametrize("head", NO_HEADS, ids=lambda head: type(head).__name__)
    def test_refused(self, file, head):
        told = "^head: expected .keep., None, a number of classes or a list of their names .*received"
        with refused(told, ValueError) as caught:
            bitlib.load(file, head=head)
        assert len(str(caught.value)) < 350

    def test_a_name_twice_is_named(self, file):
        with refused("received 'ash' more than once$", ValueError):
            bitlib.load(file, head=["ash", "birch", "ash"])
