"""The report's data as CSV files, for spreadsheets and notebooks: the page's figures, not rounded."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pyvmm.analysis.report.latency import Latency
from pyvmm.analysis.report.summary import FIGURES, TraceSummary
from pyvmm.trace.sequences import Message

Table = tuple[Sequence[str], Iterable[Sequence[Any]]]


def tables(summary: TraceSummary, latencies: Sequence[Latency]) -> dict[str, Table]:
    """Return header and rows by file name."""
    sequences = [("vmbus", each) for each in summary.handshakes] + [
        (each.device, each) for each in summary.transactions
    ]
    return {
        "memory.csv": (
            ("seconds", *FIGURES),
            [(p.time, *(getattr(p, figure) for figure in FIGURES)) for p in summary.memory],
        ),
        "messages.csv": (
            ("seconds", "conversation", "number", "title", "kind", "what", "detail"),
            [
                (step.time, group, number, sequence.title, *_step(step))
                for number, (group, sequence) in enumerate(sequences)
                for step in sequence.steps
            ],
        ),
        "latencies.csv": (
            ("what", "begin", "seconds", "end"),
            [
                (each.title, *sample, end)
                for each in latencies
                for end, samples in (("answered", each.samples), ("replaced", each.replaced))
                for sample in samples
            ],
        ),
        "exits.csv": (
            ("vcpu", "exit", "count"),
            [(vcpu, kind, count) for vcpu, kinds in summary.exits.items() for kind, count in kinds.most_common()],
        ),
        "counts.csv": (("event", "count"), summary.counts.most_common()),
    }


def _step(step: object) -> tuple[str, str, str]:
    match step:
        case Message(to_host=to_host, label=label, detail=detail):
            return "to host" if to_host else "to guest", label, detail
        case _:
            return "note", getattr(step, "text", ""), ""


def write_tables(folder: Path, summary: TraceSummary, latencies: Sequence[Latency]) -> list[Path]:
    """Write the tables into `folder`, made if needed; return their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (header, rows) in tables(summary, latencies).items():
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        written.append(folder / name)
    return written
