"""scripts/reproduce.py, end to end on a small stand-in of a data set and of a checkpoint."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bitlib import checkpoint
from scripts import reproduce

SCRIPT = Path(__file__).parent.parent / "scripts" / "reproduce.py"


@pytest.mark.parametrize(
    ("jobs", "several"),
    [
        ({"worker": ["a:1", "b:1"]}, True),
        ({"chief": ["a:1"], "worker": ["b:1"]}, True),
        ({"worker": ["a:1"]}, False),
        ({"chief": ["a:1"]}, False),
    ],
)
def test_a_chief_is_a_machine_too(monkeypatch, jobs, several):
    monkeypatch.setenv(
        "TF_CONFIG", json.dumps({"cluster": jobs, "task": {"type": next(iter(jobs)), "index": 0}})
    )
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: "several machines")
    assert (reproduce.strategy_of_machine() == "several machines") == several


@pytest.mark.slow
@pytest.mark.parametrize("share", [False, True])
def test_a_folder_with_splits(small_npz, tmp_path, share):
    for index in range(18):
        split = ("train", "test")[index // 9]
        path = tmp_path / "pictures" / split / "abc"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 10 * index, np.uint8)).save(path)
    options = argparse.Namespace(
        data_set=str(tmp_path / "pictures"), data_dir=None, shots=0, steps=2, base_lr=None, batch_size=4,
        accumulate=1, share=share, work=tmp_path / "run", strategy=tf.distribute.get_strategy(),
    )  # fmt: skip
    row = reproduce.learn(checkpoint.find(small_npz), options, 0)
    assert [row[name] for name in ("train", "test", "steps", "batch_size")] == [9, 9, 2, 4]
    assert 0 <= row["accuracy"] <= 1


@pytest.mark.slow
def test_seeds_are_trained_once_and_compared(small_npz, trees, tmp_path):
    def run(seeds):
        command = [
            sys.executable,
            SCRIPT,
            small_npz,
            "trees",
            "--data-dir",
            trees,
            "--work",
            tmp_path / "run",
        ]
        options = ["--seeds", seeds, "--steps", 2, "--batch-size", 4]
        done = subprocess.run(
            [str(part) for part in (*command, *options)], capture_output=True, text=True, check=True
        )
        lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
        return done.stdout, [json.loads(line) for line in lines]

    _, first = run(1)
    output, both = run(2)
    assert both[0] == first[0]
    assert [row["seed"] for row in both] == [0, 1]
    assert [both[0][name] for name in ("train", "test", "steps", "batch_size")] == [12, 5, 2, 4]
    assert "small-trees-all: median " in output
    assert "of 2 seeds" in output
    assert "published: no number known" in output
