"""`--trace`, `--trace-file` and `--trace-format` of `run`: where the events of a session go."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyvmm import trace
from pyvmm.errors import ConfigError


@contextlib.contextmanager
def traces(
    patterns: Sequence[str], file: Path | None = None, format: str | None = None, *, machine: str = ""
) -> Iterator[None]:
    """Record events while the block runs: into `file` (all of them without `patterns`), else as text on stderr.

    Raises ConfigError for a pattern that matches nothing and a file that cannot be written.
    """
    if not patterns and file is None:
        if format is not None:
            raise ConfigError("--trace-format says how --trace-file is written: give one")
        yield
        return
    check_patterns(patterns)
    chosen = patterns or ["*"]
    with contextlib.ExitStack() as stack:
        sink: trace.Sink
        if file is None:
            if format is not None:
                raise ConfigError("--trace-format says how --trace-file is written: give one")
            sink = trace.TextSink()
        else:
            sink = stack.enter_context(_writing(file, format, machine))
        for pattern in chosen:
            trace.subscribe(pattern, sink)
        stack.callback(trace.unsubscribe, sink)
        yield


def check_patterns(patterns: Sequence[str]) -> None:
    """Declare all events. ConfigError for a pattern that matches none of them."""
    from pyvmm.cli.trace_events import load_events

    load_events()
    for pattern in patterns:
        trace.check_pattern(pattern)


@contextlib.contextmanager
def _writing(file: Path, format: str | None, machine: str) -> Iterator[trace.Sink]:
    from pyvmm.tracing.writer import FileSink

    sink = FileSink(file, format, machine=machine)
    try:
        yield sink
    finally:
        sink.close()
        if sink.error is not None:
            print(f"pyvmm: trace file {file}: {sink.error.strerror}; its end is lost", file=sys.stderr)
        elif sink.lost:
            print(f"pyvmm: trace file {file}: {sink.lost} events lost, the disk was too slow", file=sys.stderr)
