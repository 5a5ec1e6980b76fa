"""What became of a guest after a fault, and whether that was expected of its kernel.

    @fault("B1", "UNBALLOON names a page beyond RAM")
    def test_page_beyond_ram(host, outcome):
        host.balloon.send_unballoon([(1 << 30, 1)])
        outcome(panics("free_balloon_pages"))

An expected failure of Linux is asserted as such, per kernel where they differ:
`outcome(oopses("x"), k7_2=survives())`. A kernel with a fix makes the test fail, which is how the fix is noticed. The
id is that of the prediction in the issue's references, or "new". Each case leaves one row for docs/linux-findings.md
(`tests.hv.findings`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pytest

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM

Kind = Literal["survives", "panic", "oops", "warning", "hang", "ends", "broken", "may break", "wrong", "right"]

PROPERTY = "hv-finding"
"""Name of the property of a test's report that holds its row."""

KERNELS = ("5.10", "6.1", "6.12", "7.2", "7.3")

_BROKEN = ("panic", "oops", "hang", "warning", "ends")
"""Kinds of a guest that does not survive."""

_FATAL = re.compile(
    r"BUG: (?!Bad )[^\n]*|Oops[^\n]*|kernel BUG at [^\n]*|general protection[^\n]*|unable to handle[^\n]*"
)
_RIP = re.compile(r"RIP: \S+?:(?:0x[0-9a-f]+(?!\S)|([\w.]+)\+)")
_STAMP = re.compile(r"^\[ *\d+\.\d+\] ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Expected:
    """An outcome, and a regular expression for its text."""

    kind: Kind
    pattern: str = ""


def survives() -> Expected:
    """The guest goes on, with nothing bad in its log."""
    return Expected("survives")


def panics(pattern: str = "") -> Expected:
    """The guest panics; the pattern is for the panic's text, which has the call trace."""
    return Expected("panic", pattern)


def oopses(pattern: str = "") -> Expected:
    """A kernel thread or process dies (oops, BUG), and the guest goes on without it; the pattern is for the log."""
    return Expected("oops", pattern)


def warns(pattern: str = "") -> Expected:
    """The kernel's log has a warning or a report of corruption, and the guest goes on."""
    return Expected("warning", pattern)


def hangs(pattern: str = "") -> Expected:
    """The guest does not answer any more, without a panic."""
    return Expected("hang", pattern)


def ends(pattern: str = "") -> Expected:
    """The guest resets its machine or switches it off, without a panic."""
    return Expected("ends", pattern)


def breaks(pattern: str = "") -> Expected:
    """The guest does not survive; its memory decides how: panic, oops, hang, or a report of corruption."""
    return Expected("broken", pattern)


def may_break(pattern: str = "") -> Expected:
    """The guest survives or not, by what its memory holds; the pattern is for the text if it does not."""
    return Expected("may break", pattern)


@dataclass(frozen=True, slots=True)
class Observed:
    """What happened. `line` is one line for the table, `text` is what patterns are searched in."""

    kind: Kind
    line: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the findings, for one kernel."""

    case: str
    id: str
    fault: str
    kernel: str
    version: str  # Debian's
    expected: str
    kind: Kind
    happened: str
    as_expected: bool


HOST_SIDE = ("accounting", "wakeups", "signals", "devices")
"""Oracles that compare the guest with what the machine's own devices know. A raw host acts without them."""


def observe(vm: VM, seconds: float) -> Observed:
    """Run the guest for `seconds` and tell what became of it, by the oracles that need the guest alone."""
    verdict = vm.survives(seconds, without=HOST_SIDE)
    text = str(verdict)
    if verdict:
        return Observed("survives", "survives", "")
    if panics := verdict.of("panic"):
        text += vm.console.text  # the crash registers' text is only the log's end
        if panics[0].line.startswith("the machine") and not _place(vm.console.text):
            return Observed("ends", panics[0].line, text)
        return Observed("panic", _place(vm.console.text) or _place(text) or panics[0].line, text)
    damage, hung = verdict.of("log"), verdict.of("hang")
    place = _place("\n".join(each.text for each in damage))
    if hung:
        what = re.sub(r" for \d+ s.*", "", re.sub(r"task \d+ \((.*?)\)", r"task \1", hung[0].line))
        return Observed("hang", f"{what} after {place}" if place else what, text)
    if place:
        return Observed("oops", place, text)
    return Observed("warning", _plain(str(verdict.findings[0].line)), text)


def _place(text: str) -> str:
    """Return the first fatal line of a log, with the function in which it happened; "" if there is none."""
    fatal, rip = _FATAL.search(text), _RIP.search(text)
    if fatal is None:
        return ""
    words = re.sub(r",?( for)? address:? [0-9a-fx]+|: [0-9a-f]{4} \[#1\].*| [0-9a-f]{16}", "", _plain(fatal.group()))
    return f"{words} in {rip.group(1)}" if rip and rip.group(1) else words


def _plain(line: str) -> str:
    line = _STAMP.sub("", line).strip()
    warning = re.search(r"WARNING: .*?(\w+)\+0x", line)
    return f"WARNING in {warning.group(1)}" if warning else re.sub(r" +(pfn:|in process ).*", "", line)[:110].strip()


def debian_version(vm: VM) -> str:
    """Return the version of the guest's kernel package, 6.1.192-2 for instance; its release, if it is of none."""
    package = re.search(r"linux-image-[^/]*_([^/]+)", str(vm.config.kernel))
    return package.group(1) if package else vm.machine.agent.release


class Outcome:
    """The fixture `outcome` of one test: call it once, after the fault."""

    def __init__(self, vm: VM, case: str, id: str, fault: str, record: Callable[[str, Any], None]) -> None:
        self.vm = vm
        self.version = debian_version(vm)
        self.kernel = ".".join(self.version.split(".")[:2])
        self._case = (case, id, fault)
        self._record = record

    def __call__(self, expected: Expected, *, settle: float = 0.5, **by_kernel: Expected) -> Observed:
        """Observe the guest and assert what was expected: `expected`, or for one kernel `k5_10`, `k6_1` and so on."""
        wanted = self._wanted(expected, by_kernel)
        observed = observe(self.vm, settle)
        fits = wanted.kind == "may break" and observed.kind == "survives"
        if not fits:
            kinds = _BROKEN if wanted.kind in ("broken", "may break") else (wanted.kind,)
            fits = observed.kind in kinds and bool(re.search(wanted.pattern, observed.text))
        self._row(wanted.kind, observed.kind, observed.line, fits)
        assert fits, f"expected {wanted}, but: {observed.kind}, {observed.line}\n{observed.text[:3000]}"
        return observed

    def shows(self, what: str, happened: bool, *, only: tuple[str, ...] = KERNELS, figure: object = "") -> None:
        """Assert that a wrong behaviour `what` happened, on the kernels `only`, and did not on others.

        `figure` is what was measured, for the table."""
        wanted = self.kernel in only
        kind: Kind = "wrong" if happened else "right"
        told = what if happened else f"not so: {what}"
        expected = what if wanted else f"not so: {what}"
        self._row(expected, kind, f"{told} ({figure})" if figure != "" else told, happened == wanted)
        assert happened == wanted, f"{what}: {'no longer' if wanted else 'also here'} ({figure})"

    def _wanted(self, expected: Expected, by_kernel: dict[str, Expected]) -> Expected:
        names = {f"k{kernel.replace('.', '_')}": kernel for kernel in KERNELS}
        unknown = set(by_kernel) - set(names)
        assert not unknown, f"no such kernel: {unknown}"
        return next((each for name, each in by_kernel.items() if names[name] == self.kernel), expected)

    def _row(self, expected: str, kind: Kind, happened: str, as_expected: bool) -> None:
        row = Row(*self._case, self.kernel, self.version, expected, kind, happened, as_expected)
        self._record(PROPERTY, asdict(row))


F = TypeVar("F", bound=Callable[..., None])


def fault(id: str, what: str) -> Callable[[F], F]:
    """Mark a test as a fault case: the prediction's id ("new" for none), and what the host does."""

    def mark(function: F) -> F:
        return pytest.mark.fault(id=id, what=what)(function)

    return mark
