import dataclasses

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
