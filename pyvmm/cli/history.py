"""`pyvmm status --history`: prints the guest's pressure reports, one per line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pyvmm.cli import output
from pyvmm.sizes import format_size

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client

BAR = 30
"""Width, in characters, of a bar for 100 % pressure."""


def show_history(client: Client, count: int, as_json: bool) -> None:
    """Query the last `count` pressure reports and print them, oldest first."""
    about = client.execute("x-query-pressure", {"count": count})
    if as_json:
        output.print_json(about)
        return
    if not about["samples"]:
        output.echo("no report yet: Linux sends the first 45 s after its driver's start")
        return
    output.table(("TIME", "MEMORY", "AVAILABLE", "DEMAND", "PRESSURE"), [_row(each) for each in about["samples"]])


def _row(sample: dict[str, Any]) -> tuple[str, ...]:
    from pyvmm.machine.autosize import Report

    report = Report(sample["time"], sample["available"], sample["committed"], sample["actual"], sample["out"])
    bar = "#" * min(BAR, report.pressure * BAR // 100)
    return (
        time.strftime("%H:%M:%S", time.localtime(sample["time"])),
        format_size(report.current),
        format_size(report.available),
        format_size(report.demand),
        f"{report.pressure:>3}% {bar}",
    )
