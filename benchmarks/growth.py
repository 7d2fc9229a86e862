"""Whether cost grows as the arithmetic does: time and memory against batch, resolution, width, depth.

python benchmarks/growth.py    writes benchmarks/growth.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from run import gflop, one_process

POINT = """
import statistics, sys, time
import tensorflow as tf
from bitlib import ops
from bitlib.formats import graphs
from bitlib.model import BiT
from bitlib.zoo import UNITS

depth, width, batch, size = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
model = BiT(UNITS[depth], width, 1000, kernel_initializer="zeros")
with ops.constant_kernels(model):
    run = tf.function(model, input_signature=[graphs.INPUTS]).get_concrete_function()
images = tf.zeros((batch, size, size, 3))
before = peak()
run(images)
times = []
for _ in range(3):
    started = time.perf_counter()
    run(images)
    times.append(time.perf_counter() - started)
print(statistics.median(times), peak() - before)
"""

SWEEPS = {
    "batch": [(50, 1, batch, 224) for batch in (1, 2, 4, 8, 16, 32)],
    "resolution (pixels)": [(50, 1, 8, size) for size in (64, 96, 128, 192, 256, 384)],
    "width": [(50, width, 4, 160) for width in (0.5, 1, 2, 3)],
    "depth": [(depth, 1, 8, 160) for depth in (14, 50, 101, 152)],
}


def measure(point: tuple) -> tuple[float, float]:
    """Seconds and GB of one forward pass, in a process of its own."""
    return one_process(sys.executable, POINT, *point)


def main() -> None:
    """Measure and draw."""
    from bitlib.pages.plots import BLUE, GREY, ORANGE, _figure, _plain

    fig, axes = _figure(1, 4, (13, 3.2), sharey=True)
    for ax, (title, points) in zip(axes, SWEEPS.items(), strict=True):
        varied = next(i for i in range(4) if len({point[i] for point in points}) > 1)
        x = [point[varied] for point in points]
        found = [measure(point) for point in points]
        work = [batch * gflop(f"R{depth}x{width}", size) for depth, width, batch, size in points]
        curves = {
            "time": ([seconds for seconds, _ in found], "o-", BLUE),
            "memory": ([memory for _, memory in found], "s--", ORANGE),
            "arithmetic": (work, "-", GREY),
        }
        for name, (values, style, colour) in curves.items():
            ax.plot(x, [value / max(values[0], 1e-3) for value in values], style, color=colour, label=name)
            print(title, name, [f"{value:.3g}" for value in values], flush=True)
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(x, [str(value) for value in x])
        ax.minorticks_off()
        _plain(ax, f"Growth with {title.split(' ')[0]}", title)
    axes[0].set_ylabel("relative to the first point")
    axes[0].legend(frameon=False)
    fig.savefig(Path(__file__).parent / "growth.png", dpi=110)


if __name__ == "__main__":
    main()
