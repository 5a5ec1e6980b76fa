"""Runs of pytest over sample projects, with stand-ins for guests, and what came of each test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 120
CONFTEST = """
import sys
sys.path.insert(0, {root!r})
from tests.support import standin_guest
standin_guest.use()
"""


@dataclass(slots=True)
class Run:
    """What a pytest wrote, its status, and each test's outcome with its text."""

    status: int
    stdout: str
    stderr: str
    outcomes: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def last(self) -> str:
        """The last line on standard error, pytest's usage errors."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1] if lines else ""


def project(folder: Path, ini: str = "", conftest: str = "", **files: str) -> Path:
    """Write a sample project: its pytest.ini, what its conftest.py has besides the stand-ins, and files by name."""
    (folder / "pytest.ini").write_text("[pytest]\n" + textwrap.dedent(ini))
    (folder / "conftest.py").write_text(CONFTEST.format(root=str(ROOT)) + textwrap.dedent(conftest))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def command(*words: str) -> list[str]:
    """Return the command of a pytest without plugins that only cost time here."""
    unused = ("cacheprovider", "hypothesispytest", *([] if "-n2" in words else ["xdist"]))
    return [sys.executable, "-m", "pytest", *(word for name in unused for word in ("-p", f"no:{name}")), *words]


def environment() -> dict[str, str]:
    """Return the environment of such a pytest: as a user's, not as a CI's."""
    dropped = ("CI", "PYVMM_REQUIRE_BOOT", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def run(folder: Path, *words: str) -> Run:
    """Run pytest in a project."""
    report = folder / "report.xml"
    done = subprocess.run(
        [*command(*words), f"--junitxml={report}"],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    result = Run(done.returncode, done.stdout, done.stderr)
    if report.exists():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            name = case.get("name", "")
            problems = [child for child in case if child.tag in ("failure", "error", "skipped")]
            result.outcomes[name] = problems[0].tag if problems else "passed"
            result.texts[name] = "".join(f"{child.get('message', '')}\n{child.text or ''}" for child in case)
        report.unlink()
    return result
