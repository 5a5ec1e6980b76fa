"""Trace sinks of a session: standard error or a file, selected by `--trace`, `--trace-file` and `--trace-format`."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvmm import trace
from pyvmm.errors import ConfigError
from pyvmm.output import Output

FLUSH_TIMEOUT = 1.0
"""Seconds that the final flush of stderr may take."""


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Which events are recorded, and where: into `file` (all of them without `patterns`), else as text on stderr."""

    patterns: Sequence[str] = ()
    file: Path | None = None
    format: str | None = None


class Tracing:
    """Result of a session's traces: `failed` if some are lost because their file could not be written."""

    failed = False


@contextlib.contextmanager
def traces(settings: TraceSettings, *, machine: str = "") -> Iterator[Tracing]:
    """Record events while the block runs.

    Raises ConfigError for a pattern that matches nothing and a file that cannot be written.
    """
    tracing = Tracing()
    patterns, file, format = settings.patterns, settings.file, settings.format
    if not patterns and file is None:
        if format is not None:
            raise ConfigError("--trace-format is the format of --trace-file: give a --trace-file too")
        yield tracing
        return
    check_patterns(patterns)
    chosen = patterns or ["*"]
    with contextlib.ExitStack() as stack:
        sink: trace.Sink
        if file is None:
            if format is not None:
                raise ConfigError("--trace-format is the format of --trace-file: give a --trace-file too")
            sink = stack.enter_context(_on_stderr())
        else:
            sink = stack.enter_context(_writing(file, format, machine, tracing))
        for pattern in chosen:
            trace.subscribe(pattern, sink)
        stack.callback(trace.unsubscribe, sink)
        yield tracing


class _OutputSink(trace.TextSink):
    """Writes events as text to an output. While its reader is behind, events are dropped and counted: a vCPU's
    thread, which holds a device's lock, cannot wait.
    """

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self._lost = 0
        self._lock = threading.Lock()

    def __call__(self, record: trace.Record) -> None:
        if self._output.level:
            with self._lock:
                self._lost += 1
            return
        if self._lost:
            self.report_lost()
        self._output.write(self.line(record).encode("utf-8", "backslashreplace"))

    def report_lost(self) -> None:
        """Write how many events were dropped."""
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            self._output.write(f"pyvmm: {lost} trace events dropped: standard error was read too slowly\r\n".encode())


@contextlib.contextmanager
def _on_stderr() -> Iterator[trace.Sink]:
    try:
        real = sys.stderr.fileno() == 2
    except (OSError, ValueError):
        real = False
    if not real:
        yield trace.TextSink()
        return
    output = Output(2, "trace")
    sink = _OutputSink(output)
    try:
        yield sink
    finally:
        sink.report_lost()
        output.flush(FLUSH_TIMEOUT)


def check_patterns(patterns: Sequence[str]) -> None:
    """Import all events and check the patterns. Raises ConfigError for one that matches no event."""
    from pyvmm.launch.trace_events import load_events

    load_events()
    for pattern in patterns:
        trace.check_pattern(pattern)


@contextlib.contextmanager
def _writing(file: Path, format: str | None, machine: str, tracing: Tracing) -> Iterator[trace.Sink]:
    from pyvmm.trace.writer import FileSink

    def failed(error: OSError) -> None:
        tracing.failed = True
        print(f"pyvmm: trace file {file}: {error.strerror}; the rest is lost", file=sys.stderr, flush=True)

    sink = FileSink(file, format, machine=machine, failed=failed)
    try:
        yield sink
    finally:
        sink.close()
        if sink.lost and sink.error is None:
            print(f"pyvmm: trace file {file}: {sink.lost} events lost, the disk was too slow", file=sys.stderr)
