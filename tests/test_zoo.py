import dataclasses
import itertools
import random

import pytest

from bitlib import checkpoint, zoo
from bitlib.model import UNITS


def test_every_published_file_has_a_card():
    names = zoo.names()
    assert len(names) == len(set(names)) == 1 + 6 + 6 + 6 + 2 + 2 + 4 + 285
    assert names[0] == zoo.BUNDLED
    files = {zoo.card(name).file for name in names}
    assert {
        "BiT-S-R152x4.npz",
        "BiT-M-R101x3.npz",
        "BiT-M-R50x1-ILSVRC2012.npz",
        "vtab/BiT-M-R152x4-run2-dsprites-xpos.npz",
        "distill/R50x1_160.npz",
        "distill/R152x2_T_sun128.npz",
    } <= files
    assert "vtab/BiT-M-R152x2-run0-svhn.npz" not in files


def test_addresses():
    assert zoo.card("R50x1_224").url == "https://storage.googleapis.com/bit_models/distill/R50x1_224.npz"
    assert zoo.card(zoo.BUNDLED).url is None


@pytest.mark.parametrize(
    "name", ["BiT-M-R50x1", "bit-m-r50x1", "BiT-M-R50x1.npz", "some/folder/BiT-M-R50x1.npz"]
)
def test_names_in_any_case_with_folder_and_suffix(name):
    card = zoo.card(name)
    assert card.name == "BiT-M-R50x1"
    assert (card.num_classes, card.labels, card.activation) == (21843, "imagenet21k", "sigmoid")


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"'BiT-S-R50x2'; nearest: .*BiT-S-R50x1"):
        zoo.card("BiT-S-R50x2")
    with pytest.raises(ValueError, match="lists them all"):
        zoo.card("!")


def test_card_of_a_file_of_ones_own(tmp_path):
    card = zoo.card_of(tmp_path / "mine.npz")
    assert (card.name, card.labels, card.num_classes) == ("mine", None, None)
    assert zoo.card_of(tmp_path / "R50x1_224.npz") == zoo.card("R50x1_224")
    with pytest.raises(ValueError, match="no published BiT"):
        zoo.card_of("mine")


def test_cards_are_constants():
    with pytest.raises(dataclasses.FrozenInstanceError):
        zoo.card(zoo.BUNDLED).resolution = 3


def test_the_bundled_card_tells_the_truth():
    units, width, classes = checkpoint.infer(checkpoint.shapes(checkpoint.fetch(zoo.BUNDLED)))
    assert (units, width, classes) == (UNITS[14], 0.5, zoo.card(zoo.BUNDLED).num_classes)


SIZES = {
    "BiT-M-R50x1-ILSVRC2012": 102242668,
    "BiT-M-R101x1-ILSVRC2012": 178256468,
    "BiT-M-R50x3-ILSVRC2012": 869321580,
    "BiT-M-R101x3-ILSVRC2012": 1551830100,
    "BiT-M-R152x2-ILSVRC2012": 945476668,
    "BiT-M-R152x4-ILSVRC2012": 3746270104,
    "R152x2_T_384": 945485848,
}
"""Bytes of the published files, read off their listings: arrays, and for each a header."""

PARAMETERS = {
    "R50x1": (25549352, 68256659),
    "R101x1": (44541480, 87248787),
    "R50x3": (217319080, 345399315),
    "R101x3": (387934888, 516015123),
    "R152x2": (236335208, 321728979),
    "R152x4": (936533224, 1107299923),
}
"""With a head of 1000 classes, and of 21843."""


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_sizes_are_nearly_those_of_the_published_files(name, size):
    assert zoo.card(name).size == pytest.approx(size, rel=6e-4)
    assert zoo.card(name).size < size


@pytest.mark.parametrize(("architecture", "counts"), PARAMETERS.items())
def test_parameters(architecture, counts):
    small, large = counts
    assert zoo.card(f"BiT-S-{architecture}").parameters == small
    assert zoo.card(f"BiT-M-{architecture}-ILSVRC2012").parameters == small
    assert zoo.card(f"BiT-M-{architecture}").parameters == large


def test_the_bundled_file_is_as_large_as_told():
    card = zoo.card(zoo.BUNDLED)
    assert card.size == checkpoint.fetch(zoo.BUNDLED).stat().st_size
    assert card.parameters == 3_032_328


def test_units_are_those_of_the_model():
    assert zoo.UNITS == UNITS


def expected_handles():
    """Every handle of the table of published modules, spelled out: handle, checkpoint, output, range."""
    for family, architecture in itertools.product("sm", ("r50x1", "r50x3", "r101x1", "r101x3", "r152x4")):
        handle, name = f"google/bit/{family}-{architecture}", f"BiT-{family.upper()}-R{architecture[1:]}"
        yield f"{handle}/1", name, "features", (0, 1)
        tuned = name + ("-ILSVRC2012" if family == "m" else "")
        yield f"{handle}/ilsvrc2012_classification/1", tuned, "logits", (0, 1)
        if family == "m":
            yield f"{handle}/imagenet21k_classification/1", name, "logits", (0, 1)
    for size in (224, 384):
        name = f"R152x2_T_{size}"
        yield f"sayakpaul/bit_resnet152x2_{size}_classification/1", name, "logits", (-1, 1)
        yield f"sayakpaul/bit_r152x2_{size}_feature_extraction/1", name, "features", (-1, 1)
    for size in (224, 160):
        for spelling in ("resnet50x1", "r50x1"):
            handle = f"sayakpaul/distill_bit_{spelling}_{size}_classification/1"
            yield handle, f"R50x1_{size}", "logits", (-1, 1)
        yield f"sayakpaul/distill_bit_r50x1_{size}_feature_extraction/1", f"R50x1_{size}", "features", (-1, 1)


@pytest.mark.parametrize(
    "form", ["{}", "https://tfhub.dev/{}", "http://tfhub.dev/{}?tf-hub-format=compressed"]
)
@pytest.mark.parametrize(("handle", "name", "output", "input_range"), list(expected_handles()))
def test_hub_handles(form, handle, name, output, input_range):
    card = zoo.card(form.format(handle))
    assert (card.name, card.output, card.input_range, card.handle) == (name, output, input_range, handle)
    assert zoo.card(handle.removesuffix("/1")) == card


def test_collections_list_their_members():
    assert len(zoo.handles("https://tfhub.dev/sayakpaul/collections/bit-resnet/1")) == 8
    assert len(zoo.handles("google/collections/bit")) == 25
    assert len(zoo.handles()) == 33
    with pytest.raises(
        ValueError, match="is a collection; choose one of its members: .*bit_r152x2_384_feature"
    ):
        zoo.card("sayakpaul/collections/bit-resnet/1")
    with pytest.raises(ValueError, match="^collection: expected one of google/collections/bit, sayak"):
        zoo.handles("google/collections/bert")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("google/bit/m-r50x2/1", "google/bit/m-r50x1/1"),
        (
            "sayakpaul/distill_bit_r50x1_256_classification/1",
            "sayakpaul/distill_bit_resnet50x1_224_classification/1",
        ),
        (
            "https://tfhub.dev/google/bit/m-r50x1/ilsvrc2012/1",
            "google/bit/m-r50x1/ilsvrc2012_classification/1",
        ),
        ("BiT-M-R50-x1", "BiT-M-R50x1"),
        ("R50x1_244", "R50x1_224"),
        ("gogle/bit/m-r50x1/1", "google/bit/m-r50x1/1"),
        ("https://tfhub.dev/gogle/bit/m-r50x1", "google/bit/m-r50x1/1"),
        ("sayakpal/bit_r152x2_224_feature_extraction", "sayakpaul/bit_r152x2_224_feature_extraction/1"),
        ("gogle/collections/bit/1", "google/collections/bit"),
        ("BiT-M-R50x1-run0-svnh", "BiT-M-R50x1-run0-svhn"),
        ("BiT-M-R50x1-run0-flowers", "BiT-M-R50x1-run0-oxford_flowers102"),
        ("vtab/BiT-M-R101x3-run2-clevr_count.npz", "BiT-M-R101x3-run2-clevr-count"),
    ],
)
def test_wrong_names_get_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"nearest: .*{nearest}"):
        zoo.card(wrong)


def test_a_slip_of_the_finger_gets_what_was_meant():
    rng = random.Random(3)
    for name in rng.sample(zoo.names(), 12) + rng.sample(zoo.handles(), 12):
        place = rng.randrange(len(name) - 1)
        swapped = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
        for wrong in (swapped, name[:place] + name[place + 1 :], name[:place] + "q" + name[place + 1 :]):
            assert name in suggested(wrong), wrong


def suggested(name):
    try:
        return zoo.card(name).name  # the slip made another name, or none that matters
    except ValueError as error:
        return str(error).split("nearest: ")[1]


def test_names_of_the_paper():
    with pytest.raises(ValueError, match="no published BiT"):
        zoo.card("gogle/bit/m-r50x1")
    assert zoo.card("M-R101x3").name == "BiT-M-R101x3"
    assert zoo.card("https://storage.googleapis.com/bit_models/distill/R50x1_224.npz").name == "R50x1_224"


class TestTable:
    def test_words_narrow_it_down(self):
        assert len(zoo.table()) == 1 + 6 + 6 + 6 + 2 + 2 + 4
        assert {card.architecture for card in zoo.table("R50x1")} == {"R50x1"}
        assert [card.name for card in zoo.table("sayakpaul", "160")] == ["R50x1_160"]
        assert len(zoo.table("vtab")) == 285
        assert len(zoo.table("svhn", "R152x4")) == 3
        assert zoo.table("nothing of the kind") == []

    def test_as_text_and_as_markdown(self):
        text = str(zoo.table("M", "R152x4"))
        assert "BiT-M-R152x4-ILSVRC2012" in text
        assert "84.9–85.4" in text
        assert "936.5 M" in text
        assert "3,746 MB" in text
        page = zoo.table("R50x1_224")._repr_markdown_()
        assert "`" not in page
        assert "| R50x1_224 | ImageNet-1k, distilled from R152x2 | 1,000 | 256 → 224 | 82.8 |" in page
        assert (
            zoo.card("R50x1_224").handles["features"]
            == "sayakpaul/distill_bit_r50x1_224_feature_extraction/1"
        )

    def test_what_only_the_file_tells(self):
        card = zoo.card("R152x2_T_pet128")
        assert (card.parameters, card.size) == (None, None)
        assert "as in the file" in str(zoo.table("pet128"))


def test_licence_and_citation():
    assert {zoo.card(name).licence for name in zoo.names()} == {"Apache-2.0"}
    assert "1912.11370" in zoo.card("BiT-S-R50x1").citation
    assert "2106.05237" in zoo.card("R50x1_160").citation


def test_vtab_resolution_follows_the_rule():
    assert zoo.card("BiT-M-R50x1-run0-svhn").resolution == 128
    assert zoo.card("BiT-M-R50x1-run0-sun397").resolution == 384
    assert zoo.card("BiT-M-R152x4-run0-sun397").resolution == 480


@pytest.mark.parametrize(
    ("name", "handle"),
    [
        ("https://www.kaggle.com/models/google/bit/TensorFlow2/m-r50x1/1", "google/bit/m-r50x1/1"),
        (
            "https://kaggle.com/models/google/bit/tensorFlow2/m-r50x1?tfhub-redirect=true",
            "google/bit/m-r50x1/1",
        ),
        (
            "https://www.kaggle.com/models/google/bit/frameworks/TensorFlow2/variations/"
            "s-r50x3-ilsvrc2012-classification/versions/1",
            "google/bit/s-r50x3/ilsvrc2012_classification/1",
        ),
        ("google/bit/tensorFlow2/m-r50x1", "google/bit/m-r50x1/1"),
        ("google/bit/tensorFlow2/m-r101x3/1", "google/bit/m-r101x3/1"),
        (
            "google/bit/tensorFlow2/m-r50x1-imagenet21k-classification",
            "google/bit/m-r50x1/imagenet21k_classification/1",
        ),
        (
            "spsayakpaul/any-slug/tensorFlow2/distill-bit-r50x1-160-feature-extraction",
            "sayakpaul/distill_bit_r50x1_160_feature_extraction/1",
        ),
    ],
)
def test_addresses_of_kaggle_lead_where_the_hubs_led(name, handle):
    found, expected = zoo.card(name), zoo.card(handle)
    assert found == expected
    assert found.handle == handle


def test_every_handle_has_an_address_on_kaggle():
    for handle in zoo.handles("google/collections/bit"):
        variation = handle.removeprefix("google/bit/").removesuffix("/1").replace("/", "-").replace("_", "-")
        assert zoo.card(f"google/bit/tensorFlow2/{variation}/1").handle == handle


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("resnetv2_50x1_bit.goog_in21k", "BiT-M-R50x1"),
        ("timm/resnetv2_152x4_bit.goog_in21k_ft_in1k", "BiT-M-R152x4-ILSVRC2012"),
        ("hf-hub:timm/resnetv2_50x1_bit.goog_distilled_in1k", "R50x1_224"),
        ("https://huggingface.co/timm/resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384", "R152x2_T_384"),
        ("resnetv2_101x3_bitm_in21k", "BiT-M-R101x3"),
        ("resnetv2_50x1_bitm", "BiT-M-R50x1-ILSVRC2012"),
        ("resnetv2_152x2_bit_teacher", "R152x2_T_224"),
        ("google/bit-50", "BiT-M-R50x1-ILSVRC2012"),
    ],
)
def test_names_in_timm_and_transformers(name, known):
    card = zoo.card(name)
    assert card == zoo.card(known)
    assert (card.output, card.input_range) == ("logits", (-1, 1))


def test_near_misses_of_such_names():
    with pytest.raises(ValueError, match="nearest: .*resnetv2_50x1_bit.goog_in21k"):
        zoo.card("resnetv2_50x1_bit.google_in21k")
    with pytest.raises(ValueError, match="nearest: .*google/bit/m-r50x1/1"):
        zoo.card("gogle/bit/tensorFlow2/m-r50x1")
