"""What people give a network for images, at every door: the right result, or an error in our own words."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import bitlib
from bitlib import checkpoint
from tests.conftest import SMALL, random_arrays

ROOT = Path(__file__).parent.parent
RIGHT = np.random.default_rng(0).uniform(-1, 1, (2, 40, 48, 3)).astype(np.float32)


def with_value(value):
    images = RIGHT.copy()
    images[1, 3, 3, 1] = value
    return images


class Keyed(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return (RIGHT,)


WRONG = {  # what is given, and the words of the error
    "one picture": (
        RIGHT[0],
        r"^images: expected shape \[N, H, W, 3\], received \[40, 48, 3\].*images\[None\]",
    ),
    "grey": (RIGHT[..., 0], r"^images: expected shape .*received \[2, 40, 48\].*grey"),
    "grey with a channel": (RIGHT[..., :1], r"^images: expected shape .*received \[2, 40, 48, 1\].*grey"),
    "four channels": (np.repeat(RIGHT, 2, -1)[..., :4], r"^images: .*received \[2, 40, 48, 4\]"),
    "channels first": (RIGHT.transpose(0, 3, 1, 2), r"^images: .*received \[2, 3, 40, 48\].*transpose"),
    "rows of numbers": (RIGHT.reshape(2, -1), r"^images: expected shape .*received \[2, 5760\]"),
    "a video": (RIGHT[None], r"^images: expected shape .*received \[1, 2, 40, 48, 3\]"),
    "a number": (np.float32(1), r"^images: expected shape .*received \[\]"),
    "none": (RIGHT[:0], r"^images: expected at least one, received none"),
    "too low": (RIGHT[:, :31], r"^images: expected height and width of at least 32 pixels, received 31×48"),
    "too narrow": (RIGHT[:, :, :16], r"^images: .*at least 32 pixels, received 40×16"),
    "uint8": (np.uint8(127.5 * (RIGHT + 1)), r"^images: .*received uint8.*divide by 127.5"),
    "int64": (np.int64(RIGHT), r"^images: expected floats in \[-1, 1\], received int64"),
    "bool": (RIGHT > 0, r"^images: expected floats in \[-1, 1\], received bool"),
    "complex": (RIGHT.astype(complex), r"^images: expected floats in \[-1, 1\], received complex"),
    "text": (np.array(["a.png", "b.png"]), r"^images: expected shape"),
    "0 to 255": (127.5 * (RIGHT + 1), r"^images: .*received values from .*divide by 127.5 and subtract 1"),
    "NaN": (with_value(np.nan), r"^images: .*NaN or infinity in 1 of 11,520 values"),
    "infinity": (with_value(np.inf), r"^images: .*NaN or infinity in 1 of"),
    "a file name": ("cat.png", r"^images: .*received 'cat.png'; bitlib.images.batch"),
    "a path": (Path("cat.png"), r"^images: .*received a?.*Path; bitlib.images.batch"),
    "bytes": (b"\x89PNG", r"^images: .*received b'.*; bitlib.images.batch"),
    "file names": (["a.png", "b.png"], r"^images: .*received a list of 2 str; bitlib.images.batch"),
    "a PIL image": (Image.new("RGB", (40, 40)), r"^images: .*received Image; bitlib.images.batch"),
    "PIL images": ([Image.new("RGB", (40, 40))], r"^images: .*received a list of 1 Image; bitlib.images"),
    "a list of arrays": (list(RIGHT), r"^images: .*received a list of 2 ndarray"),
    "lists of lists": (RIGHT.tolist(), r"^images: .*received a list of 2 list"),
    "an empty list": ([], r"^images: .*received a list of 0"),
    "nothing": (None, r"^images: .*received NoneType"),
    "ragged": (tf.RaggedTensor.from_tensor(RIGHT), r"^images: .*received RaggedTensor"),
    "sparse": (tf.sparse.from_dense(RIGHT), r"^images: .*received SparseTensor"),
    "masked": (np.ma.masked_array(RIGHT, RIGHT > 0), r"^images: .*received MaskedArray"),
    "a dictionary": ({"images": RIGHT}, r"^images: .*received dict"),
}

TAKEN = {
    "float32": RIGHT,
    "float64": RIGHT.astype(np.float64),
    "float16": RIGHT.astype(np.float16),
    "a tensor": tf.constant(RIGHT),
    "a tensor of bfloat16": tf.cast(RIGHT, tf.bfloat16),
    "not contiguous": np.repeat(RIGHT, 2, 0)[::2],
    "the smallest": RIGHT[:, :32, :32],
}


@pytest.fixture(scope="module")
def model(small_arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("doors") / "small.npz"
    np.savez(path, **small_arrays)
    return bitlib.load(path)


DOORS = {
    "call": lambda model, images: model(images),
    "call by name": lambda model, images: model(inputs=images),
    "predict": lambda model, images: model.predict(images, verbose=0),
    "stages": lambda model, images: model.stages(images),
    "predict_on_batch": lambda model, images: model.predict_on_batch(images),
}

LEARNING = {
    "fit": lambda model, images: model.fit(images, np.zeros((2, 5)), verbose=0),
    "evaluate": lambda model, images: model.evaluate(images, np.zeros((2, 5)), verbose=0),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("door", DOORS | LEARNING)
def test_what_is_no_batch_of_images_is_refused(model, door, kind):
    images, words = WRONG[kind]
    with pytest.raises(ValueError, match=words):
        (DOORS | LEARNING)[door](model, images)


@pytest.mark.parametrize("door", DOORS)
def test_values_that_may_be_meant_so_are_told(model, door):
    for images, words in (
        (2.3 * RIGHT, r"^images: values are beyond \[-1, 1\] \(-2.3 to 2.3\).*standard deviation"),
        ((RIGHT + 1) / 2, r"^images: all values lie in \[0, 1\].*multiply by 2 and subtract 1"),
    ):
        with pytest.warns(UserWarning, match=words):
            DOORS[door](model, images)


@pytest.mark.parametrize("kind", TAKEN)
def test_images_of_other_kinds_give_the_same_logits(model, kind):
    images = TAKEN[kind]
    expected = np.asarray(model(np.asarray(images, np.float32)))
    for door in ("call", "predict"):
        found = np.asarray(DOORS[door](model, images))
        assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max(), door


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_where_values_are_not_looked_at_nan_comes_through(model, value):
    """As the reference in NumPy has it; of the picture that it is in, not of the others."""
    logits = model.predict(((batch,) for batch in [with_value(value)]), verbose=0)
    assert np.isnan(logits).mean(1).tolist() == [0, 1]
    np.testing.assert_allclose(logits[0], model(RIGHT)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset", "generator"])
def test_predict_takes_what_keras_takes(model, kind):
    stream = {
        "tf.data": tf.data.Dataset.from_tensors(RIGHT),
        "PyDataset": Keyed(workers=1),
        "generator": ((batch,) for batch in [RIGHT]),
    }[kind]
    np.testing.assert_allclose(model.predict(stream, verbose=0), model(RIGHT), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["one picture", "0 to 255", "NaN", "uint8", "grey with a channel"])
def test_predict_looks_at_the_first_batch_of_a_dataset(model, kind):
    images, words = WRONG[kind]
    with pytest.raises(ValueError, match=words):
        model.predict(tf.data.Dataset.from_tensors(images), verbose=0)


def test_a_graph_of_wrong_images_cannot_be_made(model):
    for shape in ((None, None, 4), (3, 40, 40), (40, 40), (16, 40, 3)):
        with pytest.raises(ValueError, match="images: expected"):
            model(keras.Input(shape))
    with pytest.raises(ValueError, match="images: expected floats"):
        model(keras.Input((40, 40, 3), dtype="uint8"))


@pytest.mark.slow
class TestExports:
    """Files of every format: NaN for NaN; of a wrong shape an error, never the end of the process."""

    @pytest.fixture(scope="class")
    def files(self, model, tmp_path_factory):
        folder = tmp_path_factory.mktemp("exports")
        bitlib.export(model, folder / "live")
        bitlib.export(model, folder / "frozen", freeze=True)
        bitlib.export(model, folder / "stages", stages=True)
        bitlib.export(model, folder / "m.onnx")
        bitlib.export(model, folder / "fixed.onnx", batch_shape=RIGHT.shape)
        for precision in ("float32", "dynamic", "int8"):
            given = {"representative": RIGHT} if precision == "int8" else {}
            bitlib.export(model, folder / f"{precision}.tflite", precision=precision, **given)
        return folder

    @pytest.mark.parametrize("file", ["live", "frozen", "stages"])
    @pytest.mark.parametrize(
        "shape",
        [(40, 40, 3), (4, 40, 40), (4, 4800), (1, 1, 40, 40, 3), (2, 3, 40, 40), (2, 40, 40, 1),
         (2, 40, 40, 4), (2, 31, 40, 3), (), (0,)],
    )  # fmt: skip
    def test_a_signature_says_which_shape_it_takes(self, files, file, shape):
        signature = tf.saved_model.load(str(files / file)).signatures["serving_default"]
        words = r"inputs: expected float32 \[N, H, W, 3\], H and W at least 32; received shape"
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            signature(inputs=tf.zeros(shape))

    @pytest.mark.parametrize("file", ["live", "frozen", "stages"])
    @pytest.mark.parametrize("images", [127.5 * (RIGHT + 1), 2.3 * RIGHT])
    def test_a_signature_says_which_values_it_takes(self, files, file, images):
        signature = tf.saved_model.load(str(files / file)).signatures["serving_default"]
        words = r"inputs: expected values in \[-1, 1\]; received from and to\] \["
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            signature(inputs=tf.constant(images))
        signature(inputs=tf.constant(1.4 * RIGHT))  # as a bicubic resize leaves them

    def test_a_signature_of_another_range_takes_that(self, model, tmp_path):
        bitlib.export(model, tmp_path / "m", input_range=(0, 1))
        signature = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"]
        found = signature(inputs=tf.constant((RIGHT + 1) / 2))["logits"]
        np.testing.assert_allclose(found, model(RIGHT), rtol=1e-3, atol=1e-3)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected values in \[0, 1\]"):
            signature(inputs=tf.constant(RIGHT))

    @pytest.mark.parametrize("kind", ["0 to 255", "standardised", "too low"])
    def test_a_file_that_cannot_refuse_gives_nan(self, files, kind):
        onnxruntime = pytest.importorskip("onnxruntime", reason="runs ONNX files")
        images = 2.3 * RIGHT if kind == "standardised" else WRONG[kind][0]
        for file in ("m.onnx", "fixed.onnx")[: 1 if kind == "too low" else 2]:
            logits = onnxruntime.InferenceSession(files / file).run(None, {"inputs": images})[0]
            assert np.isnan(logits).all(), file
        pytest.importorskip("ai_edge_litert", reason="runs LiteRT files")
        with pytest.raises(ValueError, match=r"^images: expected"):
            bitlib.formats.litert.load(files / "float32.tflite")(images)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_comes_through(self, files, value):
        onnxruntime = pytest.importorskip("onnxruntime", reason="runs ONNX files")
        interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="runs LiteRT files")
        images = with_value(value)
        found = {}
        for file in ("live", "frozen"):
            signature = tf.saved_model.load(str(files / file)).signatures["serving_default"]
            found[file] = signature(inputs=tf.constant(images))["logits"]
        for file in ("m.onnx", "fixed.onnx"):
            found[file] = onnxruntime.InferenceSession(files / file).run(None, {"inputs": images})[0]
        for precision in ("float32", "dynamic"):
            run = interpreter.Interpreter(str(files / f"{precision}.tflite")).get_signature_runner()
            found[precision] = run(inputs=images)["logits"]
        for file, logits in found.items():
            assert np.isnan(logits).mean(1).tolist() == [0, 1], file

    def test_a_file_of_whole_numbers_has_no_nan_and_refuses(self, files):
        pytest.importorskip("ai_edge_litert", reason="runs LiteRT files")
        compute = bitlib.formats.litert.load(files / "int8.tflite")
        assert np.isfinite(compute(RIGHT)).all()
        for images, words in (
            (WRONG["NaN"][0], "finite"),
            (WRONG["uint8"][0], "received uint8"),
            (RIGHT[0], "shape"),
            (RIGHT[:, :16], "32 pixels"),
        ):
            with pytest.raises(ValueError, match=f"^images: .*{words}"):
                compute(images)


class TestWaysOut:
    @pytest.mark.parametrize(
        ("name", "options", "words"),
        [
            ("m.onnx", {"format": "litert"}, r"^directory: .*m\.onnx' is called like no litert; .*'onnx'"),
            ("m.tflite", {"format": "onnx"}, r"^directory: .*called like no onnx; .*format='litert'"),
            ("m.ONNX", {"format": "tf_saved_model"}, r"^directory: .*called like no tf_saved_model"),
            ("m.keras", {}, r"^directory: .*m\.keras.*model\.save writes such a file"),
            ("m.npz", {}, r"^directory: .*bitlib\.checkpoint\.save writes such a file"),
            ("m.h5", {}, r"^directory: .*model\.save_weights"),
            ("", {}, r"^directory: expected a path"),
            (None, {}, r"^directory: expected a path, received None"),
            (3, {}, r"^directory: expected a path, received 3"),
            ("m", {"format": ["onnx"]}, r"^format: expected one of .*received \['onnx'\]"),
            *(
                (file, {name: "no"}, f"^{name}: expected True or False, received 'no'")
                for file, name in [
                    *(("m", name) for name in ("freeze", "jit_compile", "serving_bytes", "stages")),
                    ("m.onnx", "uint8"),
                ]
            ),
            *(
                ("m", {"input_range": given}, r"^input_range: expected \(-1, 1\) or \(0, 1\), received")
                for given in (None, 5, "01", (0, 255))
            ),
            (
                "m",
                {"serving_bytes": True, "top": "3"},
                "^top: expected at least 1, a whole number, received '3'",
            ),
            (
                "m",
                {"serving_bytes": True, "top": 2.5},
                "^top: expected at least 1, a whole number, received 2.5",
            ),
            ("m.onnx", {"batch_shape": 5}, "^batch_shape: expected None or .N, height.*received 5"),
            ("m.onnx", {"batch_shape": "abcd"}, "^batch_shape: expected None or .N, height.*received 'abcd'"),
            (
                "m.tflite",
                {"precision": "int8", "representative": [np.zeros((3, 3)), np.zeros(2)]},
                "^representative: expected an array, received a list of 2 ndarray",
            ),
            ("m.pt", {}, r"^directory: .*m\.pt' is called like no tf_saved_model; leave out the suffix"),
            ("m", {"format": "pytorch"}, r"^format: expected one of .*received 'pytorch'"),
        ],
    )
    def test_a_name_of_another_format_is_refused_and_nothing_written(
        self, model, tmp_path, name, options, words
    ):
        with pytest.raises(ValueError, match=words):
            bitlib.export(model, tmp_path / name if name and isinstance(name, str) else name, **options)
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_a_suffix_chooses_the_format(self, model, tmp_path):
        for name in ("m.onnx", "M.TFLITE"):
            assert bitlib.export(model, tmp_path / name).is_file()
        assert (bitlib.export(model, tmp_path / "v1.5") / "saved_model.pb").is_file()


@pytest.mark.parametrize("door", [checkpoint.save, bitlib.export])
def test_what_is_written_is_a_model_and_where_a_path(model, tmp_path, door, monkeypatch):
    for given in (None, keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), tmp_path / "x"):
        with pytest.raises(TypeError, match=r"^model: expected a bitlib\.model\.BiT, received"):
            door(given, tmp_path / "m.npz")
    with pytest.raises(ValueError, match="^(path|directory): expected a path, received 5"):
        door(model, 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "~/m.npz" if door is checkpoint.save else "~/m.onnx"
    assert door(model, name) == tmp_path / name[2:]


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5"])
def test_files_of_keras_are_read_as_the_message_says(model, small_arrays, tmp_path, name, recwarn):
    save = model.save if name == "m.h5" else model.save_weights
    save(tmp_path / name)
    with pytest.raises(
        bitlib.CheckpointError, match="a loaded model of as many classes reads it, by `load_w"
    ):
        bitlib.load(tmp_path / name)
    other = bitlib.model.BiT(model.units, model.width, model.num_classes)
    other.load_weights(tmp_path / name)
    np.testing.assert_array_equal(other(RIGHT), model(RIGHT))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("units", 50),
        ("units", None),
        ("width", "1"),
        ("num_classes", 2.5),
        ("num_classes", ["a", "b"]),
        ("num_classes", True),
    ],
)
def test_arguments_of_a_network(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        bitlib.model.BiT(**{"units": (1, 1, 1, 1), "width": 0.5, "num_classes": 3} | {name: value})


@pytest.mark.parametrize("arrays", [None, [1], 3])
def test_what_is_assigned_is_arrays_by_name(model, arrays):
    with pytest.raises(TypeError, match="^arrays: expected arrays by name, received"):
        checkpoint.assign(model, arrays)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "clone_model": keras.models.clone_model,
    "config": lambda model: type(model).from_config(model.get_config()),
}


class TestKnowledge:
    """Preprocessing, names and origin stay with a model, whatever Keras does with it."""

    @pytest.fixture(scope="class")
    def known(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("known") / "small.npz"
        np.savez(path, **random_arrays(SMALL))
        model = bitlib.load(path, head=["cat", "dog"])
        model.card = model.card.of({**vars(model.card), "resolution": 40, "class_names": ["cat", "dog"]})
        model.tuned = True
        return model

    @pytest.mark.parametrize("way", WAYS)
    def test_survives_copies(self, known, way):
        again = WAYS[way](known)
        assert type(again) is bitlib.model.BiT
        assert (again.card, again.tuned) == (known.card, True)
        assert (again.source.card, again.source.path.name) == (known.source.card, "small.npz")

    @pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.pth", "m.onnx"])
    def test_no_file_is_called_like_another_kind(self, known, tmp_path, name):
        with pytest.raises(ValueError, match=r"^path: expected a file ending in \.npz or \.safetensors"):
            checkpoint.save(known, tmp_path / name)

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".keras"])
    @pytest.mark.parametrize("way", ["itself", *WAYS])
    def test_survives_files(self, known, tmp_path, suffix, way):
        again = known if way == "itself" else WAYS[way](known)
        path = tmp_path / f"m{suffix}"
        again.save(path) if suffix == ".keras" else checkpoint.save(again, path)
        card = bitlib.load(path).card
        assert (card.resolution, card.class_names) == (40, ("cat", "dog"))
        new = bitlib.load(path, head=3)
        assert (new.card.resolution, new.card.class_names) == (40, None)
        np.testing.assert_array_equal(new.arrays[checkpoint.ROOT], again.arrays[checkpoint.ROOT])

    @pytest.mark.slow
    def test_keras_reads_its_files_after_import_bitlib_alone(self, known, tmp_path):
        known.save(tmp_path / "m.keras")
        code = (
            "import bitlib, sys; assert 'keras' not in sys.modules; import keras; "
            "print(keras.saving.load_model('m.keras').card.class_names)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == "('cat', 'dog')\n", done.stderr

    def test_other_keras_files_are_named(self, tmp_path):
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "m.keras")
        (tmp_path / "text.keras").write_text("not a model")
        with pytest.raises(
            bitlib.CheckpointError, match=r"m\.keras: holds a Keras model of class Sequential"
        ):
            bitlib.load(tmp_path / "m.keras")
        with pytest.raises(bitlib.CheckpointError, match=r"text\.keras: not a \.keras file"):
            bitlib.load(tmp_path / "text.keras")

    @pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "nonsense"])
    def test_a_dtype_that_would_fail_later_is_refused(self, known, tmp_path, dtype):
        path = checkpoint.save(known, tmp_path / "m.npz")
        with pytest.raises(ValueError, match=r"^dtype: expected 'float32', .*received"):
            bitlib.load(path, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"), [("image_data_format", "channels_first"), ("floatx", "float16"), ("floatx", "float64")]
)
def test_settings_of_keras_left_from_other_work_change_nothing(tmp_path, key, value):
    home = tmp_path / ".keras"
    home.mkdir()
    (home / "keras.json").write_text(f'{{"backend": "tensorflow", "{key}": "{value}"}}')
    code = (
        "import numpy as np, bitlib, keras; from bitlib import features, reference, checkpoint\n"
        f"assert getattr(keras.config, {key!r})() == {value!r}\n"
        "model = bitlib.load('BiT-XS-R14x0.5'); arrays = checkpoint.read(model.source.path)\n"
        "assert model.dtype_policy.name == 'float32' and reference.disagreement(model, arrays) < 1e-5\n"
        "x = np.random.default_rng(0).uniform(-1, 1, (1, 40, 40, 3)).astype('f4')\n"
        "assert features.extract(model, x).shape == (1, 1024)\n"
        "assert np.isfinite(model.predict(x, verbose=0)).all()"
    )
    settings = {"HOME": str(tmp_path), "KERAS_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
