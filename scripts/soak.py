"""Run every page under nbval many times, on several kinds of processor, and count what fails.

    python scripts/soak.py                       until each page has passed or failed 10 times in each setting
    python scripts/soak.py --times 2 --pages 01 02 --settings plain avx2

A promise that holds nine times out of ten is none. Each run is a line of build/soak/runs.jsonl, written when
it ends: a soak that was stopped goes on. What a failing run said is kept beside it. The settings make this
processor compute as others do; an output that depends on the last digits fails under one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
SETTINGS = {
    "plain": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "no-onednn": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "one-thread": {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"},
}
"""Environment variables by the name of the setting."""


def run(page: str, setting: str) -> tuple[bool, float, str]:
    """One page under nbval -> whether it passed, seconds, what pytest said."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=600", str(ROOT / "notebooks" / page)]
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **SETTINGS[setting]}, capture_output=True, text=True
    )
    return done.returncode == 0, time.perf_counter() - started, done.stdout + done.stderr


def table(rows: list[dict]) -> str:
    """Runs and failures of each page in each setting, as Markdown."""
    settings = [name for name in SETTINGS if any(row["setting"] == name for row in rows)]
    runs = Counter((row["page"], row["setting"]) for row in rows)
    failed = Counter((row["page"], row["setting"]) for row in rows if not row["passed"])
    lines = [f"| failed of | {' | '.join(settings)} |", "|---|" + "---:|" * len(settings)]
    for page in sorted({row["page"] for row in rows}):
        cells = [f"{failed[page, setting]} of {runs[page, setting]}" for setting in settings]
        lines.append(f"| {page} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="runs of each page in each setting")
    parser.add_argument("--pages", nargs="*", default=[""], help="how their names begin; all")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "soak")
    options = parser.parse_args()

    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "runs.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = Counter((row["page"], row["setting"]) for row in rows)
    pages = [page for page in PAGES if page.startswith(tuple(options.pages))]
    # All once, then all twice: what fails often shows early.
    for number in range(options.times):
        for setting in options.settings:
            for page in pages:
                if done[page, setting] > number:
                    continue
                passed, seconds, said = run(page, setting)
                if not passed:
                    (options.output / f"{page}-{setting}-{number}.txt").write_text(said)
                rows.append({"page": page, "setting": setting, "passed": passed, "seconds": round(seconds)})
                with log.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(f"{number + 1} {setting} {page}: {'passed' if passed else 'FAILED'}", flush=True)
    print("\n" + table(rows))
    return int(any(not row["passed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
