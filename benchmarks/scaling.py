"""A training step of two processes that know nothing of each other, and of two workers that share a batch.

    python benchmarks/scaling.py

Each process has one core of its own and computes as many pictures. What the workers take longer is what it
costs to send and add gradients, here within one machine. docs/scaling.md has the table.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time

CASES = (("R50x1", 128, 8), ("R50x1", 128, 32), ("R14x0.5", 64, 32))
"""Architecture, pixels, pictures of each worker."""


def measure(architecture: str, size: int, share: int) -> float:
    """Seconds of a step of this process, a worker if TF_CONFIG says so; the median of eight."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    workers = len(json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {}).get("worker", "1"))
    several = tf.distribute.MultiWorkerMirroredStrategy if workers > 1 else tf.distribute.get_strategy
    strategy = several()

    from bitlib import finetune, hyperrule
    from bitlib.model import BiT
    from bitlib.training import loop
    from bitlib.training.devices import devices_of
    from bitlib.zoo import units_and_width

    settings = {"batch_size": share * workers, "steps": 10, "resize": size, "crop": size, "base_lr": 1e-5}
    plan = hyperrule.plan(100, size, **settings)
    examples = np.random.default_rng(0).uniform(-1, 1, (64, size, size, 3)).astype("f4"), np.arange(64) % 10
    with strategy.scope():
        model = BiT(*units_and_width(architecture), 10)
        optimizer = finetune._optimizer(model, plan)
        optimizer.build(model.trainable_variables)
    loss_of = finetune._loss_of(model, plan)
    devices = devices_of(model, plan.batch_size)
    step = loop.train_step(loss_of, optimizer, model.trainable_variables, devices, [model])
    batch = next(iter(loop.shared(examples, plan, 10, 0, 0, devices)))
    times = []
    for _ in range(10):
        started = time.perf_counter()
        float(step(*batch))
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def run(case: tuple, connected: bool) -> float:
    """Seconds of a step on two processes, connected or not, one on each of the first two cores."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    processes = []
    for index in range(2):
        config = {"cluster": cluster, "task": {"type": "worker", "index": index}} if connected else {}
        command = ["taskset", "-c", str(index), sys.executable, __file__, *map(str, case)]
        environment = os.environ | {"TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3"}
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
    return max(float(process.communicate()[0]) for process in processes)


def main() -> None:
    """Print a table, or the seconds of one process."""
    if len(sys.argv) == 4:
        print(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
        return
    print("| | apart | connected | of twice the throughput |\n|---|---:|---:|---:|")
    for case in CASES:
        apart, connected = run(case, False), run(case, True)
        name = f"{case[0]}, {case[1]} px, {case[2]} pictures each"
        print(f"| {name} | {apart:.2f} s | {connected:.2f} s | {apart / connected:.0%} |", flush=True)


if __name__ == "__main__":
    main()
