"""What a talkative console costs: boots without `quiet`, with all of the kernel's messages, beside quiet ones.

    python -m tests.bench.serial [--runs N] [--image debian-6.1] [--only PART ...]
    python -m tests.bench.serial --whole [--runs N] [--image debian-6.1]

The aim is 1.5 times the quiet boot or less. The first measures up to the first line of /init, from a Python that is
ready, with QEMU's PC beside it: hardly more than the kernel's own work and its messages. The second measures what a
user waits for, `pyvmm run -- true` from the shell's prompt to the first line of /init and to the next prompt, with
both engines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median

from tests.bench import boot

LOUD = ("loud", ("--append", "loglevel=7"))
"""What a kernel does that is not told to be quiet: our command line says `quiet`, what comes later wins."""


def contenders(image: str, facts: dict[str, object]) -> list[boot.Contender]:
    """Each quiet and loud."""
    result = []
    for one in boot.contenders(image, facts):
        if one.name in ("pyvmm-kernel-fork", "pyvmm-user-fork"):
            more = LOUD[1]
            result += [one, boot.Contender(f"{one.name}-{LOUD[0]}", (*one.argv, *more), True)]
        elif one.name == "qemu-pc":
            loud = tuple(word.replace("console=ttyS0 quiet", "console=ttyS0") for word in one.argv)
            result += [one, boot.Contender(f"{one.name}-{LOUD[0]}", loud)]
    return result


def whole(runs: int, image: str) -> None:
    """Time commands in turns, and print medians and ratios: up to the first line of /init, and as a whole."""
    from pyvmm.images.catalog import find_image

    find_image(image)
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for turn in range(runs + 1):
        for engine in ("kernel", "user"):
            for kind, more in (("quiet", ()), LOUD):
                argv = (sys.executable, "-m", "pyvmm", "run", "--hyperv", engine, "--image", image)
                first, end = command([*argv, "--console", "stdio", *more, "--", "true"])
                round_name = f"round {turn}" if turn else "warm-up"
                print(f"{round_name} {engine} {kind} {first:.2f} s to /init, {end:.2f} s", flush=True)
                if turn:
                    times.setdefault((engine, kind), []).append((first, end))
    print(f"\n{image}, `pyvmm run --console stdio -- true`, medians of {runs}")
    for engine in ("kernel", "user"):
        for part, name in enumerate(("to the first line of /init", "to its end")):
            quiet, loud = (median(taken[part] for taken in times[engine, kind]) for kind in ("quiet", LOUD[0]))
            print(f"{engine}, {name}: quiet {quiet:.2f} s, loud {loud:.2f} s, loud / quiet {loud / quiet:.2f}")


def command(argv: list[str]) -> tuple[float, float]:
    """Seconds until a command shows the first line of /init, and until it ends."""
    start = time.monotonic()
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as process:
        assert process.stdout is not None
        seen, first = b"", 0.0
        while data := process.stdout.read(65536):
            seen += data
            if not first and boot.FIRST_LINE in seen:
                first = time.monotonic() - start
    if process.returncode or not first:
        raise RuntimeError(f"{argv}: status {process.returncode}, {seen[-400:]!r}")
    return first, time.monotonic() - start


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--image", default="debian-6.1")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="contenders with PART in the name"
    )
    parser.add_argument("--whole", action="store_true", help="time whole commands instead, as a user would")
    parser.add_argument("--qemu", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.whole:
        whole(options.runs, options.image)
        return 0
    if options.qemu is None:
        return boot.run_where_linux_runs([*sys.argv[1:], "--qemu", boot.qemu_facts(options.image)], __spec__.name)
    facts = json.loads(options.qemu)
    chosen = boot.named(contenders(options.image, facts), options.only)
    times = boot.measure(chosen, options.runs, facts["environment"])
    boot.report(options.image, facts["label"], times)
    for name in times:
        loud = f"{name}-{LOUD[0]}"
        if times.get(loud) and times[name]:
            print(f"{name}: loud / quiet {median(times[loud]) / median(times[name]):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
