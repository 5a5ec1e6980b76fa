"""How long the command line itself takes to start on this machine, as ratios to a Python that does nothing.

    python -m tests.bench.start [--runs N]

The aim for `import pyvmm.cli` and `pyvmm --help` is 0.15 s.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
BARE = "python -c pass"
LIMIT = 0.15  # seconds, for those marked


def programs() -> dict[str, tuple[list[str], bool]]:
    """Name, arguments, whether LIMIT is the aim."""
    python = sys.executable
    pyvmm = [str(Path(python).with_name("pyvmm"))]
    if not Path(pyvmm[0]).exists():
        pyvmm = [python, "-m", "pyvmm.cli.main"]
    return {
        BARE: ([python, "-c", "pass"], False),
        "import pyvmm.cli": ([python, "-c", "import pyvmm.cli"], True),
        "pyvmm --help": ([*pyvmm, "--help"], True),
        "pyvmm --version": ([*pyvmm, "--version"], False),
        "pyvmm run --help": ([*pyvmm, "run", "--help"], False),
        "pyvmm ps": ([*pyvmm, "ps"], False),
        "pyvmm status (none runs)": ([*pyvmm, "status", "--name", "nobody-has-this-name"], False),
        "pyvmm image list": ([*pyvmm, "image", "list"], False),
        "import all of `run`": ([python, "-c", "import pyvmm.cli.commands.run, pyvmm.launch.attended"], False),
    }


def once(argv: list[str]) -> tuple[float, float]:
    """Seconds on the wall and of processor time."""
    before = os.times()
    start = time.monotonic()
    subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken = time.monotonic() - start
    after = os.times()
    return taken, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    chosen = programs()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for turn in range(runs + 1):
        for name, (argv, _) in chosen.items():
            taken = once(argv)
            if turn:  # the first warms the caches up
                times[name].append(taken)
    bare = median(wall for wall, _ in times[BARE])
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {runs} runs")
    print(f"{'':28}{'median':>9}{'least':>9}{'processor':>11}{'/ bare':>8}")
    for name, samples in times.items():
        walls = [wall for wall, _ in samples]
        note = ""
        if chosen[name][1]:
            note = f"  under {LIMIT} s" if median(walls) < LIMIT else f"  OVER {LIMIT} s"
        print(
            f"{name:28}{median(walls):9.3f}{min(walls):9.3f}{median(spent for _, spent in samples):11.3f}"
            f"{median(walls) / bare:8.2f}{note}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
