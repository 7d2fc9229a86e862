"""Bars are text in a terminal and HTML on a page; a page starts quietly and says what it leaves out."""

import subprocess
import sys

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image

from bitlib import console, pages, zoo


def test_in_a_terminal_it_is_text(capsys):
    with console.bar(3, "step") as bar:
        bar.update(3)
    assert "3/3" in capsys.readouterr().err


def test_on_a_page_it_is_html_and_nothing_is_red(capsys):
    InteractiveShell.instance().config.IPKernelApp.quiet = True  # as a kernel's has such a section
    with capture_output() as captured, console.bar(3, "step", mininterval=0) as bar:
        bar.update(2)
        bar.set_postfix(loss="0.5")
    drawn = [output.data["text/html"] for output in captured.outputs]
    assert drawn[0].startswith('<progress max="3" value="0">')
    InteractiveShell.clear_instance()
    assert captured.stderr == ""
    assert capsys.readouterr().err == ""


def test_not_shown_it_draws_nothing(capsys):
    with console.bar(3, "step", shown=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_quiet_start_writes_nothing_to_stderr():
    code = "from bitlib import pages; pages.quiet(); import tensorflow, tensorflow_hub, sys; print('ready')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("ready\n", "")


class TestReadable:
    @pytest.fixture
    def files(self, tmp_path):
        for name in "abcd":
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / "b.png").write_bytes(b"not a picture")
        return [str(tmp_path / f"{name}.png") for name in "abcd"]

    def test_a_broken_picture_is_named_and_left_out(self, files, capsys):
        assert list(pages.readable(files, 8)) == ["a.png", "c.png", "d.png"]
        assert "b.png: " in capsys.readouterr().out

    def test_more_than_are_shown(self, files, capsys):
        assert list(pages.readable(files, 2)) == ["a.png", "c.png"]
        assert "the first 2 of 4 pictures are shown" in capsys.readouterr().out

    def test_none(self, files):
        with pytest.raises(ValueError, match="none of 1 pictures can be read"):
            pages.readable(files[1:2], 2)


def test_an_error_names_the_parameter_of_the_page():
    found = "^parameter checkpoint of this page: name: no published BiT"
    with pytest.raises(ValueError, match=found), pages.parameter("checkpoint"):
        zoo.card("R51x1")
