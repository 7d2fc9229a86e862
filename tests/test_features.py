import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

import bitlib
from bitlib import features, ops


@pytest.fixture
def model(small_npz):
    return bitlib.load(small_npz)


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(-1, 1, (7, 32, 40, 3)).astype("float32")


class TestExtract:
    @pytest.mark.slow
    def test_pooled_features_are_the_headless_models(self, model, small_npz, images):
        expected = bitlib.load(small_npz, head=None)(images)
        result = features.extract(model, images)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
    def test_any_batch_size_and_any_iterable(self, model, images, batch_size):
        expected = features.extract(model, images)
        dataset = tf.data.Dataset.from_tensor_slices(images)
        pairs = tf.data.Dataset.from_tensor_slices((images, np.arange(7)))
        for source in (images, list(images), iter(images), dataset, pairs):
            result = features.extract(model, source, batch_size=batch_size)
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("stage", "shape"), [("root", (8, 10, 32)), ("block2", (4, 5, 256)), ("block4", (1, 2, 1024))]
    )
    def test_stages(self, model, images, stage, shape):
        maps = features.extract(model, images, stage, pool=False)
        assert maps.shape == (7, *shape)
        np.testing.assert_allclose(maps, model.stages(images)[stage], rtol=1e-4, atol=1e-3)
        pooled = features.extract(model, images, stage)
        np.testing.assert_allclose(pooled, maps.mean((1, 2)), rtol=1e-4, atol=1e-3)

    @pytest.mark.slow
    def test_memory_is_bounded_by_the_batch(self, model, monkeypatch):
        """A generator of any length: no more than one batch of it is drawn ahead."""
        drawn = 0

        def endless():
            nonlocal drawn
            while True:
                drawn += 1
                if drawn > 9:
                    raise InterruptedError
                yield np.zeros((32, 32, 3), "float32")

        computed = []
        graph = features._compiled(model, "features", False)
        monkeypatch.setattr(features, "_compiled", lambda *_: lambda x: computed.append(drawn) or graph(x))
        with pytest.raises(InterruptedError):
            features.extract(model, endless(), batch_size=4)
        assert computed == [4, 8]

    @pytest.mark.slow
    def test_one_graph_for_all_calls(self, model, images, monkeypatch):
        traced = []
        stages = model.stages
        monkeypatch.setattr(model, "stages", lambda batch: traced.append(1) or stages(batch))
        before = features.extract(model, images)
        model.root.convolution.kernel.assign(model.root.convolution.kernel[:, ::-1])
        after = features.extract(model, images[:, :, :32], batch_size=2)
        assert len(traced) == 1
        np.testing.assert_allclose(after, stages(images[:, :, :32])["features"], rtol=1e-4, atol=1e-4)
        assert np.abs(before - features.extract(model, images)).max() > 0.1

    @pytest.mark.slow
    def test_a_graph_of_constants_is_not_kept(self, model, images):
        with ops.constant_kernels(model):
            before = features.extract(model, images)
        model.root.convolution.kernel.assign(model.root.convolution.kernel[:, ::-1])
        assert np.abs(before - features.extract(model, images)).max() > 0.1

    @pytest.mark.slow
    def test_the_graph_does_not_outlive_its_model(self, small_npz, images):
        model = bitlib.load(small_npz)
        features.extract(model, images)
        alive = weakref.ref(model)
        del model
        gc.collect()
        assert alive() is None

    def test_refusals(self, model, images):
        with pytest.raises(ValueError, match="^stage: expected one of root"):
            features.extract(model, images, "block5")
        with pytest.raises(ValueError, match="^batch_size"):
            features.extract(model, images, batch_size=0)
        with pytest.raises(ValueError, match="at least one"):
            features.extract(model, [])
        with pytest.raises(ValueError, match=r"^images: expected floats in \[-1, 1\]"):
            features.extract(model, 100 * images)


class TestProbe:
    @pytest.fixture
    def clusters(self):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 4, 400)
        return rng.normal(0, 0.3, (400, 8)) + np.eye(4, 8)[labels] * 3, labels

    def test_linear_probe(self, clusters):
        vectors, labels = clusters
        assert features.linear_probe(vectors[:200], labels[:200]).score(vectors[200:], labels[200:]) > 0.99

    def test_few_shot(self, clusters):
        vectors, labels = clusters
        scores = features.few_shot(vectors, labels, shots=3, draws=4, num_test=200)
        assert scores.shape == (4,)
        assert scores.min() > 0.95
        np.testing.assert_array_equal(scores[1:], features.few_shot(vectors, labels, 3, 3, 200, seed=1))
        shuffled = np.random.default_rng(0).permutation(labels)
        assert features.few_shot(vectors, shuffled, shots=3, num_test=200).mean() < 0.5

    def test_too_few_of_a_class(self, clusters):
        with pytest.raises(ValueError, match=r"^shots: class \d has \d+ examples left, 150 are wanted"):
            features.few_shot(*clusters, shots=150, num_test=100)

    def test_nearest(self):
        vectors = np.array([[1, 0], [0, 2], [1, 1], [-3, 0]], float)
        indices, similarities = features.nearest(vectors, vectors[:1] * 5, 4)
        assert indices.tolist() == [[0, 2, 1, 3]]
        np.testing.assert_allclose(similarities, [[1, np.sqrt(0.5), 0, -1]], atol=1e-12)
        with pytest.raises(ValueError, match="^count: expected 1 to 4, received 5"):
            features.nearest(vectors, vectors, 5)

    @pytest.mark.parametrize(
        ("features_", "labels", "message"),
        [
            (np.full((4, 2), np.nan), [0, 1, 0, 1], "^features: expected finite numbers, .* first in row 0"),
            (
                np.zeros(4),
                [0, 1, 0, 1],
                r"^features: expected float \[N, C\], received float64 of shape \(4,\)",
            ),
            (np.array([["a"]] * 4), [0, 1, 0, 1], r"^features: expected float \[N, C\], received <U1"),
            ([[1], [2, 3]], [0, 1], "^features: expected an array"),
            (np.zeros((0, 2)), [], r"^features: .* shape \(0, 2\)"),
            (np.zeros((4, 2)), [0, 1, 0], r"^labels: expected one for each of 4 features, received \(3,\)"),
            (np.zeros((4, 2)), [1, 1, 1, 1], "^labels: expected two classes or more, received 1 alone"),
            (np.zeros((4, 2)), [0, 1, np.nan, 1], "^labels: .* missing values or fractions"),
            (np.zeros((4, 2)), [0, 1, 0.5, 1], "^labels: .* missing values or fractions"),
            (np.zeros((4, 2)), [1, "a", "b", 1], "^labels: .* several kinds of values"),
            (np.zeros((4, 2)), ["a", np.nan, "b", "b"], "^labels: .* several kinds of values"),
            (np.zeros((4, 2)), [b"a", b"b", b"a", b"b"], "^labels: expected class numbers or names"),
            (np.zeros((4, 2)), np.ma.masked_equal([0, 1, 0, 1], 1), "^labels: .* received a masked one"),
            (np.zeros((4, 2)), ["a", None, "b", "b"], "^labels: .* missing values or fractions"),
        ],
    )
    def test_refusals(self, features_, labels, message):
        for call in (features.linear_probe, lambda *given: features.few_shot(*given, 1, 1, 1)):
            with pytest.raises(ValueError, match=message):
                call(features_, labels)

    def test_other_kinds_of_numbers(self, clusters):
        for name, value in (("shots", "5"), ("draws", 0), ("num_test", 1.5)):
            with pytest.raises(ValueError, match=f"^{name}: expected at least 1, a whole number"):
                features.few_shot(*clusters, **{"shots": 1} | {name: value})
        with pytest.raises(ValueError, match="^regularization: expected a positive number, received 0"):
            features.linear_probe(*clusters, 0)
        vectors = clusters[0]
        with pytest.raises(ValueError, match="^queries: expected finite"):
            features.nearest(vectors, vectors * np.inf)
        with pytest.raises(ValueError, match=r"^queries: expected \[Q, 8\], received \[400, 3\]"):
            features.nearest(vectors, vectors[:, :3])
        with pytest.raises(ValueError, match="^count: expected 1 to 400, received '5'"):
            features.nearest(vectors, vectors, "5")

    def test_names_are_classes(self, clusters):
        vectors, labels = clusters
        names = np.array(["ant", "bee", "cat", "dog"], object)[labels]
        assert features.linear_probe(vectors, names).predict(vectors[:3]).tolist() == names[:3].tolist()
        assert features.linear_probe(vectors, labels[:, None]).classes_.tolist() == [0, 1, 2, 3]


def test_shrink_refuses_other_images():
    with pytest.raises(ValueError, match="^images: .* one picture"):
        features.shrink(np.zeros((32, 32, 3), "float32"))
    with pytest.raises(ValueError, match="^images: expected floats"):
        features.shrink(np.zeros((1, 32, 32, 3), "uint8"))
    with pytest.raises(ValueError, match="^size: expected at least 1, a whole number, received 0"):
        features.shrink(np.zeros((1, 32, 32, 3), "float32"), 0)


def test_shrink_averages():
    images = np.zeros((2, 32, 32, 3), "float32")
    images[1, :16, :16] = 0.9, 0.6, 0.3
    result = features.shrink(images, 2)
    np.testing.assert_allclose(result, [[0, 0, 0, 0], [0.6, 0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("labels", [[2, 10, 1], ["b", "a", "c"]])
def test_a_probe_learns_labels_of_a_column_of_objects_as_they_are(labels):
    vectors = np.repeat(np.eye(3), 4, axis=0)
    wanted = np.repeat(np.array(labels, object), 4)
    probe = features.linear_probe(vectors, wanted)
    assert probe.classes_.tolist() == sorted(labels)
    assert probe.predict(vectors).tolist() == wanted.tolist()


@pytest.mark.parametrize("labels", [[1, "1", 2], [0.5, 1.5, 2.5], [True, 1, 2]])
def test_labels_of_several_kinds_or_fractions_are_refused(labels):
    with pytest.raises(ValueError, match="^labels: expected class numbers or names"):
        features.linear_probe(np.eye(3), np.array(labels, object))
