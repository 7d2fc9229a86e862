"""Plans as batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bitlib import hyperrule
from bitlib.training import augment, examples


def a_plan(**changes):
    settings = {
        "num_examples": 100, "image_size": 48, "batch_size": 8, "steps": 12,
        "resize": 40, "crop": 32, "random_flip": False,
    }  # fmt: skip
    return hyperrule.plan(**(settings | changes))


def numbered(count):
    """Examples that tell their own number: every pixel of picture i is i / 100."""
    images = np.ones((count, 32, 32, 3)) * np.arange(count)[:, None, None, None] / 100
    images[:, -1] = -1  # a last row that says: [-1, 1]
    return images.astype(np.float32), np.arange(count) % 5


def numbers_of(batches):
    return [np.round(images[:, 0, 0, 0] * 100).astype(int) for images, _ in batches]


def cropped(image, plan, seed):
    size = plan.resize if plan.random_crop else plan.crop
    return augment.cropped(augment.resized(image[None], size), plan, np.random.default_rng(seed))[0]


class TestImages:
    @pytest.fixture
    def image(self):
        return np.random.default_rng(0).uniform(-1, 1, (50, 70, 3)).astype("float32")

    def test_crop_is_a_part_of_the_resized_image(self, image):
        plan = a_plan(resize=40, crop=32)
        resized = augment.resized(image, 40)
        places = set()
        for number in range(30):
            crop = cropped(image, plan, number)
            found = [
                (y, x)
                for y in range(9)
                for x in range(9)
                if np.array_equal(crop, resized[y : y + 32, x : x + 32])
            ]
            assert len(found) == 1
            places.add(found[0])
        assert len(places) > 15

    def test_without_crop_the_whole_image_is_resized(self, image):
        plan = a_plan(random_crop=False)
        np.testing.assert_allclose(cropped(image, plan, 0), tf.image.resize(image, (32, 32)), atol=1e-6)

    def test_half_of_the_images_are_mirrored_if_the_plan_says_so(self, image):
        plan = a_plan(random_crop=False, random_flip=True)
        straight = tf.image.resize(image, (32, 32)).numpy()
        mirrored = 0
        for number in range(60):
            result = cropped(image, plan, number)
            if not np.allclose(result, straight, atol=1e-6):
                np.testing.assert_allclose(result, straight[:, ::-1], atol=1e-6)
                mirrored += 1
        assert 15 < mirrored < 45

    @pytest.mark.parametrize("size", [32, 50, 64, 160])
    def test_resizing_is_that_of_the_official_code(self, image, size):
        expected = tf.image.resize(image, (size, size), "bilinear")
        np.testing.assert_allclose(augment.resized(image, size), expected, atol=1e-6)
        np.testing.assert_array_equal(augment.resized(image[None], size)[0], augment.resized(image, size))


class TestMixup:
    def test_blends_images_and_labels_alike(self):
        images, _labels = numbered(16)
        one_hot = np.eye(16, dtype=np.float32)[np.arange(16)]
        mixed, soft = augment.mixup(images, one_hot, 0.4, np.random.default_rng(5))
        np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
        expected = np.tensordot(soft, images, 1)
        np.testing.assert_allclose(mixed, expected, atol=1e-6)
        assert sum(len(np.flatnonzero(row)) == 2 for row in soft) > 8

    def test_the_share_follows_its_distribution(self):
        """Of Beta(α, α), mean and variance; α = 0.1 is at 0 or 1 most of the time."""
        images, labels = np.zeros((2, 32, 32, 3), np.float32), np.eye(2, dtype=np.float32)
        for alpha in (0.1, 1.0):
            shares = []
            for number in range(400):
                soft = augment.mixup(images, labels, alpha, np.random.default_rng(number))[1]
                shares.append(soft[0, 0])
            shares = np.array(shares)
            # Partners are drawn: half of the time an example meets itself, and stays as it is.
            blended = shares[(shares > 1e-6) & (shares < 1 - 1e-6)]
            assert abs(np.mean(np.abs(blended - 0.5)) - {0.1: 0.43, 1.0: 0.25}[alpha]) < 0.06

    def test_none_of_it_for_alpha_0(self):
        images, labels = numbered(4)
        same, too = augment.mixup(images, labels, 0, np.random.default_rng(0))
        assert same is images
        assert too is labels


class TestTrainBatches:
    def batches(self, examples, start=0, seed=0, **changes):
        return augment.training_batches(examples, a_plan(resize=32, **changes), 5, seed, start)

    @pytest.mark.parametrize("count", [3, 8, 24, 50])
    def test_no_example_is_lost_or_doubled_in_an_epoch(self, count):
        drawn = np.concatenate(numbers_of(self.batches(numbered(count), steps=20)))
        assert len(drawn) == 160
        for first in range(0, 160 - count + 1, count):
            assert sorted(drawn[first : first + count]) == list(range(count))
        if count > 8:
            assert list(drawn[:count]) != list(drawn[count : 2 * count])

    def test_labels_belong_to_their_images(self):
        for images, labels in self.batches(numbered(23)):
            numbers = np.round(images[:, 0, 0, 0] * 100).astype(int)
            np.testing.assert_array_equal(np.argmax(labels, 1), numbers % 5)

    @pytest.mark.parametrize("start", [1, 5, 11])
    @pytest.mark.parametrize("kind", ["arrays", "dataset", "of unknown length", "too large to keep"])
    def test_going_on_in_the_middle_gives_what_an_unbroken_run_sees(self, start, kind, monkeypatch):
        pairs = numbered(21)
        if kind == "too large to keep":
            monkeypatch.setattr(augment, "CACHED_BYTES", 10 * 40 * 40 * 3 * 4)
        if kind != "arrays":
            pairs = tf.data.Dataset.from_tensor_slices(pairs)
        if kind == "of unknown length":
            pairs = pairs.filter(lambda image, label: True)
        changes = {"mixup_alpha": 0.3, "crop": 32, "random_flip": True}
        whole = list(augment.training_batches(pairs, a_plan(**changes), 5, 4))
        rest = list(augment.training_batches(pairs, a_plan(**changes), 5, 4, start))
        assert len(rest) == 12 - start
        for (images, labels), (again, too) in zip(whole[start:], rest, strict=True):
            np.testing.assert_array_equal(images, again)
            np.testing.assert_array_equal(labels, too)

    @pytest.mark.parametrize("length", ["known", "unknown"])
    def test_no_example_of_a_stream_is_lost_or_doubled(self, monkeypatch, length):
        """A dataset of which only ten pictures fit into memory."""
        monkeypatch.setattr(augment, "CACHED_BYTES", 10 * 32 * 32 * 3 * 4)
        dataset = tf.data.Dataset.from_tensor_slices(numbered(24))
        if length == "unknown":
            dataset = dataset.filter(lambda image, label: True)
        drawn = np.concatenate(numbers_of(self.batches(dataset, steps=12)))
        epochs = drawn.reshape(4, 24)
        assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
        assert list(epochs[0]) != list(epochs[1])
        # Shuffled as far as memory allows: the n-th drawn is no later than number n + 10.
        assert (epochs <= np.arange(24) + 10).all()

    @pytest.mark.parametrize("kept", [True, False])
    def test_a_global_seed_changes_nothing(self, monkeypatch, kept):
        if not kept:
            monkeypatch.setattr(augment, "CACHED_BYTES", 1)
        dataset = tf.data.Dataset.from_tensor_slices(numbered(24))
        orders = []
        for seed in (3, 4):
            keras.utils.set_random_seed(seed)
            orders.append(np.concatenate(numbers_of(self.batches(dataset))))
        np.testing.assert_array_equal(*orders)

    def test_seeds_differ(self):
        one, other = (np.concatenate(numbers_of(self.batches(numbered(50), seed=s))) for s in (0, 1))
        assert list(one) != list(other)
        again = np.concatenate(numbers_of(self.batches(numbered(50), seed=0)))
        assert list(one) == list(again)

    def test_images_of_any_size(self):
        sizes = [(40, 50), (33, 90), (64, 64)]
        dataset = tf.data.Dataset.from_generator(
            lambda: ((np.zeros((*size, 3), np.float32), n) for n, size in enumerate(sizes)),
            output_signature=(tf.TensorSpec((None, None, 3)), tf.TensorSpec((), tf.int32)),
        )
        for images, labels in augment.training_batches(dataset, a_plan(steps=2), 3):
            assert images.shape == (8, 32, 32, 3)
            assert labels.shape == (8, 3)
        sizes = [len(batch) for batch, _ in augment.evaluation_batches(dataset, a_plan(), 3, batch_size=2)]
        assert sizes == [2, 1]

    def test_every_test_example_once_and_in_order(self):
        seen = [labels for _, labels in augment.evaluation_batches(numbered(50), a_plan(), 5, 16)]
        assert [len(batch) for batch in seen] == [16, 16, 16, 2]
        np.testing.assert_array_equal(np.concatenate(seen), numbered(50)[1])

    @pytest.mark.parametrize(
        ("examples", "message"),
        [
            ((np.zeros((4, 32, 32), np.float32), np.zeros(4, int)), r"images: expected shape \[N, H, W, 3\]"),
            ((np.zeros((4, 32, 32, 3), np.float32), np.zeros(3, int)), "one integer for each of 4 images"),
            (
                (np.zeros((4, 32, 32, 3), np.float32), np.zeros(4)),
                "labels: expected integers, received float",
            ),
            ((np.zeros((4, 32, 32, 3), np.float32), np.arange(4) + 2), "expected 0 to 4, .* received 2 to 5"),
            ((np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, int)), "divide by 127.5"),
            ((np.zeros((0, 32, 32, 3), np.float32), np.zeros(0, int)), "at least one"),
            (tf.data.Dataset.from_tensor_slices(numbered(4)).repeat(), "without end"),
            (tf.data.Dataset.from_tensor_slices(numbered(4)).take(0), "at least one example"),
            (tf.data.Dataset.range(4), r"images: expected shape \[N, H, W, 3\]"),
        ],
    )
    def test_refusals(self, examples, message):
        with pytest.raises(ValueError, match=message):
            augment.training_batches(examples, a_plan(), 5)

    def test_a_wrong_label_in_the_middle_of_a_dataset(self, monkeypatch):
        images, labels = numbered(20)
        labels[17] = 7
        dataset = tf.data.Dataset.from_tensor_slices((images, labels))
        message = "^labels: expected 0 to 4, .* received 7, first in example 17"
        with pytest.raises(ValueError, match=message):
            augment.training_batches(dataset, a_plan(), 5)
        monkeypatch.setattr(augment, "CACHED_BYTES", 1)
        batches = augment.training_batches(dataset, a_plan(), 5)
        with pytest.raises(ValueError, match=message), examples.errors_in_words("train"):
            list(batches)
