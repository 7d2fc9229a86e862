import numpy as np
import pandas as pd
import pytest

from bitlib import labels


def test_bundled_names():
    names = labels.names("glyph1k")
    assert len(names) == len(set(names)) == 1000
    assert names[0] == "LATIN CAPITAL LETTER A"


def test_published_lemmas(tmp_path, monkeypatch):
    monkeypatch.setenv("BITLIB_MIRROR", str(tmp_path))
    monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
    lemmas = "tench, Tinca_tinca\n" + "goldfish, Carassius_auratus\n" * 999
    (tmp_path / "ilsvrc2012_wordnet_lemmas.txt").write_text(lemmas)
    labels.names.cache_clear()
    names, reason = labels.names_or_numbers("ilsvrc2012", 1000)
    assert names[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert reason == ""
    names, reason = labels.names_or_numbers("ilsvrc2012", 10)
    assert names[3] == "class 3"
    assert "1000 names, the model 10 outputs" in reason
    labels.names.cache_clear()


def test_numbers_and_why(tmp_path, monkeypatch):
    monkeypatch.setenv("BITLIB_MIRROR", str(tmp_path))
    monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
    names, reason = labels.names_or_numbers("imagenet21k", 21843)
    assert names[-1] == "class 21842"
    assert "BITLIB_MIRROR" in reason
    assert labels.names_or_numbers(None, 2) == (
        ("class 0", "class 1"),
        "the model has no published class list",
    )


def test_no_such_list():
    with pytest.raises(ValueError, match="^class_list: expected one of glyph1k"):
        labels.names("imagenet")


def test_probabilities():
    logits = np.array([[0, np.log(3), -1000.0], [1e4, 0, 0]])
    np.testing.assert_allclose(labels.probabilities(logits), [[0.25, 0.75, 0], [1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(
        labels.probabilities(logits, "sigmoid"), [[0.5, 0.75, 0], [1, 0.5, 0.5]], atol=1e-12
    )
    with pytest.raises(ValueError, match="^activation: expected 'softmax' or 'sigmoid'"):
        labels.probabilities(logits, "relu")


@pytest.mark.parametrize("door", [labels.probabilities, lambda values: labels.top_k(values, "ab")])
@pytest.mark.parametrize(
    "values",
    [None, "ab", 3.0, [["a", "b"]], [[np.nan, 1]], [[np.inf, 1]], [[True, False]], [[-np.inf] * 2], [[], []]],
)
def test_what_is_no_numbers_of_classes(door, values):
    with pytest.raises(
        ValueError, match=r"^(logits|probabilities): expected a number for each class, \[N, classes\]"
    ):
        door(values)


def test_logits_and_probabilities_are_told_apart():
    with pytest.warns(UserWarning, match="^logits: each row sums to 1; expected logits"):
        labels.probabilities([[0.2, 0.8], [1, 0]])
    for values in ([[-1.0, 20]], np.array([[1, 200]], np.uint8)):
        with pytest.warns(UserWarning, match=r"^probabilities: expected \[0, 1\], received .*1 to 20"):
            assert labels.top_k(values, "ab", 1)[0][0][0] == "b"


@pytest.mark.parametrize(
    ("values", "names", "k", "words"),
    [
        ([0.2, 0.8], "ab", 1, r"^probabilities: expected \[N, classes\], .*probabilities\[None\].*\(2,\)"),
        ([[[0.2, 0.8]]], "ab", 1, r"^probabilities: expected .*\(1, 1, 2\)"),
        *(
            ([[0.2, 0.8]], names, 1, "^class_names: expected 2 names")
            for names in (None, 5, {"a", "b"}, {0: 1, 1: 2})
        ),
        *(([[0.2, 0.8]], "ab", k, "^k: expected at least 1, a whole number") for k in ("2", 2.5, None, True)),
    ],
)
def test_odd_arguments_of_top_k(values, names, k, words):
    with pytest.raises(ValueError, match=words):
        labels.top_k(values, names, k)


def test_a_model_without_a_card_has_numbers():
    assert labels.of_card(None, 2)[0] == ("class 0", "class 1")


def test_names_of_a_column_are_taken_by_position():
    names = pd.Series(["a", "b", "c"], index=[2, 1, 0])
    assert labels.top_k([[0.2, 0.1, 0.7]], names, 1) == [[("c", 0.7)]]
    for odd in (np.array([["a", "b", "c"]] * 3), names.to_frame()):
        with pytest.raises(ValueError, match="^class_names: expected 3 names, received"):
            labels.top_k([[0.2, 0.1, 0.7]], odd)


def test_top_k():
    top = labels.top_k([[0.2, 0.5, 0.2, 0.1]], "abcd", 3)
    assert top == [[("b", 0.5), ("a", 0.2), ("c", 0.2)]]
    assert len(labels.top_k([[0.2, 0.5]], "ab", 10)[0]) == 2
    with pytest.raises(ValueError, match="^class_names: expected 2 names, received 3"):
        labels.top_k([[0.2, 0.5]], "abc")
    with pytest.raises(ValueError, match="^k: expected at least 1"):
        labels.top_k([[0.2, 0.5]], "ab", 0)
