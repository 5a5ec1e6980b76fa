"""Makes docs/linux-findings.md by running the fault cases: `python -m tests.hv.findings [--kernel 6.1 ...]`.

Runs tests/hv's fault cases on each kernel given, adds what happened to tests/hv/findings.json, in which each case has
one row a kernel, and writes the page from it. Without --kernel it writes the page from the rows that are there.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tests.hv.outcomes import KERNELS, Row

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
DATA = HERE / "findings.json"
PAGE = ROOT / "docs" / "linux-findings.md"
LIMIT = 3600
"""Seconds for the cases on one kernel."""

LAYERS = {
    "boot": "First contact",
    "messages": "Messages of the bus",
    "channels": "Opening and closing channels",
    "rings": "Rings",
    "negotiation": "Negotiation of dynamic memory",
    "balloon": "Dynamic memory",
    "hot_add": "Hot add",
    "services": "Integration services",
    "suspend": "Hibernation",
}

HEAD = """# What Linux's Hyper-V drivers do with a faulty host

Made by `python -m tests.hv.findings`, not by hand: each row is a case of tests/hv, run on a stock Debian kernel.
A case asserts what its kernel does, also where that is a crash: a kernel with a fix makes it fail. Repeat one with

    pytest tests/hv/CASE --hv-all --pyvmm-kernel 6.12

`id` is the prediction's number (V: bus and rings, B: balloon, U: services) of the reading of the drivers from which
the cases started; "new" was found by the test bed, or is a fault that was expected to do no harm. A panic is known by
the crash registers; an oops is a kernel thread or process that died while the guest goes on; "survives" has nothing
bad in the kernel's log and an agent that answers; "not so" is a prediction that did not happen.

"""


def load(path: Path = DATA) -> list[Row]:
    """Return the recorded rows."""
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def cases(folder: Path = HERE) -> set[str]:
    """Return the fault cases that exist, as rows name them."""
    return {
        f"{path.name}::{node.name}"
        for path in folder.glob("test_faults_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Return the rows of both, of which a new one replaces the old one of its case and kernel; sorted."""
    rows = {(row.case, row.kernel): row for row in (*old, *new)}
    order = {kernel: number for number, kernel in enumerate(KERNELS)}
    return sorted(rows.values(), key=lambda row: (_layer(row.case), row.case, order.get(row.kernel, 99)))


def save(rows: list[Row], path: Path = DATA) -> None:
    """Store the rows, one a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n")


def page(rows: list[Row]) -> str:
    """Return the whole page."""
    kernels = [each for each in KERNELS if any(row.kernel == each for row in rows)]
    versions = {row.kernel: row.version for row in rows}
    text = [HEAD, *_summary(rows, kernels, versions), *_unseen(rows)]
    cases: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cases[_layer(row.case)][row.case].append(row)
    for layer, title in LAYERS.items():
        if layer not in cases:
            continue
        text += [f"\n## {title}\n\n", f"| id | the host does | {' | '.join(kernels)} | case |\n"]
        text.append("|---" * (len(kernels) + 3) + "|\n")
        for case, of_case in cases[layer].items():
            first = of_case[-1]
            cells = {row.kernel: _cell(row) for row in of_case}
            shown = " | ".join(cells.get(kernel, "not run") for kernel in kernels)
            text.append(f"| {first.id} | {_plain(first.fault)} | {shown} | `{case.split('::')[1]}` |\n")
    return "".join(text)


def _summary(rows: list[Row], kernels: list[str], versions: dict[str, str]) -> list[str]:
    text = ["| kernel | cases | panic | oops | warning | hang | wrong behaviour | no harm | not as expected |\n"]
    text.append("|---" * 9 + "|\n")
    for kernel in kernels:
        mine = [row for row in rows if row.kernel == kernel]
        kinds = [_kind(row) for row in mine]
        counts = [kinds.count(kind) for kind in ("panic", "oops", "warning", "hang", "wrong", "fine")]
        odd = sum(not row.as_expected for row in mine)
        text.append(f"| {kernel} ({versions[kernel]}) | {len(mine)} | {' | '.join(map(str, counts))} | {odd} |\n")
    return text


def _unseen(rows: list[Row]) -> list[str]:
    """Return the predictions that no kernel has fulfilled."""
    by_case: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.id != "new":
            by_case[row.case].append(row)
    lines = [
        f"* {of_case[-1].id}, {_plain(of_case[-1].fault)}: {_plain(of_case[-1].happened)}\n"
        for of_case in by_case.values()
        if all(row.kind == "right" for row in of_case)
    ]
    return ["\nPredicted, and seen on no kernel:\n\n", *lines] if lines else []


def _kind(row: Row) -> str:
    if row.kind in ("right", "survives"):
        return "fine"
    return "wrong" if row.kind == "ends" else row.kind


def _cell(row: Row) -> str:
    happened = row.happened if row.kind in ("survives", "wrong", "right", "ends") else f"{row.kind}: {row.happened}"
    return _plain(happened if row.as_expected else f"{happened} **(expected: {row.expected})**")


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _layer(case: str) -> str:
    return case.split("::")[0].removeprefix("test_faults_").removesuffix(".py")


def run(kernel: str, words: list[str]) -> list[Row]:
    """Run the fault cases on a kernel and return their rows."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "fault", "tests/hv", "--hv-all", f"--hv-rows={rows}"]
        subprocess.run([*command, f"--pyvmm-kernel={kernel}", *words], cwd=ROOT, check=False, timeout=LIMIT)
        return read_rows(rows)


def read_rows(path: Path) -> list[Row]:
    """Return the rows that a run of pytest left in its file, one a line."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def main(words: list[str]) -> int:
    """Run what `words` say and write the page. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.hv.findings", description=__doc__)
    parser.add_argument(
        "--kernel", action="append", default=[], choices=KERNELS, help="run on this kernel; repeatable"
    )
    parser.add_argument("--rows", action="append", default=[], type=Path, help="add the rows of a --hv-rows file")
    parser.add_argument("more", nargs="*", metavar="-- PYTEST WORD", help="more words for pytest")
    chosen = parser.parse_args(words)
    rows = load()
    for path in chosen.rows:
        rows = merged(rows, read_rows(path))
    for kernel in chosen.kernel:
        rows = merged(rows, run(kernel, chosen.more))
    existing = cases()
    rows = [row for row in rows if row.case in existing]
    save(rows)
    PAGE.write_text(page(rows))
    odd = sum(not row.as_expected for row in rows)
    print(
        f"{PAGE.relative_to(ROOT)}: {len({row.case for row in rows})} cases, {len(rows)} rows, {odd} not as expected"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
