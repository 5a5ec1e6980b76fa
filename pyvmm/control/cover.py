"""QMP commands that place breakpoints for code coverage and return what was seen. None is QEMU's.

    {"execute": "x-cover-start", "arguments": {"module": "hv_balloon", "build-id": "...", "base": -9, "sites": "..."}}
    {"return": {"module": "hv_balloon", "build-id": "...", "state": "on", "blocks": 370, "hits": "..."}}

`pyvmm.cover_sites` has the form of `sites` and `hits`. The client reads the module's file and disassembles it
(`pyvmm cover`): the machine knows only addresses.
"""

from __future__ import annotations

import re
from typing import Final

from pyvmm.control.errors import ControlError
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.cover_sites import parse_sites
from pyvmm.qapi import CoverInfo

_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,56}")  # MODULE_NAME_LEN
_BUILD_ID: Final = re.compile(r"[0-9a-f]{1,64}")


@command("x-cover-start", module=str, build_id=str, base=int, sites=str)
def cover_start(machine: MonitoredMachine, module: str, build_id: str, base: int, sites: str) -> CoverInfo:
    """Place a breakpoint for each block of a module; what was seen of it before is dropped."""
    if not _NAME.fullmatch(module):
        raise ControlError("Parameter 'module' expects a module's name")
    if not _BUILD_ID.fullmatch(build_id):
        raise ControlError("Parameter 'build-id' expects hexadecimal digits")
    places, exits = parse_sites(base, sites)
    return machine.cover_start(module, build_id, places, exits)


@command("x-query-cover")
def query_cover(machine: MonitoredMachine) -> list[CoverInfo]:
    """Return the blocks that were seen, of each module that is watched."""
    return machine.cover_info()


@command("x-cover-stop", module=Argument(str, optional=True))
def cover_stop(machine: MonitoredMachine, module: str | None = None) -> list[CoverInfo]:
    """Take out the breakpoints of a module, or of all, and return what was seen."""
    return machine.cover_stop(module)
