"""What all tests run with, and how stored outputs are compared under `pytest --nbval`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Code that runs slower, and compiles in half the time: what is compiled here is small.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests side by side share the cores: who waits, sleeps
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # one worker a core: more threads only take turns


def pytest_collectstart(collector):
    """TensorFlow logs to stderr where it likes, when it likes; nothing a page says goes there."""
    if getattr(collector, "skip_compare", None):
        collector.skip_compare += ("stderr",)
