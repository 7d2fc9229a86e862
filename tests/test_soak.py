"""scripts/soak.py: runs are counted, failures kept, and a soak that was stopped goes on."""

import sys

import pytest

from scripts import soak


def test_it_goes_on_and_counts(tmp_path, monkeypatch, capsys):
    calls = []

    def run(page, setting):
        calls.append((page, setting))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return len(calls) != 2, 1.0, "said"

    monkeypatch.setattr(soak, "run", run)
    arguments = ["--times", "2", "--pages", "01", "--settings", "plain", "avx2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["soak.py", *arguments])
    with pytest.raises(KeyboardInterrupt):
        soak.main()
    assert soak.main() == 1
    assert [setting for _, setting in calls] == ["plain", "avx2", "plain", "avx2", "avx2"]
    assert [file.read_text() for file in tmp_path.glob("*.txt")] == ["said"]
    assert "| failed of | plain | avx2 |\n|---|---:|---:|\n| 01_porting.ipynb | 0 of 2 | 1 of 2 |" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_page_runs_as_on_another_processor(monkeypatch):
    """What a setting sets reaches the page; a page that fails is told as failed."""
    monkeypatch.setitem(soak.SETTINGS, "odd", {"PYTEST_ADDOPTS": "--no-such-option"})
    passed, seconds, said = soak.run(soak.PAGES[0], "odd")
    assert not passed
    assert seconds > 0
    assert "--no-such-option" in said
