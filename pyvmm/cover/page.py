"""A coverage report as one HTML page without outside resources: tables, and the disassembly coloured by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from pyvmm.cover.figures import Figures, Function
from pyvmm.cover.lines import NO_LINES, Lines
from pyvmm.cover.program import Instruction
from pyvmm.cover.report import summary

_STYLE = """
:root { color-scheme: light dark; --seen: #d7f5d7; --missed: #fbd5d5; --other: #ececec; --edge: #8888; }
@media (prefers-color-scheme: dark) { :root { --seen: #12401a; --missed: #5a1d1d; --other: #333; } }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
h2 { margin-top: 2em; }
summary { display: flex; gap: 1em; cursor: pointer; padding: .15em .3em; border-bottom: 1px solid var(--edge); }
summary .name { flex: 1; font-family: monospace; overflow-wrap: anywhere; }
summary .count { width: 8em; text-align: right; }
.bar { width: 10em; background: var(--missed); height: .8em; align-self: center; border: 1px solid var(--edge); }
.bar i { display: block; height: 100%; background: #3a9d4a; }
pre { margin: .2em 0 1em; overflow-x: auto; font-size: 13px; }
pre div { padding: 0 .6em; border-left: 4px solid var(--edge); margin-bottom: 2px; }
.seen, .inferred, .loading { background: var(--seen); } .missed { background: var(--missed); }
.blind { background: var(--other); } .why { opacity: .65; font-style: italic; }
.key span { padding: 0 .5em; margin-right: .5em; }
"""
_KEY = (
    ("seen", "ran"),
    ("inferred", "ran, as the blocks behind it tell"),
    ("missed", "did not run"),
    ("blind", "cannot be told: not counted"),
)


def page(title: str, modules: Sequence[tuple[Figures, Lines]]) -> str:
    """Return the page; functions can be opened, and those with blocks that did not run come first."""
    body = "".join("".join(_module(figures, lines)) for figures, lines in modules)
    key = "".join(f'<span class="{state}">{text}</span>' for state, text in _KEY)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="key">{key}</p>{body}</body></html>\n'
    )


def _module(figures: Figures, lines: Lines) -> Iterator[str]:
    listing = figures.program.listing()
    yield f"<h2>{escape(figures.program.name)}</h2><p>{escape(summary(figures))}</p>"
    for function in sorted(figures.functions, key=lambda each: (each.covered - each.counted, each.name)):
        yield (
            f'<details><summary><span class="name">{escape(function.name)}</span>'
            f'<span class="count">{function.covered} of {function.counted}</span>'
            f'<span class="bar"><i style="width:{function.percent:.0f}%"></i></span></summary><pre>'
        )
        yield from _function(figures, function, listing, lines or NO_LINES)
        yield "</pre></details>"


def _function(figures: Figures, function: Function, listing: list[list[Instruction]], lines: Lines) -> Iterator[str]:
    program = figures.program
    for number in function.blocks:
        block, state = program.blocks[number], figures.states[number]
        why = block.why_none if state == "blind" and block.why_none else state
        yield f'<div class="{state}"><span class="why">{escape(program.label(block))}: {escape(why)}</span>\n'
        shown = None
        for offset, _, text in listing[number]:
            line = lines.at(block.section, offset)
            if line is not None and line != shown:
                yield f'<span class="why">{escape(line.file.rpartition("/")[2])}:{line.line}</span>\n'
                shown = line
            yield f"{offset:6x}  {escape(text)}\n"
        yield "</div>"
