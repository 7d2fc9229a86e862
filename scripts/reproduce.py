"""Fine-tune a published BiT on a whole data set by the BiT-HyperRule, as the paper does, and compare.

    python scripts/reproduce.py BiT-M-R50x1 cifar10
    python scripts/reproduce.py BiT-M-R50x1 cifar100 --shots 5
    python scripts/reproduce.py BiT-M-R50x1 my_folder --seeds 1

The data set is one of TensorFlow Datasets, on its own splits, or a folder with `train` and `test`. Each
seed is trained by the full rule on all GPUs of the machine, a TPU, or all machines that TF_CONFIG names
(docs/scaling.md), of which each reads its part only with `--share`. It is saved now and then, and goes
on where it was stopped; its result is a line of `results.jsonl` in the folder of `--work`. It needs a
GPU: 10 000 steps of 512 pictures are days on a CPU. One with little memory computes each batch in parts
(`--accumulate 8`). Weights and data are downloaded, unless they are there.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import bitlib
from bitlib import checkpoint, datasets, finetune, hyperrule, images
from bitlib.training.devices import Replicas

PUBLISHED = {
    ("BiT-M-R50x1", "cifar10"): {1: 54.4, 5: 83.3, 0: 97.2},
    ("BiT-M-R50x1", "cifar100"): {1: 37.1, 5: 65.0, 0: 86.5},
}
"""Accuracies in percent by examples of each class (0: all): medians of the official code, which trained with
batch 128 and rate 0.001."""


def strategy_of_machine() -> tf.distribute.Strategy:
    """Several machines if TF_CONFIG names them, a TPU if there is one, else all GPUs of this machine."""
    cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
    if len([*cluster.get("chief", []), *cluster.get("worker", [])]) > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if "TPU_NAME" in os.environ:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    several = len(tf.config.list_physical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def learn(source, options, seed: int) -> dict:
    """One seed by the full rule, resumed if it was begun -> what was done, and the accuracy."""
    train, test, class_names = datasets.splits(options.data_set, options.data_dir, options.shots, None, seed)
    count, size = len(train[0]), images.read(train[0][0]).shape[:2]
    how = {"steps": options.steps, "base_lr": options.base_lr, "batch_size": options.batch_size}
    plan = hyperrule.plan(
        count, size, architecture=source.card.architecture,
        **{name: value for name, value in how.items() if value},
    )  # fmt: skip
    read_size = plan.resize if plan.random_crop else plan.crop

    def part(context):
        every = slice(context.input_pipeline_id, None, context.num_input_pipelines)
        return datasets.pipeline(train[0][every], train[1][every], read_size, seed)

    with options.strategy.scope():
        model = bitlib.load(source, head=class_names)
    history = finetune.fit(
        model,
        part if options.share else datasets.pipeline(*train, read_size, seed),
        plan,
        datasets.pipeline(*test, plan.crop),
        seed,
        accumulate=options.accumulate,
        checkpoints=options.work / f"seed{seed}",
    )
    return {
        "checkpoint": source.card.name, "data_set": options.data_set, "shots": options.shots, "seed": seed,
        "steps": plan.steps, "batch_size": plan.batch_size, "base_lr": plan.base_lr,
        "train": count, "test": len(test[0]), "accuracy": history.validation_accuracy[-1],
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", help="a name of bitlib.zoo.names(), a handle, or a .npz")
    parser.add_argument("data_set", help="a name of TensorFlow Datasets, or a folder with train and test")
    parser.add_argument("--data-dir", help="an offline copy of TensorFlow Datasets")
    parser.add_argument("--shots", type=int, default=0, help="examples of each class; 0 for all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, help="instead of the rule's 512; the rate is scaled")
    parser.add_argument("--base-lr", type=float, help="instead of the rule's 0.003")
    parser.add_argument("--steps", type=int, help="instead of the rule's, for a trial")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, to save memory")
    parser.add_argument("--share", action="store_true", help="each machine reads every n-th picture")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and results")
    options = parser.parse_args()

    options.strategy = strategy_of_machine()  # before TensorFlow does anything else
    source = checkpoint.find(options.checkpoint)
    name = f"{source.card.name}-{Path(options.data_set).name}-{options.shots or 'all'}"
    options.work = options.work or Path("build/reproduce") / name
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.work / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in range(options.seeds):
        if seed not in [row["seed"] for row in known]:
            known.append(learn(source, options, seed))
            if Replicas(options.strategy).chief:
                with results.open("a") as file:
                    file.write(json.dumps(known[-1]) + "\n")
        print(f"seed {seed}: {known[-1]['accuracy']:.2%}", flush=True)
    found = 100 * np.array([row["accuracy"] for row in known])
    published = PUBLISHED.get((source.card.name, options.data_set), {}).get(options.shots)
    print(
        f"{name}: median {np.median(found):.1f} % of {len(found)} seeds, "
        f"{found.min():.1f} to {found.max():.1f}"
    )
    print(f"published: {published} %" if published else "published: no number known for this")


if __name__ == "__main__":
    main()
