"""Forced returns: a call in a guest's module is skipped, and its caller finds an error.

    vm.fail("__kmalloc", in_="hot_add_req", returns=0)      the next allocation there gives NULL

What an unmodified kernel lacks (Debian's have no CONFIG_FAULT_INJECTION) is done from outside: a breakpoint on the
call sets RAX and goes on behind it. Only direct calls that no part of the kernel rewrites can fail: not of inlined
functions, static calls or through pointers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from pyvmm.cover.program import Call, Program
from pyvmm.errors import ConfigError
from pyvmm.machine.traps import traps_of
from pyvmm.machine.watched import ForcedReturn

if TYPE_CHECKING:
    from pyvmm.cover.session import Coverage

SHOWN: Final = 12  # names in an error
_RANGE: Final = 1 << 63


def fail(
    coverage: Coverage, module: str, callee: str, function: str = "", *, value: int = 0, times: int = 1, skip: int = 0
) -> ForcedReturn:
    """Let the module's calls of `callee`, in `function` if it is given, return `value`. Raises ConfigError."""
    if not -_RANGE <= value < 2 * _RANGE:
        raise ConfigError(f"returns={value} does not fit into RAX")
    if times < 0 or skip < 0:
        raise ConfigError("times and skip are numbers of calls")
    calls = find_calls(coverage.program(module), callee, function)
    (layout,) = coverage.layouts((module,))
    addresses = [layout.address(call.section, call.offset) for call in calls]
    found = [address for address in addresses if address is not None]
    return traps_of(coverage.machine).fail(found, value, times, skip)


def find_calls(program: Program, callee: str, function: str = "") -> list[Call]:
    """Return the calls; both names may have shell wildcards. Raises ConfigError with the calls there are."""
    calls = [call for call in program.calls if fnmatchcase(call.callee, callee)]
    found = [call for call in calls if not function or fnmatchcase(call.function, function)]
    if found:
        return found
    if calls:
        raise ConfigError(
            f"{program.name} calls {callee} not in {function}, but in {_list(c.function for c in calls)}"
        )
    inside = [call for call in program.calls if function and fnmatchcase(call.function, function)]
    if inside:
        near = [call.callee for call in inside if _alike(call.callee, callee)] or [call.callee for call in inside]
        raise ConfigError(f"{function} of {program.name} does not call {callee}; it calls {_list(near)}")
    if function and not any(fnmatchcase(block.function, function) for block in program.blocks):
        raise ConfigError(f"{program.name} has no function {function}: it may be inlined in its callers")
    near = [call.callee for call in program.calls if _alike(call.callee, callee)]
    raise ConfigError(f"{program.name} does not call {callee}" + (f"; it calls {_list(near)}" if near else ""))


def _alike(name: str, wanted: str) -> bool:
    """Return whether two names share a word, as kmalloc_trace and __kmalloc."""
    words = {word for word in re.split(r"[_*?.]+", wanted) if len(word) > 2}
    return not words.isdisjoint(re.split(r"[_.]+", name))


def _list(names: Iterable[str]) -> str:
    counted = Counter(names)
    shown = [f"{name} ({count})" if count > 1 else name for name, count in sorted(counted.items())]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
