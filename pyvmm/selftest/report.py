"""The self-test's report: JSON for programs, or text with the same contents for people. Without personal data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Any

from pyvmm.errors import HostError
from pyvmm.guest_text import one_line
from pyvmm.selftest.facts import facts
from pyvmm.selftest.rows import Row
from pyvmm.selftest.run import ratios
from pyvmm.selftest.scrub import Scrubber

DEFAULT = Path("pyvmm-selftest.txt")


def build(rows: list[Row], *, emulated: bool, outside: str, complete: bool) -> dict[str, Any]:
    """Return the report. `outside`: why the emulated host was used."""
    counts = {status: sum(row.status == status for row in rows) for status in ("ok", "failed", "skipped")}
    report = {
        "format": 1,
        "emulated": emulated,
        "why-emulated": outside,
        "complete": complete,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "counts": counts,
        "host": facts(),
        "ratios": ratios(rows),
        "rows": [{name: value for name, value in asdict(row).items() if value not in ([], {}, "")} for row in rows],
    }
    scrubbed: dict[str, Any] = Scrubber().value(report)
    return scrubbed


def check_place(path: Path) -> None:
    """Raise HostError if a report could not be written to `path`."""
    if path.is_dir():
        raise HostError(f"cannot write the report {path}: it is a folder; --report FILE names a file")
    folder = path.parent
    if not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        reason = "no permission to write" if folder.is_dir() else f"there is no folder {folder}"
        raise HostError(f"cannot write the report {path}: {reason}; --report FILE names another place")


def write(report: dict[str, Any], path: Path) -> None:
    """Write the report: JSON if the name ends so, else text. Raises HostError."""
    if path.suffix == ".json":
        text = json.dumps(report, indent=2) + "\n"
    else:
        text = "".join(f"{one_line(line)}\n" for line in lines(report))  # some of it is the guest's text
    try:
        path.write_text(text)
    except OSError as error:
        raise HostError(
            f"cannot write the report {path}: {error.strerror}; --report FILE names another place"
        ) from None


def verdict(report: dict[str, Any]) -> str:
    """Return the last line: how many steps did what."""
    counts = report["counts"]
    text = f"{counts['ok']} ok, {counts['failed']} failed, {counts['skipped']} skipped"
    if not report["complete"]:
        text += "; interrupted"
    return text + (" (in the emulated host: says nothing about real hardware)" if report["emulated"] else "")


def lines(report: dict[str, Any]) -> Iterator[str]:
    """Format the report as text: the table, what is known of failures, the host."""
    yield f"pyvmm selftest, {report['date']}: {verdict(report)}"
    if report["why-emulated"]:
        yield f"In the emulated host because of: {report['why-emulated']}"
    group = ""
    for row in report["rows"]:
        if row["group"] != group:
            group = row["group"]
            yield from ("", group)
        figures = ", ".join(f"{name} {value}" for name, value in row.get("figures", {}).items())
        yield f"  {row['status']:8} {row['name']:16} {row['seconds']:7.2f} s  {row.get('detail', '')}".rstrip()
        if figures:
            yield f"{'':39}[{figures}]"
    yield ""
    yield from (f"{name}: {value}" for name, value in report["ratios"].items())
    for row in report["rows"]:
        for part in ("trace", "console"):
            if row.get(part):
                yield from ("", f"{row['group']}, {row['name']}: {part}", *(f"  {line}" for line in row[part]))
    yield from ("", "The host")
    yield from _facts(report["host"], "  ")


def _facts(about: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in about.items():
        if not isinstance(value, dict):
            yield f"{indent}{name}: {value}"
        elif any(isinstance(each, dict) for each in value.values()) or name in ("cpu", "hyperv-cpuid"):
            yield f"{indent}{name}:"
            yield from _facts(value, indent + "  ")
        else:
            text = f"{name}: " + ", ".join(f"{key} {each}" for key, each in value.items())
            yield from wrap(text, 116, initial_indent=indent, subsequent_indent=indent + "  ")
