"""Where a training step spends its time, ours beside timm's in PyTorch.

    make bench                                        once, for PyTorch's environment
    .venv/bin/python benchmarks/training_profile.py   R50x1, batch 16, 128 and 224 px

One operation runs at a time, on all cores, so that the times of operations add up; what is left of a step
is the time between them. The figures of docs/speed.md are of this.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from run import PEERS_PYTHON

STEPS = 5
BATCH = 16
ROUNDS = 3

KINDS = {
    "convolutions": ("Conv2D", "mkldnn_convolution"),
    "their gradients": ("Conv2DBackprop", "convolution_backward"),
    "standardisation": ("FusedBatchNorm", "native_batch_norm"),
    "update of weights": ("KerasMomentum", "Optimizer.step"),
}
"""What the names of operations contain, TensorFlow's and PyTorch's; a name is of the last kind that fits."""
REST = "GroupNorm and the rest"


def by_kind(times: Iterable[tuple[str, float]], whole: float) -> dict[str, float]:
    """Milliseconds of operations by name -> by kind; what is left of the whole is mostly GroupNorm."""
    found: Counter = Counter()
    for name, milliseconds in times:
        fits = [kind for kind, words in KINDS.items() if any(word in name for word in words)]
        if fits:
            found[fits[-1]] += milliseconds
    return {**found, REST: whole - sum(found.values()), "whole": whole}


def milliseconds(step: Callable) -> float:
    """Of one of `STEPS` steps."""
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return 1e3 * (time.perf_counter() - started) / STEPS


def ours(size: int) -> dict[str, float]:
    """Milliseconds of one step by kind."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    import ours as side
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    step = side.training("R50x1", BATCH, size, "live")
    step(), step()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            whole = milliseconds(step)
        (file,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    times = [
        (plane.event_metadata[event.metadata_id].name, event.duration_ps / 1e9 / STEPS)
        for plane in space.planes
        for line in plane.lines
        for event in line.events
    ]
    return by_kind(times, whole)


def timms(size: int) -> dict[str, float]:
    """As `ours`, of the faster of PyTorch's memory layouts."""
    import peers
    import torch

    def profiled(variant):
        step = peers.training("R50x1", BATCH, size, variant)
        step(), step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            whole = milliseconds(step)
        times = [
            # The optimizer's step is named as a whole, everything else by itself.
            (event.key, event.cpu_time_total if "Optimizer" in event.key else event.self_cpu_time_total)
            for event in profile.key_averages()
        ]
        return by_kind(((name, total / 1e3 / STEPS) for name, total in times), whole)

    return min(map(profiled, ("timm", "timm channels_last")), key=lambda found: found["whole"])


def one(side: str, size: int) -> dict[str, float]:
    """The times of one side, in a process of its own."""
    run = subprocess.run(
        [str(PEERS_PYTHON if side == "timm" else sys.executable), __file__, side, str(size)],
        capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    if run.returncode:
        sys.exit(run.stderr[-1000:])
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Print one side's times as JSON, or both as a table: the medians of some rounds."""
    if len(sys.argv) == 3:
        print(json.dumps({"ours": ours, "timm": timms}[sys.argv[1]](int(sys.argv[2]))))
        return
    columns = [(side, size) for size in (128, 224) for side in ("ours", "timm")]
    rounds = [[one(*column) for column in columns] for _ in range(ROUNDS)]
    print(f"| of a step, ms | {' | '.join(f'{side}, {size} px' for side, size in columns)} |")
    print(f"|---|{'---:|' * len(columns)}")
    for kind in (*KINDS, REST, "whole"):
        medians = [statistics.median(found[kind] for found in runs) for runs in zip(*rounds, strict=True)]
        print(f"| {kind} | {' | '.join(f'{median:.0f}' for median in medians)} |")


if __name__ == "__main__":
    main()
