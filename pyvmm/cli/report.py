"""`pyvmm report`: a trace as a page with pictures."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The page. Default: TRACE with .html.")
@click.option("--csv", "folder", type=click.Path(path_type=Path), help="Write the data as CSV files into FOLDER too.")
def report(trace: Path, output: Path | None, folder: Path | None) -> None:
    """Draw a recorded trace: one HTML page that needs nothing else.

    Memory over time, the VMBus handshake and each resize as a sequence diagram, how long answers took, vCPU exits by
    kind, counts. Takes what `pyvmm run --trace-file` writes in any format, and QEMU's trace log.

    \b
    pyvmm run --trace-file run.jsonl -- sleep 30        and meanwhile: pyvmm balloon 256M
    pyvmm report run.jsonl -o run.html --csv run-data
    """
    from pyvmm.cli.trace_events import load_events
    from pyvmm.errors import ConfigError
    from pyvmm.tracing.read import read_trace
    from pyvmm.tracing.report.latency import latencies
    from pyvmm.tracing.report.page import page
    from pyvmm.tracing.report.story import tell
    from pyvmm.tracing.report.tables import write_tables

    load_events()  # QEMU's log and ours are text, which their templates turn back into fields
    found = read_trace(trace)
    story, answers = tell(found), latencies(found)
    target = output or trace.with_suffix(".html")
    if target.exists() and target.samefile(trace):
        raise ConfigError(f"{target} is the trace itself: choose another --output")
    target.write_text(page(story, answers, trace), encoding="utf-8")
    click.echo(f"{target}: {len(found.entries)} events in {story.seconds:.1f} s")
    if folder is not None:
        for path in write_tables(folder, story, answers):
            click.echo(path)
