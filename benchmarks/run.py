"""Ours beside the peers, measured alternately on this machine, as ratios.

    make bench                            everything; writes benchmarks/results.json and results.png
    python benchmarks/run.py inference    the rows whose name holds a word

Every row is measured in rounds: ours, each peer, ours again, … so that whatever else the machine does
meets all alike. The number of a row is the median over rounds of ours divided by the fastest peer's.
Absolute times are of no use on another machine, and are kept in the JSON only.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
WORK = ROOT / "build" / "bench"
RESULTS = HERE / "results.json"
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))

EAGER = ("timm", "timm channels_last", "transformers", "transformers channels_last")
COMPILED = ("timm channels_last compiled", "transformers channels_last compiled")
ENGINES = ("timm onnxruntime", "timm openvino")
OURS = ("live", "frozen", "compiled")  # frozen, compiled: exported so; compiled by XLA what gains by it
OUR_ENGINES = ("onnxruntime", "openvino")  # on our ONNX file
OUR_BACKENDS = ("jax", "torch")  # ours on Keras' other backends
APART = ("bfloat16", "ResNet50V2")
"""Not in the ratio: ours in bfloat16, whose logits differ by up to 0.01 of their scale; and a landmark,
Keras Applications' network of about as many operations as R50x1."""


class Worker:
    """One side of the comparison, a process that stays alive between cases."""

    def __init__(self, python: str | Path, script: str, backend: str = "tensorflow"):
        environment = os.environ | {"KERAS_BACKEND": backend}
        self.process = subprocess.Popen(
            [str(python), str(HERE / script)], cwd=ROOT, text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def seconds(self, case: dict) -> float | str:
        """Time of one run, or why there is none."""
        print(json.dumps(case), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else "the process died"


def gflop(architecture: str, size: int) -> float:
    """Multiplications and additions of one forward pass, in 10⁹: those of its convolutions."""
    from bitlib.checkpoint import Architecture, layout
    from bitlib.zoo import units_and_width

    total = 0.0
    for name, shape in layout(Architecture(*units_and_width(architecture), 1000)).items():
        if not name.endswith("kernel"):
            continue
        block = int(name[len("resnet/block")]) if "/block" in name else 0
        side = size / 2 if "root" in name else 1 if "head" in name else size / (2 * 2**block)
        if block > 1 and "unit01/a/standardized" in name:
            side *= 2  # before the stride, which is on the 3×3
        total += 2 * side * side * shape[0] * shape[1] * shape[2] * shape[3]
    return total / 1e9


def rows() -> list[dict]:
    """What is compared: for each row a case, our variants and the peers'."""
    found = []
    for architecture, batches in (("R50x1", (1, 8, 32)), ("R101x1", (8,)), ("R14x0.5", (32,))):
        for batch in batches:
            size = 64 if architecture == "R14x0.5" else 224
            found.append(
                {
                    "name": f"inference {architecture} {size} px, batch {batch}",
                    "case": {"kind": "inference", "architecture": architecture, "batch": batch, "size": size},
                    "ours": OURS + OUR_ENGINES + OUR_BACKENDS + APART[: 2 if architecture == "R50x1" else 1],
                    "peers": () if architecture == "R14x0.5" else EAGER + COMPILED + ENGINES,
                    "gflop": batch * gflop(architecture, size),
                }
            )
    for size in (128, 224):
        found.append(
            {
                "name": f"training step R50x1 {size} px, batch 16",
                "case": {"kind": "training", "architecture": "R50x1", "batch": 16, "size": size},
                "ours": ("live", "compiled", *OUR_BACKENDS, "bfloat16"),
                "peers": EAGER + COMPILED,
                "gflop": 3 * 16 * gflop("R50x1", size),
            }
        )
    found.append(
        {
            "name": "64 JPEG files to features, R50x1 224 px",
            "case": {"kind": "jpegs", "architecture": "R50x1", "folder": str(WORK / "jpegs"), "size": 224},
            "ours": ("live",),
            "peers": ("timm", "timm channels_last"),
            "gflop": 64 * gflop("R50x1", 224),
        }
    )
    return found


class Workers(dict):
    """Processes by what they run, started when they are first asked for."""

    def of(self, name: str, ours: bool) -> Worker:
        """The process of a variant. Engines have their own: their threads, which wait for work for a while
        before they sleep, would keep a core from those of TensorFlow and PyTorch."""
        if name in OUR_BACKENDS:
            side = PEERS_PYTHON, "anywhere.py", name
        else:
            side = (sys.executable, "ours.py") if ours else (PEERS_PYTHON, "peers.py")
        key = *side, name.split()[-1] in OUR_ENGINES
        if key not in self:
            self[key] = Worker(*side)
        return self[key]

    def stop(self) -> None:
        """End them all."""
        for worker in self.values():
            worker.process.kill()
            worker.process.wait()


def measure(row: dict, workers: Workers) -> dict:
    """Rounds over all variants, one after the other; a variant that fails is left out of the rest."""
    here = [name for name in row["ours"] if name not in OUR_BACKENDS or PEERS_PYTHON.exists()]
    variants = [(workers.of(name, ours=True), name) for name in here]
    variants += [(workers.of(name, ours=False), name) for name in row["peers"] if PEERS_PYTHON.exists()]
    times: dict[str, list[float]] = {}
    failed = {}
    for index in range(ROUNDS + 1):
        limit = workers.of("limit", ours=True).seconds(
            {"kind": "matmul", "size": 3072, "variant": "", "repeat": 2}
        )
        times.setdefault("limit", []).append(limit)
        for worker, name in list(variants):
            answer = worker.seconds(row["case"] | {"variant": name, "repeat": 1 if index == 0 else 2})
            if isinstance(answer, str):
                failed[name] = answer
                variants.remove((worker, name))
            else:
                times.setdefault(name, []).append(answer)
        if index == 0:
            times = {name: [] for name in times}
    medians = {name: statistics.median(values) for name, values in times.items()}
    best_of = lambda names: min((n for n in names if n in medians), key=medians.get, default=None)  # noqa: E731
    our_best, peer_best = best_of([n for n in row["ours"] if n not in APART]), best_of(row["peers"])
    reachable = row["gflop"] / (2 * 3072**3 / 1e9 / medians["limit"])
    result = {"name": row["name"], "times": times, "failed": failed, "ours": our_best, "peer": peer_best}
    result["share of the limit"] = reachable / medians[our_best]
    if peer_best:
        ratios = [p / o for p, o in zip(times[peer_best], times[our_best], strict=True)]
        result["ratio"] = statistics.median(ratios)
        result["peer's share"] = reachable / medians[peer_best]
    for name in row["ours"]:
        if name in medians:
            result[f"{name} share"] = reachable / medians[name]
    return result


PEAK = """
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 2**20
"""
"""What `one_process` puts before its code: a function that tells the peak memory in GB."""


def one_process(python, code: str, *arguments) -> tuple[float, float]:
    """Seconds and peak memory in GB that code in a process of its own reports as its last line."""
    run = subprocess.run(
        [str(python), "-c", PEAK + code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(run.stderr[-500:])
    seconds, memory = run.stdout.split()[-2:]
    return float(seconds), float(memory)


MEASURED = """
import sys, time
{imports}
path, folder = sys.argv[1:3]
before, started = peak(), time.perf_counter()
{work}
print(time.perf_counter() - started, peak() - before)
"""

LOADS = {
    "plain copy of the file": ("import shutil", "shutil.copyfile(path, folder + '.copy')"),
    "ours, load": ("import tensorflow, bitlib", "model = bitlib.load(path)"),
    "ours, load, check and export": (
        "import tensorflow, bitlib, bitlib.savedmodel",
        "bitlib.port(path, folder)",
    ),
}
PEER_LOADS = {
    "timm, load": (
        "import sys; sys.path.insert(0, 'benchmarks'); import peers, numpy",
        "name = '{architecture}'; model = peers.build(name, 'timm'); model.load_pretrained(path, 'resnet/')",
    ),
}


def loading(architecture: str) -> dict:
    """Time and memory of porting a full-size file with random weights, beside copying and peers' loading."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from bitlib.checkpoint import Architecture
    from bitlib.zoo import units_and_width
    from tests.conftest import random_arrays

    path = WORK / f"{architecture}.npz"
    (WORK / "ported").mkdir(exist_ok=True)
    if not path.exists():
        np.savez(path, **random_arrays(Architecture(*units_and_width(architecture), 1000)))
    kinds = [(sys.executable, name, how) for name, how in LOADS.items()]
    if PEERS_PYTHON.exists():
        kinds += [(PEERS_PYTHON, name, how) for name, how in PEER_LOADS.items()]
    found: dict[str, list] = {name: [] for _, name, _ in kinds}
    for _ in range(3):
        for python, name, (imports, work) in kinds:
            code = MEASURED.format(imports=imports, work=work.replace("{architecture}", architecture))
            try:
                found[name].append(one_process(python, code, path, WORK / "ported" / architecture))
            except RuntimeError as error:
                found[name].append(None)
                print(f"{name}: {error}", file=sys.stderr)
    path.unlink()
    (WORK / "ported" / f"{architecture}.copy").unlink()
    shutil.rmtree(WORK / "ported")
    medians = {
        name: [statistics.median(part) for part in zip(*filter(None, runs), strict=True)]
        for name, runs in found.items()
        if all(runs)
    }
    return {"name": f"porting {architecture}", "seconds and GB": medians}


def timed(command: list[str], rounds: int = 3, backend: str = "tensorflow") -> float:
    """Seconds that a command takes with Keras on a backend, the median of some rounds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        environment = os.environ | {"KERAS_BACKEND": backend}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


FIRST_NAME = """
import numpy, bitlib
from bitlib import images, labels
model = bitlib.load(bitlib.zoo.BUNDLED)
logits = model(images.batch([numpy.full((64, 64, 3), 255, "uint8")], model.card))
names, _ = labels.of_card(model.card, model.num_classes)
print(labels.top_k(labels.probabilities(logits), names, 1))
"""


def processes() -> dict:
    """What imports and pages take, as multiples of `import tensorflow`."""
    kinds = {
        "bitlib, and a look into the catalogue": (
            sys.executable,
            "import bitlib; bitlib.zoo.card('R50x1_224')",
        ),
        "tensorflow": (sys.executable, "import tensorflow"),
        "transformers' BiT": (
            PEERS_PYTHON,
            "import sys; sys.path.insert(0, 'benchmarks'); import peers; "
            "from transformers import BitForImageClassification",
        ),
    }
    found = {
        f"import {name}": timed([str(python), "-c", code])
        for name, (python, code) in kinds.items()
        if Path(python).exists()
    }
    for backend in ("tensorflow", *OUR_BACKENDS):
        python = sys.executable if backend == "tensorflow" else PEERS_PYTHON
        if Path(python).exists():
            command = [str(python), "-c", FIRST_NAME]
            found[f"from start to the first name, {backend}"] = timed(command, backend=backend)
    for page in sorted((ROOT / "notebooks").glob("*.ipynb")):
        command = [sys.executable, "-m", "papermill", page, WORK / page.name, "--cwd", WORK]
        found[f"page {page.stem[:2]}"] = timed([str(part) for part in command], rounds=1)
    return {"name": "processes", "seconds": found}


def write_jpegs() -> None:
    """64 photographs of 640×427 pixels: two that ship with scikit-learn, in pieces and mirrored."""
    from PIL import Image

    from bitlib import datasets

    folder = WORK / "jpegs"
    folder.mkdir(parents=True, exist_ok=True)
    photographs = list(datasets.photographs().values())
    for index in range(64):
        photograph = photographs[index % 2][:: (-1) ** (index // 2), :: (-1) ** (index // 4)]
        Image.fromarray(photograph).save(folder / f"{index:02d}.jpg", quality=90)


def table(results: list[dict]) -> str:
    """The comparison, as Markdown."""
    columns = OURS + OUR_ENGINES + OUR_BACKENDS + APART
    empty = " |" * (len(columns) + 1)
    lines = [
        f"| | ours : fastest peer | of the limit: {' | '.join(columns)} | peer | fastest peer |",
        "|---|---:|" + "---:|" * (len(columns) + 1) + "---|",
    ]
    for result in results:
        if "share of the limit" not in result:
            continue
        ratio = f"**{result['ratio']:.2f}**" if "ratio" in result else "–"
        shares = [result.get(key) for key in (*(f"{name} share" for name in columns), "peer's share")]
        told = [f"{share:.0%}" if share else "–" for share in shares]
        lines.append(f"| {result['name']} | {ratio} | {' | '.join(told)} | {result['peer'] or '–'} |")
    for result in results:
        for name, (seconds, memory) in result.get("seconds and GB", {}).items():
            copy = result["seconds and GB"]["plain copy of the file"][0]
            lines.append(
                f"| {result['name']}: {name} | {seconds / copy:.1f} × a copy | {memory:.2f} GB |{empty}"
            )
        for name, seconds in result.get("seconds", {}).items():
            multiple = seconds / result["seconds"]["import tensorflow"]
            lines.append(f"| {name} | {multiple:.1f} × TensorFlow | |{empty}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    words = sys.argv[1:]
    WORK.mkdir(parents=True, exist_ok=True)
    write_jpegs()
    if not PEERS_PYTHON.exists():
        print("no peers: make bench installs them", file=sys.stderr)
    for row in rows():
        if all(word in row["name"] for word in words):
            workers = Workers()  # new for each row: every network in every setting would not fit into memory
            keep(measure(row, workers))
            workers.stop()
    for architecture in ("R50x1", "R152x2"):
        if all(word in f"porting {architecture}" for word in words):
            keep(loading(architecture))
    if all(word in "processes" for word in words):
        keep(processes())
    figure(kept()).savefig(HERE / "results.png", dpi=120)
    print("\n" + table(kept()))


def kept() -> list[dict]:
    """The last result of each row."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def keep(result: dict) -> None:
    """Write a row's result, in the place of its last one, and show it."""
    known = {row["name"]: row for row in kept()} | {result["name"]: result}
    RESULTS.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    print(table([result]).split("\n", 2)[-1], result.get("failed") or "", flush=True)


def figure(results: list[dict]):
    """Ours and the fastest peer, as shares of what the machine's matrix product allows."""
    from bitlib.pages.plots import BLUE, ORANGE, _figure, _plain

    rows = [result for result in results if "ratio" in result]
    fig, ax = _figure(size=(7.5, 0.8 + 0.55 * len(rows)))
    for place, row in enumerate(rows):
        ours, peer = row["share of the limit"], row["peer's share"]
        ax.barh(place - 0.18, ours, 0.34, color=BLUE, label="ours" if place == 0 else None)
        ax.barh(place + 0.18, peer, 0.34, color=ORANGE, label="fastest peer" if place == 0 else None)
        ax.text(ours + 0.01, place - 0.18, f"{row['ratio']:.2f} ×", va="center", fontsize=9)
        ax.text(0.01, place - 0.18, row["ours"], va="center", fontsize=8, color="white")
        ax.text(0.01, place + 0.18, row["peer"], va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.98), fontsize=9)
    _plain(ax, "Speed, as a share of the matrix-product limit", "share of the limit (higher is faster)")
    return fig


if __name__ == "__main__":
    main()
