"""Change the code that decides and decodes, one place at a time, and see whether a test fails.

mutmut makes the changes ([tool.mutmut] in pyproject.toml says in which files, and which tests it
runs); this takes a sample of as many from each file, the same for the same ``--seed``, and prints
the share that made a test fail. What survived is shown by ``mutmut show NAME``. Changes that were
not reached within ``--minutes`` do not count. The status is 1 if the share of all is below LEAST.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LEAST = 0.8

#: A few, run first: it makes mutmut generate all of them and measure the tests.
FIRST = "lowlat_seg_ros.engine.schedule.x_repeats*"

#: What mutmut says of a change that no test minds.
SURVIVED = ("survived", "no tests")


def mutmut(*words: str, seconds: float | None = None, quiet: bool = False) -> str:
    """Its output, if it is to be ``quiet``; it is interrupted after so many ``seconds``."""
    command = [sys.executable, "-m", "mutmut", *words]
    output = subprocess.PIPE if quiet else None
    with subprocess.Popen(command, cwd=ROOT, stdout=output, text=True) as process:
        try:
            written = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it stops what it has started
            process.wait()
            return ""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return written or ""


def states() -> dict[str, str]:
    """What became of each change, by its name."""
    lines = mutmut("results", "--all", "true", quiet=True).splitlines()
    return dict(line.strip().split(": ", 1) for line in lines if ": " in line)


def module_of(name: str) -> str:
    return name.rpartition(".")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=40, help="changes of each file; 0 for all")
    args = parser.parse_args()
    mutmut("run", FIRST)
    by_module = defaultdict(list)
    for name in states():
        by_module[module_of(name)].append(name)
    dice, sample = random.Random(args.seed), set[str]()
    for names in by_module.values():
        sample |= set(dice.sample(names, min(args.each or len(names), len(names))))
    # Four at a time, as many of them wait for a thread that the change has stopped.
    mutmut("run", "--max-children", "4", *sorted(sample), seconds=60 * args.minutes)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for name, state in states().items():
        if name in sample and state != "not checked":
            found[module_of(name)][state] += 1
            if state in SURVIVED:
                survivors.append(f"{name}: {state}")
    print(*survivors, sep="\n")
    print(f"{'':40}{'changes':>9}{'of':>6}{'found':>8}")
    killed = total = 0
    for module, counts in found.items():
        tried = sum(counts.values())
        noticed = tried - sum(counts[state] for state in SURVIVED)
        killed, total = killed + noticed, total + tried
        print(f"{module:40}{tried:9}{len(by_module[module]):6}{noticed / tried:8.0%}")
    print(f"{'all':40}{total:9}{sum(map(len, by_module.values())):6}{killed / total:8.0%}")
    return 1 if killed < LEAST * total else 0


if __name__ == "__main__":
    sys.exit(main())
