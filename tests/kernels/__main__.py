"""`make test-kdir`: build kernels from Debian's source packages and boot them on both engines.

    python -m tests.kernels [--versions 6.1 6.12 newest] [--bases tinyconfig defconfig] [--jobs N] [--no-boot]

Builds each version with each base, then runs tests/boot/test_own_kernels.py on all that were built. The exit status
is 1 if a build or a test failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from pyvmm.errors import PyvmmError
from tests.kernels.build import BASES, NEWEST, ROOT, Tree, build

TREES_VARIABLE = "PYVMM_TEST_TREES"
TESTS = "tests/boot/test_own_kernels.py"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description="Build own kernels and boot them.")
    parser.add_argument("--versions", nargs="+", default=["6.1", "6.12", NEWEST], help="for instance 6.12, or newest")
    parser.add_argument("--bases", nargs="+", default=["tinyconfig", "defconfig"], choices=BASES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="of make; default: one a CPU")
    parser.add_argument("--no-boot", action="store_true", help="build only")
    options = parser.parse_args()
    trees: list[Tree] = []
    failed = False
    for version in options.versions:
        for base in options.bases:

            def say(text: str, what: str = f"{version} {base}") -> None:
                print(f"{what}: {text}", flush=True)

            try:
                tree = build(version, base, options.jobs, say)
            except PyvmmError as error:
                say(f"FAILED: {error}")
                failed = True
                continue
            times = f"{tree.seconds:.0f} s ({tree.processor_seconds:.0f} s of processor time)"
            say(f"made in {times} from {tree.package.name} {tree.package.version}: {tree.folder}")
            trees.append(tree)
    if trees and not options.no_boot:
        failed |= _boot([tree.folder for tree in trees]) != 0
    return int(failed)


def _boot(folders: list[Path]) -> int:
    """Run the boot tests on the trees; pytest's exit status."""
    names = os.pathsep.join(str(folder.relative_to(ROOT)) for folder in folders)
    command = [sys.executable, "-m", "pytest", "-v", TESTS]
    return subprocess.run(command, env=os.environ | {TREES_VARIABLE: names}).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
