"""Coverage and forced returns of a machine in this process: `vm.cover` and `vm.fail` of the test bed.

vm.cover.start("hv_balloon", "hv_vmbus")
...
print(vm.cover.report())
vm.fail("__kmalloc", in_="hot_add_req", returns=0)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cover.figures import Figures
from pyvmm.cover.guest import Layout, parse_sections, sections_command
from pyvmm.cover.program import Program
from pyvmm.cover.record import Record, Seen
from pyvmm.cover.report import lines
from pyvmm.cover.store import find_program
from pyvmm.errors import ConfigError
from pyvmm.machine.traps import traps_of
from pyvmm.machine.watched import Site

if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine

Run = Callable[[str], str]
"""Runs a shell command in the guest and returns its output."""

MODULES = ("hv_balloon", "hv_vmbus", "hv_utils")
"""The modules that are meant when none is named, as far as the guest has them."""


class Coverage:
    """The coverage of one machine. `run` asks a guest that is booted where its modules are.

    `modules` is a folder with the modules' files, for a guest that is no image of ours. All methods run on the loop's
    thread. Raises ConfigError for a module that is not loaded, or has no file.
    """

    def __init__(self, machine: Machine, run: Run | None = None, modules: Path | None = None) -> None:
        self.machine = machine
        self._run = run
        self._folder = modules
        self._programs: dict[str, Program] = {}
        self._layouts: dict[str, Layout] = {}
        self._expected: list[str] = []

    def start(self, *names: str) -> None:
        """Place breakpoints in the blocks of these modules; what was seen of one before is dropped."""
        traps = traps_of(self.machine)
        for layout in self.layouts(names or MODULES):
            sites = [None if each is None else Site(*each) for each in layout.sites()]
            traps.watch(layout.program.name, layout.program.build_id, sites, layout.exits())

    def expect(self, *names: str) -> None:
        """Cover these modules from their init functions on, as the guest loads them: before the machine starts, to be
        followed by `arrived` once the guest runs. Raises ConfigError for a module without a file.
        """
        from pyvmm.cover.boot import arrival, find_calls

        self._expected = [self.program(name).name for name in names]
        found = [each for name in names if (each := arrival(self.program(name))) is not None]
        with suppress(ConfigError):  # a packed kernel, or one without symbols
            traps_of(self.machine).expect(found, find_calls(self.machine.config.kernel))

    def arrived(self) -> None:
        """Cover the expected modules that were not seen to come, as those that are built in. Raises ConfigError."""
        missing = [name for name in self._expected if name not in traps_of(self.machine).modules]
        self._expected = []
        if missing:
            self.start(*missing)

    def stop(self) -> Record:
        """Take out all breakpoints; return what was seen."""
        record = self.record()
        traps = traps_of(self.machine)
        traps.dismiss()
        for name in list(traps.modules):
            traps.unwatch(name)
        return record

    def layouts(self, names: tuple[str, ...]) -> list[Layout]:
        """Return where the guest has loaded these modules. It is asked once for each; again after a reset."""
        wanted = [self.program(name) for name in names]
        unknown = [program for program in wanted if program.name not in self._layouts]
        if unknown:
            assert self._run is not None, "only a guest that takes commands tells where its modules are"
            found = parse_sections(self._run(sections_command(unknown)))
            self._layouts |= {program.name: Layout.of(program, found) for program in unknown}
        return [self._layouts[program.name] for program in wanted]

    def program(self, name: str) -> Program:
        """Return a module's blocks."""
        if name not in self._programs:
            self._programs[name] = find_program(name, self.machine.config.kernel, self._folder)
        return self._programs[name]

    def record(self) -> Record:
        """Return what was seen so far."""
        record = Record()
        traps = self.machine.traps
        for watched in traps.modules.values() if traps is not None else ():
            kernel = self.machine.agent.release
            record.add(
                Seen(
                    watched.name, watched.build_id, kernel, len(watched.sites), set(watched.placed), set(watched.seen)
                )
            )
        return record

    def figures(self, name: str) -> Figures:
        """Return the coverage of a module. Raises ConfigError if it is not on."""
        traps = self.machine.traps
        if traps is None or name not in traps.modules:
            raise ConfigError(f"coverage of {name} is not on: start({name!r})")
        program = self.program(name)
        return Figures(program, self.record().modules[program.build_id])

    def report(self, *, missed: bool = False) -> str:
        """Return the report as text."""
        traps = self.machine.traps
        names = list(traps.modules) if traps is not None else []
        return "\n\n".join("\n".join(lines(self.figures(name), missed=missed)) for name in names)
