"""How the processes of the benchmarks talk: a case in, its seconds out, one line each."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache


def serve(cases: dict[str, Callable]) -> None:
    """Answer each case on stdin with the seconds that one run of it takes, the mean over `repeat`.

    Args:
        cases: by kind, a function from what else a case says to a function to be timed.
    """

    @cache
    def prepared(told: str):
        """The function of a case, built and warmed up."""
        case = json.loads(told)
        function = cases[case.pop("kind")](**case)
        for _ in range(2):
            function()
        return function

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is not an answer
    for line in sys.stdin:
        case = json.loads(line)
        repeat = case.pop("repeat")
        try:
            function = prepared(json.dumps(case))
            started = time.perf_counter()
            for _ in range(repeat):
                function()
            answer = (time.perf_counter() - started) / repeat
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        print(json.dumps(answer), file=answers)
