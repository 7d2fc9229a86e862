"""How the stored outputs of the pages are compared, under `pytest --nbval`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_collectstart(collector):
    """TensorFlow logs to stderr where it likes, when it likes; nothing a page says goes there."""
    if getattr(collector, "skip_compare", None):
        collector.skip_compare += ("stderr",)
