"""`pyvmm report`: renders a recorded trace as an HTML page with diagrams."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.output import echo, print_json

if TYPE_CHECKING:
    from pyvmm.analysis.report.latency import Latency


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The page. Default: TRACE with .html.")
@click.option("--csv", "folder", type=click.Path(path_type=Path), help="Write the data as CSV files into FOLDER too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: files, events, seconds, latencies.")
def report(trace: Path, output: Path | None, folder: Path | None, as_json: bool) -> None:
    """Draw a recorded trace: one HTML page that needs nothing else.

    Memory over time, the VMBus handshake and each resize as a sequence diagram, how long answers took, vCPU exits by
    kind, counts. Takes what `pyvmm run --trace-file` writes in any format, and QEMU's trace log.

    \b
    pyvmm run --trace-file run.jsonl -- sleep 30        and meanwhile: pyvmm balloon 256M
    pyvmm report run.jsonl -o run.html --csv run-data
    pyvmm report run.jsonl --json | jq '.latencies[] | {what, median}'
    """
    from pyvmm.analysis.read import read_trace
    from pyvmm.analysis.report.latency import latencies
    from pyvmm.analysis.report.page import page
    from pyvmm.analysis.report.summary import summarise
    from pyvmm.analysis.report.tables import write_tables
    from pyvmm.errors import ConfigError
    from pyvmm.launch.trace_events import load_events

    load_events()  # QEMU's log and pyvmm's are text, parsed back into fields by the events' templates
    found = read_trace(trace)
    summary, answers = summarise(found), latencies(found)
    target = output or trace.with_suffix(".html")
    if target.exists() and target.samefile(trace):
        raise ConfigError(f"{target} is the trace itself: choose another --output")
    target.write_text(page(summary, answers, trace), encoding="utf-8")
    tables = write_tables(folder, summary, answers) if folder is not None else []
    if as_json:
        print_json(
            {
                "path": target,
                "tables": tables,
                "events": len(found.entries),
                "skipped": found.skipped,
                "dropped": found.dropped,
                "seconds": summary.seconds,
                "latencies": [_summary(each) for each in answers],
            }
        )
        return
    echo(f"{target}: {len(found.entries)} events in {summary.seconds:.1f} s")
    for path in tables:
        echo(path)


def _summary(latency: Latency) -> dict[str, Any]:
    """Return a row of the page's latency table as JSON, in seconds, without rounding."""
    return {
        "what": latency.title,
        "answers": len(latency.samples),
        "least": latency.seconds[0],
        "median": latency.median,
        "p95": latency.quantile(0.95),
        "most": latency.seconds[-1],
        "replaced": len(latency.replaced),
        "unanswered": latency.unanswered,
    }
