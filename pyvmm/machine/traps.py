"""Breakpoints that handle themselves: each marks a block of code as seen and is gone, or makes a call fail.

    placed --hit--> removed, the block is marked               of coverage
    placed --hit--> the call is skipped, RAX set --> placed    of a forced return, until its times are over
    placed --hit--> a module that is about to start gets its breakpoints, the call is made --> placed

They are OUT 0x7E, as a debugger's (`pyvmm.gdb.breakpoints.Patches`), because that leaves the guest on every KVM and
changes no register. The vCPU that hits one restores the two bytes itself if they are in one aligned word; else all
vCPUs are held until the loop has restored them. A debugger and these exclude each other.

A kernel that leaves the VMBus (kexec, crash, hibernation) finds its code as it was. If it comes back, which the
contents and the page tables tell, the breakpoints that were not hit are placed again; another kernel never sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pyvmm.errors import ConfigError, HostError
from pyvmm.gdb.breakpoints import OUT, Patches
from pyvmm.kvm import Exit, IoOut, Regs, Vcpu
from pyvmm.loop import Pending
from pyvmm.machine import events as trace
from pyvmm.machine.arrivals import KERNEL_MAP, Arrival
from pyvmm.machine.guest_call import CALL, CALL_OPCODE, JUMP_OPCODE, complete, make_call
from pyvmm.machine.guest_code import GuestCode
from pyvmm.machine.watched import ForcedReturn, Site, Watched

if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine

PATCH_LIMIT: Final = 65536
"""Most breakpoints at once. All of hv_vmbus, hv_balloon and hv_utils has 3,100."""

MODULE_LIMIT: Final = 64
"""Most modules watched at once."""

WRONG_LIMIT: Final = 20
"""If one in so many places has other bytes than the module's file, it is not the guest's module."""

SUSPENSION_LIMIT: Final = 16
"""Times that breakpoints are placed again for a kernel that left and came back. A guest may leave over and over, and
each time takes the loop some milliseconds for a thousand breakpoints."""

LOAD_LIMIT: Final = 1024
"""Modules that the guest may load while some are expected, then none is any more: each holds all vCPUs and costs the
loop a millisecond. Distributions load some 200."""

ARRIVAL_LIMIT: Final = 64
"""Loads of expected modules for which breakpoints are placed: a thousand take the loop some milliseconds."""

_ADDRESSES: Final = 1 << 64


@dataclass(slots=True)
class _Trap:
    """What a breakpoint does when it is hit."""

    address: int
    marks: list[tuple[Watched, int]] = field(default_factory=list)
    forced: ForcedReturn | None = None
    unloads: Watched | None = None
    loads: bool = False  # whether the kernel calls do_init_module() here
    code: bytes = b""  # of the call that is skipped or made in the guest's place


class Traps:
    """The self-handling breakpoints of one machine. `_exit` runs on vCPU threads, the rest on the loop's."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._patches = Patches(machine.memory, OUT, PATCH_LIMIT)
        self._traps: dict[int, _Trap] = {}  # by address; kept after the hit, for vCPUs that come late
        self.modules: dict[str, Watched] = {}
        self.forced: list[ForcedReturn] = []
        self._arrivals: list[Arrival] = []
        self._calls: tuple[int, ...] = ()  # of do_init_module()
        self._loads = self._arrived = 0
        self._held: list[tuple[int, int]] = []  # (vCPU, address) of hits that the loop settles
        self._settling = Pending(machine.loop, self._settle)
        self._suspensions = 0
        server = machine.services.bus.server
        server.on_unload, server.on_contact = self._unload, self._contact

    @property
    def active(self) -> str:
        """Return what is on, for a message: "coverage", "a forced return", or ""."""
        if self._arrivals or any(each.state in ("on", "suspended") for each in self.modules.values()):
            return "coverage"
        return "a forced return" if self.forced else ""

    @property
    def left(self) -> int:
        """Return the number of breakpoints in guest memory."""
        return len(self._patches)

    # Coverage

    def watch(self, name: str, build_id: str, sites: Sequence[Site | None], exits: Iterable[int] = ()) -> Watched:
        """Place a breakpoint at each site, and return what will be seen. `exits`: where the module begins to unload.

        A module watched before is watched anew; who holds its old Watched, as the template of a fork does, goes on to
        see the blocks that it had not seen. Raises ConfigError.
        """
        self._check()
        if name not in self.modules and len(self.modules) >= MODULE_LIMIT:
            raise ConfigError(f"{MODULE_LIMIT} modules are watched already: `pyvmm cover off`")
        watched = Watched(name, build_id, sites)
        with self._machine.slot.stopped_vcpus():
            code = self._code()
            self._compare(watched, code)
            self._place(watched, exits, code)
        self._connect()
        return watched

    def _place(self, watched: Watched, exits: Iterable[int], code: GuestCode) -> None:
        """Place the breakpoints of a module's blocks that were not seen. No vCPU may run."""
        for number, site in enumerate(watched.sites):
            if site is not None and not watched.hits[number] and code.patch(site.address):
                self._trap(site.address).marks.append((watched, number))
                watched.placed.add(number)
        for address in exits:
            if code.patch(address):
                self._trap(address).unloads = watched
        self.modules[watched.name] = watched
        if trace.watched.on:
            trace.watched(watched.name, len(watched.placed), len(watched.sites))

    def expect(self, arrivals: Iterable[Arrival], calls: Iterable[int]) -> None:
        """Watch these modules from their init function on, whenever the guest loads them. `calls`: where the kernel
        calls do_init_module(). Before the machine starts; what a module's earlier lives have seen is kept.
        """
        self._arrivals += arrivals
        self._calls = tuple(calls)

    def dismiss(self) -> None:
        """Expect no module any more."""
        with self._machine.slot.stopped_vcpus():
            for address in self._calls:
                trap = self._traps.get(address)
                if trap is not None:
                    trap.loads = False
                    self._retire(address)
        self._arrivals, self._calls = [], ()
        self._connect()

    def powered_on(self) -> None:
        """Handle that the kernel has been loaded. No vCPU runs."""
        memory = self._machine.memory
        for address in self._calls:
            gpa = address - KERNEL_MAP
            if memory.contains(gpa, CALL) and (code := memory.read(gpa, CALL))[0] in (CALL_OPCODE, JUMP_OPCODE):
                self._patches.insert(address, range(gpa, gpa + len(OUT)))
                trap = self._trap(address)
                trap.code, trap.loads = code, True
        self._connect()

    def _arrive(self, module: int) -> None:
        """Place the breakpoints of the module with its struct module at that address, if it is expected."""
        self._loads += 1
        code = self._code()
        for arrival in self._arrivals if self._arrived < ARRIVAL_LIMIT else ():
            if not arrival.is_at(module, code) or (base := arrival.base(module, code)) is None:
                continue
            self._arrived += 1
            watched = Watched(arrival.name, arrival.build_id, arrival.sites_at(base))
            old = self.modules.get(arrival.name)
            if old is not None:
                self._withdraw(old.name)
                if old.build_id == arrival.build_id:
                    watched.hits, watched.placed = old.hits, old.placed
            self._place(watched, [base + each for each in arrival.exits], code)

    def unwatch(self, name: str) -> Watched | None:
        """Take out the breakpoints of a module; return what was seen, None if it was not watched."""
        watched = self.modules.pop(name, None)
        if watched is not None:
            with self._machine.slot.stopped_vcpus():
                self._withdraw(name)
        self._connect()
        return watched

    def settle(self) -> int:
        """Take out the breakpoints of blocks that other processes have seen: for the template of forked machines.
        Returns how many. No vCPU may run.
        """
        seen = [watched.sites[n] for watched in self.modules.values() for n in watched.seen if n in watched.placed]
        return sum(self._retire(site.address) for site in seen if site is not None and site.address in self._patches)

    # Forced returns

    def fail(self, addresses: Iterable[int], value: int, times: int = 1, skip: int = 0) -> ForcedReturn:
        """Let the calls at these addresses return `value` without being made. Raises ConfigError."""
        self._check()
        forced = ForcedReturn(tuple(addresses), value % _ADDRESSES, times, skip)
        with self._machine.slot.stopped_vcpus():
            code = self._code()
            for address in forced.addresses:
                self._check_call(address, code)
            for address in forced.addresses:
                trap = self._trap(address)
                if trap.forced is not None:
                    raise ConfigError(f"the call at {address:#x} fails already: end that first")
                if not code.patch(address):
                    raise ConfigError(f"another breakpoint is in the way of the call at {address:#x}")
                trap.code, trap.forced = code.read(address, CALL), forced
        self.forced.append(forced)
        self._connect()
        return forced

    def _check_call(self, address: int, code: GuestCode) -> None:
        found = code.read(address, CALL)
        if len(found) < CALL:
            raise ConfigError(f"the call at {address:#x} is not mapped")
        if found[0] != CALL_OPCODE:
            raise ConfigError(f"no call at {address:#x}: found {found.hex(' ')}")

    def allow(self, forced: ForcedReturn) -> None:
        """End a forced return."""
        if forced in self.forced:
            self.forced.remove(forced)
            with self._machine.slot.stopped_vcpus():
                self._end_forced(forced)
        self._connect()

    def clear(self) -> None:
        """Take out everything."""
        self.dismiss()
        for name in list(self.modules):
            self.unwatch(name)
        for forced in list(self.forced):
            self.allow(forced)

    def forget(self) -> None:
        """Handle a machine reset: the memory was cleared."""
        self._patches.forget()
        self._traps.clear()
        self._held.clear()
        self.forced.clear()
        for watched in self.modules.values():
            watched.state = "gone"
        self._connect()

    # Placing

    def _check(self) -> None:
        machine = self._machine
        if machine.debugger is not None and machine.debugger.attached:
            raise ConfigError("a debugger is connected: detach it first")
        if machine.outcome is not None or machine.slot.hardware is None:
            raise ConfigError("the machine has ended")

    def _connect(self) -> None:
        """Ask for the exits of breakpoints as long as one can come."""
        machine = self._machine
        if machine.debugger is None or not machine.debugger.attached:
            machine.slot.on_debug = self._exit if self._traps else None

    def _trap(self, address: int) -> _Trap:
        return self._traps.setdefault(address, _Trap(address))

    def _code(self) -> GuestCode:
        machine = self._machine
        return GuestCode(machine.memory, self._patches, [thread.vcpu for thread in machine.slot.threads])

    def _compare(self, watched: Watched, code: GuestCode) -> None:
        """Raise ConfigError if the guest has another module than that of the file."""
        known = [site for site in watched.sites if site is not None and site.expected is not None]
        wrong = sum(code.read(site.address, len(OUT)) != site.expected for site in known)
        if wrong * WRONG_LIMIT > len(known) or (known and wrong == len(known)):
            raise ConfigError(
                f"the guest's {watched.name} is not the one of the file: {wrong} of {len(known)} places differ"
            )

    def _retire(self, address: int) -> bool:
        """Restore the code at `address`. The trap is still known, for vCPUs on their way out."""
        return self._patches.remove(address)

    def _withdraw(self, name: str) -> None:
        """Take out a module's breakpoints. No vCPU may run."""
        for trap in self._traps.values():
            trap.marks = [mark for mark in trap.marks if mark[0].name != name]
            if trap.unloads is not None and trap.unloads.name == name:
                trap.unloads = None
            if not trap.marks and trap.forced is None and trap.unloads is None and not trap.loads:
                self._retire(trap.address)

    def _end_forced(self, forced: ForcedReturn) -> None:
        for address in forced.addresses:
            trap = self._traps.get(address)
            if trap is not None and trap.forced is forced:
                trap.forced = None
                if all(watched.hits[number] for watched, number in trap.marks):
                    self._retire(address)

    # Kernels that come and go

    def _unload(self) -> None:
        if self._patches:
            with self._machine.slot.stopped_vcpus():
                self._patches.clear()
        for watched in self.modules.values():
            if watched.state == "on":
                watched.state = "suspended"

    def _contact(self) -> None:
        """Place again what is left, if this is the kernel that has left."""
        suspended = [watched for watched in self.modules.values() if watched.state == "suspended"]
        if not suspended and not self.forced:
            return
        self._suspensions += 1
        if self._suspensions > SUSPENSION_LIMIT:
            for watched in suspended:
                watched.state = "gone"
            return
        with self._machine.slot.stopped_vcpus():
            code = self._code()
            for watched in suspended:
                watched.state = "on" if self._same(watched, code) else "gone"
                if watched.state == "on":
                    for number in sorted(watched.placed - set(watched.seen)):
                        site = watched.sites[number]
                        if site is not None:
                            code.patch(site.address)
            forced = [address for forced in self.forced for address in forced.addresses]
            for address in (*forced, *self._calls):
                if address in self._traps and code.read(address, CALL) == self._traps[address].code:
                    code.patch(address)

    def _same(self, watched: Watched, code: GuestCode) -> bool:
        try:
            self._compare(watched, code)
        except ConfigError:
            return False
        return True

    # Hits, on vCPU threads

    def _exit(self, index: int, exit: Exit) -> bool:
        """Handle an exit that may be of a breakpoint; return whether it is."""
        if not isinstance(exit, IoOut):
            return False
        vcpu = self._machine.slot.threads[index].vcpu
        regs = vcpu.regs
        trap = self._traps.get(regs.rip - len(OUT))
        if trap is None:
            trap = self._traps.get(regs.rip)
            if trap is None:
                return False
            regs = complete(vcpu)
        for watched, number in trap.marks:
            watched.hits[number] = 1
        if trap.forced is not None:
            self._force(vcpu, regs, trap, trap.forced)
        elif trap.unloads is not None or trap.loads or not self._is_atomic(trap.address):
            self._held.append((index, trap.address))
            for thread in self._machine.slot.threads:
                thread.request(hold=True)
            self._settling.ask()
        else:
            self._retire(trap.address)
            regs.rip = trap.address
            vcpu.regs = regs
        return True

    def _is_atomic(self, address: int) -> bool:
        return (
            len(self._machine.slot.threads) == 1 or address not in self._patches or self._patches.is_atomic(address)
        )

    def _force(self, vcpu: Vcpu, regs: Regs, trap: _Trap, forced: ForcedReturn) -> None:
        """Skip the call, or make it in the guest's place: the patch stays until the loop takes it out."""
        if forced.spent or forced.passed < forced.skip:
            forced.passed += not forced.spent
            make_call(vcpu, self._machine.memory, trap.address, trap.code)
        else:
            forced.done += 1
            regs.rax, regs.rip = forced.value, trap.address + CALL
            vcpu.regs = regs
            if trace.forced_return.on:
                trace.forced_return(trap.address, forced.value)
        if forced.spent:
            self._settling.ask()

    def _settle(self) -> None:
        """Settle on the loop what vCPU threads must not do while others run."""
        if self._held:
            threads = self._machine.slot.threads
            for thread in threads:
                thread.wait_parked()
            while self._held:
                index, address = self._held.pop()
                trap = self._traps.get(address)
                if trap is not None and trap.loads:
                    with suppress(IndexError, HostError):
                        vcpu = threads[index].vcpu
                        self._arrive(vcpu.regs.rdi)
                        make_call(vcpu, self._machine.memory, trap.address, trap.code)
                    if self._loads >= LOAD_LIMIT:
                        self._retire(address)
                    continue
                if trap is not None and trap.unloads is not None:
                    trap.unloads.state = "unloaded"
                    self._withdraw(trap.unloads.name)
                self._retire(address)
                with suppress(IndexError, HostError):
                    regs = threads[index].vcpu.regs
                    regs.rip = address
                    threads[index].vcpu.regs = regs
            for thread in threads:
                thread.request(hold=False)
        spent = [forced for forced in self.forced if forced.spent]
        for forced in spent:
            self.allow(forced)


def traps_of(machine: Machine) -> Traps:
    """Return the machine's breakpoints of coverage and forced returns, made at the first call."""
    if machine.traps is None:
        machine.traps = Traps(machine)
    return machine.traps
