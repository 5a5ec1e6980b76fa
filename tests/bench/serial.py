"""What a talkative console costs: boots without `quiet`, with all of the kernel's messages, beside quiet ones.

    python -m tests.bench.serial [--runs N] [--image debian-6.1] [--only PART ...]

The aim is 1.5 times the quiet boot or less, to the first line of /init. QEMU's PC is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
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


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--image", default="debian-6.1")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="contenders with PART in the name"
    )
    parser.add_argument("--qemu", help=argparse.SUPPRESS)
    options = parser.parse_args()
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
