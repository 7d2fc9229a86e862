"""One conformance test for each consumer of what we export, and for how it is written."""

import hashlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

import bitlib
from bitlib import checkpoint, savedmodel, zoo
from bitlib.checkpoint import CheckpointError
from bitlib.formats import modelcard
from bitlib.model import BiT


@pytest.fixture(scope="module")
def exported(tmp_path_factory, small_arrays):
    """Classifier and features, for either range, each with the Keras model it was made of."""
    folder = tmp_path_factory.mktemp("exported")
    np.savez(folder / "small.npz", **small_arrays)
    made = {}
    for output, head in (("logits", "keep"), ("features", None)):
        for low in (-1, 0):
            model = bitlib.load(folder / "small.npz", head=head)
            path = bitlib.export(model, folder / f"{output}{low}" / "1", input_range=(low, 1))
            made[output, low] = path, model
    return made


@pytest.fixture(params=[("logits", -1), ("logits", 0), ("features", -1), ("features", 0)], ids=str)
def case(request, exported, images):
    """Folder, name of the output, what callers feed, and what must come out."""
    path, model = exported[request.param]
    output, low = request.param
    return path, output, (images if low == -1 else (images + 1) / 2), model(images).numpy()


def close(result, expected):
    np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_tf_saved_model(case):
    path, output, fed, expected = case
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert signature.structured_input_signature[1].keys() == {"inputs"}
    result = signature(inputs=tf.constant(fed))
    assert list(result) == [output]
    close(result[output], expected)


@pytest.mark.slow
def test_hub_load(case):
    path, _, fed, expected = case
    loaded = hub.load(str(path))
    for training in (False, True):
        close(loaded(fed, training=training), expected)
    assert loaded.regularization_losses == []
    trainable = {id(variable) for variable in loaded.trainable_variables}
    assert trainable <= {id(variable) for variable in loaded.variables}


def test_hub_keras_layer(case):
    path, _, fed, expected = case
    close(hub.KerasLayer(str(path))(fed), expected)


def test_keras_tfsm_layer(case):
    path, output, fed, expected = case
    layer = keras.layers.TFSMLayer(str(path), call_endpoint="serving_default")
    close(keras.Sequential([layer])(fed)[output], expected)


def test_height_and_width_are_dynamic(exported):
    path, model = exported["logits", -1]
    loaded = hub.load(str(path))
    for shape in ((1, 32, 32, 3), (3, 65, 41, 3)):
        image = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
        close(loaded(image), model(image).numpy())


@pytest.mark.slow
def test_hub_trains_every_weight(exported, images):
    path, model = exported["logits", -1]
    layer = hub.KerasLayer(str(path), trainable=True)
    network = tf_keras.Sequential([layer, tf_keras.layers.Dense(3)])
    network.build((None, *images.shape[1:]))
    assert len(layer.trainable_weights) == len(layer.weights) == len(model.variables)
    before = [weight.numpy() for weight in layer.weights]
    network.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(images, np.array([0, 2]), verbose=0)
    assert all(np.any(old != new.numpy()) for old, new in zip(before, layer.weights, strict=True))


@pytest.mark.slow
def test_frozen_layers_stay_frozen_in_the_export(tmp_path, small_npz):
    model = bitlib.load(small_npz)
    model.root.trainable = False
    loaded = hub.load(str(bitlib.export(model, tmp_path / "m")))
    assert len(loaded.trainable_variables) == len(loaded.variables) - 1


@pytest.mark.slow
def test_saved_model_cli_shows_a_clear_signature(exported):
    cli = Path(sys.executable).with_name("saved_model_cli")
    for output, channels in (("logits", 11), ("features", 1024)):
        command = [cli, "show", "--dir", exported[output, -1][0], "--tag_set", "serve"]
        command += ["--signature_def", "serving_default"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "inputs['inputs'] tensor_info:" in shown
        assert "shape: (-1, -1, -1, 3)" in shown
        assert f"outputs['{output}'] tensor_info:" in shown
        assert f"shape: (-1, {channels})" in shown


def tflite(path, images):
    """Logits of a SavedModel converted to TensorFlow Lite."""
    converter = tf.lite.TFLiteConverter.from_saved_model(str(path))
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    (entry,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(entry["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(out["index"])


@pytest.mark.slow
def test_tflite(exported, images):
    path, model = exported["logits", -1]
    close(tflite(path, images), model(images).numpy())


class TestFreeze:
    @pytest.mark.slow
    def test_same_numbers_and_nothing_left_to_train(self, tmp_path, small_npz, images):
        model = bitlib.load(small_npz)
        path = bitlib.export(model, tmp_path / "frozen" / "1", freeze=True)
        loaded = tf.saved_model.load(str(path))
        close(loaded(images), model(images).numpy())
        close(loaded.signatures["serving_default"](inputs=images)["logits"], model(images).numpy())
        assert not loaded.signatures["serving_default"].variables
        assert sum(file.stat().st_size for file in (path / "variables").iterdir()) < 10_000

    @pytest.mark.slow
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_any_batch(self, tmp_path, small_npz, jit_compile):
        """Halves of one, of odd numbers, of none."""
        model = bitlib.load(small_npz)
        loaded = tf.saved_model.load(
            str(bitlib.export(model, tmp_path / "m", freeze=True, jit_compile=jit_compile))
        )
        images = np.random.default_rng(0).uniform(-1, 1, (5, 32, 48, 3)).astype("float32")
        expected = model(images).numpy()
        assert np.ptp(expected) > 0.1
        for number in (1, 2, 5):
            close(loaded(images[:number]).numpy(), expected[:number])
        assert loaded(images[:0]).shape == (0, expected.shape[1])

    def test_compiled_only_if_frozen(self, tmp_path, small_npz):
        refused = pytest.raises(ValueError, match="^jit_compile: expected False, or freeze=True")
        for write, source in (
            (bitlib.export, bitlib.load(small_npz)),
            (bitlib.port, small_npz),
            (savedmodel.port_all, [small_npz]),
        ):
            with refused:
                write(source, tmp_path / "m", jit_compile=True)
        assert not (tmp_path / "m").exists()

    @pytest.mark.slow
    def test_tflite(self, tmp_path, small_npz, images):
        model = bitlib.load(small_npz)
        close(tflite(bitlib.export(model, tmp_path / "m", freeze=True), images), model(images).numpy())

    @pytest.mark.slow
    def test_no_kernel_is_standardised_again(self, tmp_path, small_npz):
        """GroupNorm takes one reciprocal root a norm; standardisation would add one a convolution."""
        model = bitlib.load(small_npz)
        norms = sum("gamma" in variable.path for variable in model.variables)
        kernels = sum("standardized" in variable.path for variable in model.variables)
        for freeze, expected in ((True, norms), (False, norms + kernels)):
            path = bitlib.export(model, tmp_path / "m", freeze=freeze)
            graph = tf.saved_model.load(str(path)).signatures["serving_default"].graph
            nodes = list(graph.as_graph_def().node)
            for function in graph.as_graph_def().library.function:
                nodes += function.node_def
            roots = sum(node.op == "Rsqrt" for node in nodes)
            assert roots == expected

    @pytest.mark.slow
    def test_the_model_itself_stays_live(self, tmp_path, small_npz, images):
        model = bitlib.load(small_npz)
        before = model(images).numpy()
        bitlib.export(model, tmp_path / "m", freeze=True)
        model.root.convolution.kernel.assign(model.root.convolution.kernel[::-1])
        assert np.abs(model(images) - before).max() > 1e-3


class TestWriting:
    @pytest.fixture
    def model(self, small_npz):
        return bitlib.load(small_npz)

    @pytest.mark.slow
    def test_parents_are_made_and_a_savedmodel_replaced(self, tmp_path, model, images):
        folder = tmp_path / "a" / "b" / "1"
        bitlib.export(model, folder)
        model.head.convolution.bias.assign(model.head.convolution.bias + 1)
        assert bitlib.export(model, folder) == folder
        close(hub.load(str(folder))(images), model(images).numpy())
        assert [path.name for path in folder.parent.iterdir()] == ["1"]

    def test_an_interrupted_export_leaves_nothing(self, tmp_path, model, monkeypatch):
        real = tf.saved_model.save

        def interrupted(*arguments, **options):
            real(*arguments, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(tf.saved_model, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bitlib.export(model, tmp_path / "m" / "1")
        assert not list((tmp_path / "m").iterdir())

    @pytest.mark.slow
    def test_an_interrupted_export_keeps_the_former(self, tmp_path, model, monkeypatch, images):
        folder = bitlib.export(model, tmp_path / "m")
        monkeypatch.setattr(
            tf.saved_model, "save", lambda *a, **o: (_ for _ in ()).throw(OSError("disk full"))
        )
        with pytest.raises(OSError, match="disk full"):
            bitlib.export(model, folder)
        close(hub.load(str(folder))(images), model(images).numpy())

    def test_other_folders_are_not_overwritten(self, tmp_path, model):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.tex").touch()
        for path in (tmp_path / "thesis", tmp_path / "thesis" / "chapter1.tex"):
            with pytest.raises(FileExistsError, match="not a SavedModel"):
                bitlib.export(model, path)
        assert (tmp_path / "thesis" / "chapter1.tex").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "entry",
        ["notes.txt", "variables/mine", "assets/vocab.txt", "src/", "README.md", "variables/variables.csv"],
    )
    def test_not_even_beside_a_savedmodel(self, tmp_path, model, small_npz, entry):
        folder = bitlib.export(model, tmp_path / "m")
        other = folder / entry
        other.mkdir() if entry.endswith("/") else other.write_text("mine")
        for write, source in ((bitlib.export, model), (bitlib.port, small_npz)):
            with pytest.raises(FileExistsError, match=f"^directory: .*m holds '{entry}'.*choose another"):
                write(source, folder)
        assert other.exists()
        assert (folder / "saved_model.pb").exists()

    def test_a_link_stays_and_an_empty_folder_is_filled(self, tmp_path, model):
        (tmp_path / "big disk").mkdir()
        (tmp_path / "m").symlink_to("big disk")
        assert bitlib.export(model, tmp_path / "m") == tmp_path / "m"
        assert (tmp_path / "m").is_symlink()
        assert (tmp_path / "big disk" / "saved_model.pb").exists()

    def test_nonsense_is_refused(self, tmp_path, model):
        with pytest.raises(ValueError, match=r"^input_range: expected .* received \(0, 255\)"):
            bitlib.export(model, tmp_path / "m", input_range=(0, 255))
        with pytest.raises(TypeError, match="^model: expected .* received Sequential"):
            bitlib.export(keras.Sequential(), tmp_path / "m")
        assert not (tmp_path / "m").exists()


class TestPort:
    @pytest.mark.slow
    def test_a_path(self, tmp_path, small_npz, images):
        folder = bitlib.port(small_npz, tmp_path / "m" / "1", head=None, input_range=(0, 1))
        close(hub.load(str(folder))((images + 1) / 2), bitlib.load(small_npz, head=None)(images).numpy())

    def test_what_disagrees_with_the_reference_is_not_written(self, tmp_path, small_npz, monkeypatch):
        monkeypatch.setattr(savedmodel.BiT, "pool", lambda self, x: tf.ones((1, 1, 1, 1024)))
        with pytest.raises(CheckpointError, match="differs from the NumPy reference"):
            bitlib.port(small_npz, tmp_path / "m")
        assert not (tmp_path / "m").exists()

    def test_a_broken_file_writes_nothing(self, tmp_path, small_npz):
        small_npz.write_bytes(small_npz.read_bytes()[:-100])
        with pytest.raises(CheckpointError):
            bitlib.port(small_npz, tmp_path / "m")
        assert not (tmp_path / "m").exists()


class TestHandles:
    def test_a_feature_handle_loads_features(self, published, images):
        features = bitlib.load("google/bit/m-r50x1/1")
        np.testing.assert_array_equal(features(images), bitlib.load("BiT-M-R50x1", head=None)(images))
        assert bitlib.load("google/bit/m-r50x1/imagenet21k_classification/1")(images).shape == (2, 11)
        assert bitlib.load("google/bit/m-r50x1/1", head=5)(images).shape == (2, 5)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("handle", "kept"),
        [("google/bit/m-r50x1/1", (0, 1)), ("sayakpaul/bit_resnet152x2_384_classification/1", (-1, 1))],
    )
    def test_a_ported_handle_takes_what_the_module_took(self, published, images, tmp_path, handle, kept):
        folder = bitlib.port("https://tfhub.dev/" + handle, tmp_path / handle)
        fed = images if kept == (-1, 1) else (images + 1) / 2
        expected = bitlib.load(handle)(images)
        np.testing.assert_allclose(hub.KerasLayer(str(folder))(fed), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    def test_a_collection_becomes_a_tree_like_the_hubs(self, published, tmp_path):
        ported = list(savedmodel.port_all(["sayakpaul/collections/bit-resnet/1"], tmp_path / "hub"))
        folders = {one.folder.relative_to(tmp_path / "hub").as_posix() for one in ported}
        assert folders == set(zoo.handles("sayakpaul/collections/bit-resnet"))
        assert len(folders) == 8
        for one in ported:
            assert one.difference < 1e-4
            assert one.size == sum(file.stat().st_size for file in one.folder.rglob("*") if file.is_file())
            assert one.output in hub.load(str(one.folder)).signatures["serving_default"].structured_outputs

    @pytest.mark.slow
    def test_names_files_and_handles_in_one_list(self, published, small_npz, tmp_path, images):
        sources = ["BiT-M-R50x1", small_npz, "google/bit/m-r50x1/ilsvrc2012_classification/1", "R50x1_160"]
        ported = list(savedmodel.port_all(sources, tmp_path / "hub"))
        assert [one.folder.relative_to(tmp_path / "hub").as_posix() for one in ported] == [
            "google/bit/m-r50x1/imagenet21k_classification/1",
            "google/bit/m-r50x1/1",
            "small/classifier/1",
            "small/features/1",
            "google/bit/m-r50x1/ilsvrc2012_classification/1",
            "sayakpaul/distill_bit_resnet50x1_160_classification/1",
            "sayakpaul/distill_bit_r50x1_160_feature_extraction/1",
        ]
        logits = hub.load(str(ported[0].folder))((images + 1) / 2)
        np.testing.assert_allclose(logits, bitlib.load(small_npz)(images), rtol=1e-4, atol=1e-4)

    def test_a_wrong_name_is_found_before_anything_is_written(self, published, tmp_path):
        with pytest.raises(ValueError, match="no published BiT is called 'R50x1_161'"):
            savedmodel.port_all(["R50x1_160", "R50x1_161"], tmp_path / "hub")
        assert not (tmp_path / "hub").exists()


class TestModelCard:
    def card(self, folder):
        return (folder / "README.md").read_text("utf-8")

    @pytest.mark.slow
    def test_of_a_published_model(self, published, small_npz, tmp_path):
        told = self.card(bitlib.port("google/bit/m-r50x1/imagenet21k_classification/1", tmp_path / "x"))
        digest = hashlib.sha256(small_npz.read_bytes()).hexdigest()
        for part in (
            "# BiT-M-R50x1\n",
            f"`BiT-M-R50x1.npz`, SHA-256 `{digest}`, published at https://storage.googleapis.com/bit_models/",
            "in [0, 1]; height and width at least 32",
            "`logits`, float32 `[N, 11]`",
            "480×480 pixels, whatever the shape (bilinear, not antialiased)",
            "Apache-2.0",
            "arXiv 1912.11370",
            "hub.KerasLayer(folder, trainable=True)",
        ):
            assert part in told

    @pytest.mark.slow
    def test_of_features_of_a_file_of_ones_own(self, small_npz, tmp_path):
        told = self.card(bitlib.port(small_npz, tmp_path / "x", head=None))
        assert "`features`, float32 `[N, 1024]`.\n" in told
        assert "published at" not in told
        assert "that of the images it was trained on" in told

    @pytest.mark.slow
    def test_of_a_tuned_and_of_a_frozen_model(self, small_npz, tmp_path):
        model = bitlib.load(small_npz)
        model.tuned = True
        told = self.card(bitlib.export(model, tmp_path / "x", freeze=True))
        assert "fine-tuned since" in told
        assert "for inference only" in told
        assert "trainable=True" not in told

    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["fit", "head alone", "clone", "config", "assign"])
    def test_of_weights_that_are_no_longer_those_of_the_file(self, published, way, images):
        model = bitlib.load("BiT-M-R50x1")
        assert "`BiT-M-R50x1.npz`, SHA-256" in modelcard.text(model, (-1, 1), False, False)
        if way in ("fit", "head alone"):
            for layer in model.layers:
                layer.trainable = way == "fit" or layer.name == "head"
            model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            model.fit(images, np.array([1, 2]), verbose=0)
        elif way == "assign":
            checkpoint.assign(model, {name: 2 * np.asarray(array) for name, array in model.arrays.items()})
        else:
            model = keras.models.clone_model(model) if way == "clone" else BiT.from_config(model.get_config())
        told = modelcard.text(model, (-1, 1), False, False)
        assert "- **Weights:** made here, or changed since they were loaded from `BiT-M-R50x1.npz`.\n" in told
        for claim in ("# BiT-M", "SHA-256", "published at", "ImageNet-21k.", "Apache"):
            assert claim not in told
        known = modelcard.metadata(model)
        assert not {"source", "source_sha256", "name", "trained_on", "licence", "fine_tuned"} & set(known)
        copied = keras.models.clone_model(model)
        copied.set_weights(bitlib.load("BiT-M-R50x1").get_weights())
        assert "# BiT-M-R50x1\n" in modelcard.text(copied, (-1, 1), False, False)

    def test_of_a_model_made_from_nothing(self, tmp_path):
        told = self.card(bitlib.export(BiT((1, 1, 1, 1), 0.5, 3), tmp_path / "x"))
        assert "made here, not loaded from a file" in told

    @pytest.mark.slow
    def test_its_code_runs(self, small_npz, tmp_path, images):
        """Every way of loading that the card names, as it is written there."""
        folder = str(bitlib.port(small_npz, tmp_path / "x"))
        blocks = re.findall(r"(?:^    .+\n)+", self.card(Path(folder)), re.M)
        assert len(blocks) == 3
        expected = bitlib.load(small_npz)(images).numpy()
        for block in blocks:
            names = {"folder": folder, "images": images, "hub": hub, "keras": keras, "tf": tf}
            exec(textwrap.dedent(block), names)
            np.testing.assert_allclose(names["logits"], expected, rtol=1e-4, atol=1e-4)
