"""A coverage report as text: a table of functions, and the blocks that did not run."""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.cover.figures import Figures

_BAR = 20


def lines(figures: Figures, *, missed: bool = False, function: str = "", most: int = 0) -> Iterator[str]:
    """Yield the report's lines. `function`: only of this one, with its instructions. `most`: the number of functions
    that are listed, the largest; 0 for all.
    """
    yield summary(figures)
    if figures.rules is not None:
        yield from _reached(figures)
    if function:
        yield from _listing(figures, function)
        return
    width = max((len(each.name) for each in figures.functions), default=0)
    for each in figures.functions[: most or None]:
        bar = "#" * round(_BAR * each.percent / 100)
        yield f"  {each.name:<{width}}  {each.covered:4} of {each.counted:4}  {each.percent:4.0f} %  {bar}".rstrip()
    if most and len(figures.functions) > most:
        yield f"  and {len(figures.functions) - most} smaller functions"
    if missed:
        yield ""
        yield f"{len(figures.missed())} blocks of {figures.program.name} did not run:"
        for number in figures.missed():
            yield f"  {figures.describe(number)}"
        if figures.unreachable():
            yield ""
            yield f"{len(figures.unreachable())} blocks of {figures.program.name} cannot run:"
        for number in figures.unreachable():
            yield f"  {figures.program.label(figures.program.blocks[number])}: {figures.reasons[number]}"


def summary(figures: Figures) -> str:
    """Return a line with the module's figures."""
    seen, blind = figures.seen, figures.count("blind")
    more = f", {blind} cannot be told" if blind else ""
    inferred = figures.count("inferred")
    inferred_text = f" ({inferred} inferred)" if inferred else ""
    kernel = f" ({seen.kernel})" if seen.kernel else ""
    return (
        f"{seen.module}{kernel}: {figures.covered} of {figures.counted} blocks ran{inferred_text}, "
        f"{figures.percent:.1f} %{more}"
    )


def _reached(figures: Figures) -> Iterator[str]:
    """Yield the percentage of what can be reached, of the module and its parts, and the rules' mistakes."""
    rows = [(f"reachable blocks of {figures.program.name}", figures.reached())]
    rows += [(f"  of its part {name!r}", each) for name, each in figures.parts().items()]
    width = max(len(title) for title, _ in rows)
    for title, each in rows:
        yield f"  {title:<{width}}  {each.covered:4} of {each.reachable:4}, {each.percent:.1f} %"
    for text in figures.wrong:
        yield f"  rules: {text}"


def _listing(figures: Figures, function: str) -> Iterator[str]:
    program = figures.program
    found = next((each for each in figures.functions if each.name == function), None)
    if found is None:
        yield f"  no function {function} in {program.name}"
        return
    listing = program.listing()
    for number in found.blocks:
        block = program.blocks[number]
        yield f"{program.label(block)}: {figures.states[number]}"
        for offset, _, text in listing[number]:
            yield f"    {offset:6x}  {text}"
