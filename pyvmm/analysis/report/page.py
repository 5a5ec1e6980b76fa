"""The report as one HTML page without scripts, fonts or network access. Light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as List
from html import escape
from pathlib import Path

from pyvmm import __version__
from pyvmm.analysis import page_map
from pyvmm.analysis.report import charts
from pyvmm.analysis.report.latency import Latency
from pyvmm.analysis.report.summary import TraceSummary
from pyvmm.guest_text import clean
from pyvmm.trace.sequences import Sequence, counted

_STYLE = """
:root { --page: #fcfcfb; --ink: #1c1c1a; --soft: #62625c; --grid: #e6e5e0; --axis: #b9b8b0; --panel: #f4f3ef;
  --a: #2a62c9; --b: #b8590a; --c: #1f8a5b; --d: #8b4fb8; --e: #a8364c; --bad: #c0262d; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #191918; --ink: #ecebe6; --soft: #a3a29a; --grid: #32322f;
  --axis: #5a5a54; --panel: #232321; --a: #7aa7ff; --b: #f0a056; --c: #5fcf9b; --d: #c79bea; --e: #f08a9b;
  --bad: #ff7b7b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 24px 64px; max-width: 930px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 40px 0 8px; }
p { color: var(--soft); margin: 4px 0 12px; max-width: 70ch; } a { color: var(--a); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 0; }
.tiles div { background: var(--panel); border-radius: 8px; padding: 10px 16px; min-width: 110px; }
.tiles b { display: block; font-size: 20px; font-weight: 600; } .tiles span { color: var(--soft); font-size: 13px; }
.warn { border-left: 3px solid var(--bad); padding-left: 12px; color: var(--ink); }
.scroll { overflow-x: auto; }
svg { display: block; max-width: none; } svg text { font: 12.5px system-ui, sans-serif; fill: var(--ink); }
svg text.tick, svg text.gap { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg text.gap { font-size: 11px; } svg text.actor { font-size: 14px; font-weight: 600; }
svg text.note { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--grid); } .axis { stroke: var(--axis); } .life { stroke: var(--axis); stroke-width: 1.5; }
.mark { stroke: var(--soft); stroke-dasharray: 2 3; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .actual { stroke: var(--a); stroke-width: 2.5; }
.target { stroke: var(--b); stroke-dasharray: 6 4; } .resident { stroke: var(--c); }
.available { stroke: var(--d); stroke-dasharray: 1.5 3; } .committed { stroke: var(--e); stroke-dasharray: 1.5 3; }
.arrow { stroke: currentColor; stroke-width: 1.6; } .tip { fill: currentColor; }
.up { color: var(--a); } .down { color: var(--b); } .bad { color: var(--bad); } .dot { fill: var(--soft); }
.sample { fill: var(--a); fill-opacity: .45; } .median { stroke: var(--b); stroke-width: 2.5; }
.bar { fill: var(--a); }
details { border-top: 1px solid var(--grid); padding: 6px 0; }
details:last-of-type { border-bottom: 1px solid var(--grid); }
summary { cursor: pointer; padding: 4px 0; } summary span { color: var(--soft); margin-left: 10px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }
th { text-align: left; font-weight: 600; } th, td { padding: 3px 18px 3px 0; border-bottom: 1px solid var(--grid); }
td.n, th.n { text-align: right; white-space: nowrap; } code { font-size: 13px; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
"""

OPEN_LIMIT = 4
"""Resizes whose diagram is expanded when the page opens."""


def _escape(text: str) -> str:
    """Escape a trace's text for the page: markup, and characters that change how other text is displayed."""
    return escape(clean(text))


def page(summary: TraceSummary, latencies: List[Latency], source: Path) -> str:
    """Return the whole page."""
    title = f"{summary.machine or source.stem}: pyvmm trace report"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_escape(summary.machine or source.stem)}</h1>",
        f"<p>Trace <code>{_escape(source.name)}</code>"
        + (f", recorded from {_escape(summary.wall_clock)} on" if summary.wall_clock else "")
        + ". Times are seconds since its first event.</p>",
        *_warnings(summary),
        _tiles(summary),
        *_memory(summary),
        *_map(summary),
        *_sequences(summary),
        *_latencies(latencies),
        *_exits(summary),
        *_counts(summary),
        f"<footer>Made by pyvmm {_escape(__version__)}: <code>pyvmm report {_escape(source.name)}</code></footer>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _warnings(summary: TraceSummary) -> Iterable[str]:
    if summary.dropped:
        yield f'<p class="warn">{summary.dropped} events were lost while recording: the queue was full.</p>'
    if summary.skipped:
        yield f'<p class="warn">{summary.skipped} lines of the file are not trace events and were skipped.</p>'


def _tiles(summary: TraceSummary) -> str:
    resizes = sum(1 for each in summary.transactions if each.end is not None)
    figures = [
        (charts.seconds(summary.seconds), "traced"),
        (f"{summary.counts.total():,}".replace(",", " "), "events"),
        (f"{summary.exits_by_kind.total():,}".replace(",", " "), "vCPU exits"),
        counted(len(summary.handshakes), "VMBus contact").split(" ", 1),
        counted(resizes, "resize").split(" ", 1),
    ]
    return '<div class="tiles">' + "".join(f"<div><b>{n}</b><span>{w}</span></div>" for n, w in figures) + "</div>"


def _picture(svg: str) -> str:
    return f'<div class="scroll">{svg}</div>'


def _memory(summary: TraceSummary) -> Iterable[str]:
    yield '<h2 id="memory">Memory</h2>'
    if not summary.memory:
        yield "<p>The trace has no memory figures: record <code>machine.memory</code> and <code>balloon.*</code>.</p>"
        return
    yield "<p>What the guest has, what it was asked to have, and what of it the host keeps in memory.</p>"
    yield _picture(charts.memory_chart(summary))


def _map(summary: TraceSummary) -> Iterable[str]:
    if summary.page_map is not None:
        yield '<h2 id="map">Memory map at the end</h2>'
        yield "<p>Who owned which page when the machine ended; <code>pyvmm map</code> shows it while one runs.</p>"
        yield _picture(page_map.svg(summary.page_map))


def _sequences(summary: TraceSummary) -> Iterable[str]:
    yield '<h2 id="vmbus">VMBus handshake</h2>'
    if not summary.handshakes:
        yield "<p>The trace has no VMBus messages: record <code>vmbus*</code>.</p>"
    for number, sequence in enumerate(summary.handshakes):
        yield _details(sequence, is_open=number == 0)
    yield '<h2 id="balloon">Balloon transactions</h2>'
    if not summary.transactions:
        yield "<p>The trace has no balloon messages: record <code>hv_balloon_*</code> and <code>balloon.*</code>.</p>"
    for number, sequence in enumerate(summary.transactions):
        yield _details(sequence, is_open=number < OPEN_LIMIT)


def _details(sequence: Sequence, *, is_open: bool) -> str:
    facts = [f"at {sequence.begin:.2f} s", counted(len(sequence.messages), "message")]
    if sequence.end is not None:
        facts.append(f"{charts.seconds(sequence.end - sequence.begin)} to the end")
    if sequence.result:
        facts.append(sequence.result)
    return (
        f"<details{' open' if is_open else ''}><summary><b>{_escape(sequence.title)}</b>"
        f"<span>{_escape(', '.join(facts))}</span></summary>{_picture(charts.sequence_diagram(sequence))}</details>"
    )


def _latencies(latencies: List[Latency]) -> Iterable[str]:
    yield '<h2 id="latencies">How long answers took</h2>'
    if not latencies:
        yield "<p>The trace has no questions with their answers.</p>"
        return
    yield "<p>A dot for each answer, a bar at the median; each step to the right is ten times as long.</p>"
    yield _picture(charts.latency_chart(latencies))
    rows = [
        (
            each.title,
            str(len(each.samples)),
            *(
                charts.seconds(value)
                for value in (each.seconds[0], each.median, each.quantile(0.95), each.seconds[-1])
            ),
            str(len(each.replaced) or ""),
            str(each.unanswered or ""),
        )
        for each in latencies
    ]
    yield _table(("from, to", "answers", "least", "median", "95 %", "most", "replaced", "unanswered"), rows)


def _exits(summary: TraceSummary) -> Iterable[str]:
    yield '<h2 id="exits">vCPU exits by kind</h2>'
    kinds = summary.exits_by_kind
    if not kinds:
        yield "<p>The trace has no exits: record <code>machine.exit_count</code>, <code>machine.vcpu_exit</code></p>"
        return
    yield _picture(charts.bar_chart(kinds, "vCPU exits by kind"))
    if len(summary.exits) > 1:
        header = ("exit", *summary.exits)
        yield _table(
            header, [(kind, *(str(each[kind]) for each in summary.exits.values())) for kind, _ in kinds.most_common()]
        )


def _counts(summary: TraceSummary) -> Iterable[str]:
    yield '<h2 id="counts">Events</h2>'
    rows = [(name, str(count)) for name, count in summary.counts.most_common()]
    yield f"<details><summary>{len(rows)} kinds of events</summary>{_table(('event', 'count'), rows)}</details>"


def _table(header: List[str], rows: Iterable[List[str]]) -> str:
    def cells(tag: str, row: List[str]) -> str:
        return "".join(
            f"<{tag}{' class=' + chr(34) + 'n' + chr(34) if number else ''}>{_escape(cell)}</{tag}>"
            for number, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", header)}</tr>{body}</table></div>'
