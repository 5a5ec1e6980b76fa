"""The machine as a debugger sees it: implements `pyvmm.gdb.target.Target` over the vCPUs' threads and guest memory.

    held --resume--> some vCPUs run or step --a breakpoint, a step's end, `interrupt`--> held

The vCPU that hits a breakpoint holds all others itself and posts the rest to the loop, which waits until each is out
of the guest. While vCPUs only step, guest time stands still and the machine's state stays `debug`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pyvmm.errors import ConfigError, HostError
from pyvmm.gdb import registers
from pyvmm.gdb.breakpoints import INT3, OUT, DebugRegisters
from pyvmm.gdb.connection import Connection
from pyvmm.gdb.page_tables import Paging
from pyvmm.gdb.target import Action, Kind, RefusedError, Signal, Step, Stop
from pyvmm.kvm import Cap, Debug, Exit, IoOut, MmioRead, MmioWrite, MpState, Vcpu
from pyvmm.kvm.abi import GuestDebugFlag
from pyvmm.loop import Pending
from pyvmm.machine.debug_hold import DebugHold
from pyvmm.machine.debug_memory import DebugMemory
from pyvmm.machine.debug_probe import find_means
from pyvmm.machine.runner import VcpuThread

if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine

_DB, _BP = 1, 3  # exception vectors
_DR6_STEP: Final = 1 << 14
_STATES: Final = {MpState.RUNNABLE: "running", MpState.HALTED: "halted"}
_CPL: Final = 3
_NOTHING: tuple[int, ...] = (0,) * 8  # in the debug registers
_WATCHES: Final = ("watch", "rwatch", "awatch")


class Debugger:
    """The debugger's side of one machine; serves one debugger at a time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._monitor: Callable[[str], str] = lambda line: ""
        self._connection: Connection | None = None
        self._hold_state = DebugHold(machine)
        self._crash_reported = False
        self._memory = DebugMemory(machine.memory, self._paging)
        self._attached = False
        self._running = False  # from the debugger's point of view
        self._steps: dict[int, Step] = {}  # read on vCPU threads; changed while they are held
        self._found: list[Stop] = []  # appended on vCPU threads
        self._settling = Pending(machine.loop, self._settle)
        self._applied: dict[int, tuple[int, tuple[int, ...]]] = {}  # each vCPU's last KVM_SET_GUEST_DEBUG

    # Called by the machine and its monitor

    def serve(self, connection: socket.socket, monitor: Callable[[str], str]) -> None:
        """Serve the debugger at `connection`; `monitor` runs a line of the human monitor for it.

        Raises ConfigError if there is one, or the machine has ended; the connection is the caller's then.
        """
        self.check()
        self._monitor = monitor
        self._connection = Connection(self._machine.loop, connection, self, self._disconnected)
        self._connection.start()

    def check(self) -> None:
        """Raise ConfigError if no debugger can be served now."""
        if self._connection is not None:
            raise ConfigError("a debugger is connected already: detach it first")
        if self._machine.outcome is not None:
            raise ConfigError("the machine has ended")
        traps = self._machine.traps
        if traps is not None and traps.active:
            raise ConfigError(f"{traps.active} is on: end that first (`pyvmm cover off`)")

    def close(self) -> None:
        """Disconnect the debugger; the machine is about to be closed."""
        self.ended(0)
        if self._connection is not None:
            self._connection.close("the machine has ended")

    def _disconnected(self) -> None:
        self._connection = None

    @property
    def attached(self) -> bool:
        """Whether a debugger is connected."""
        return self._attached

    def restarted(self) -> None:
        """Hold the machine at the first instruction after a reset. Its vCPUs do not run yet."""
        self._memory.forget()
        self._applied.clear()
        self._steps.clear()
        self._found.clear()
        self._hold()
        self._connect()
        self._hold_state.begin()
        if self._running:
            self._running = False
            self._stopped(Stop(0))

    def crashed(self, then: Callable[[], None]) -> bool:
        """Stop because the guest has reported a panic, and call `then` once it goes on.

        Returns False if no debugger waits for a stop, or this was the call by `then`.
        """
        if not self._running or self._crash_reported:
            self._crash_reported = False
            return False
        self._crash_reported = True
        self._hold_state.postpone(then)
        self._halt(Stop(0, Signal.ABRT))
        return True

    def ended(self, status: int) -> None:
        """Report the machine's end."""
        if self._attached:
            self._attached = self._running = False
            self._ended(status)

    # Target

    @property
    def vcpus(self) -> int:
        return len(self._threads)

    @property
    def _threads(self) -> list[VcpuThread]:
        return list(self._machine.slot.threads)

    def attach(self, stopped: Callable[[Stop], None], ended: Callable[[int], None]) -> None:
        assert not self._attached, "one debugger at a time"
        self._attached, self._stopped, self._ended = True, stopped, ended
        self._connect()
        self._hold()
        self._wait()
        self._hold_state.begin()
        means = find_means(self._machine.kvm)
        self._memory.patches.code = INT3 if means.int3 else OUT
        self._memory.registers = DebugRegisters(means.breakpoints, means.watchpoints)

    def detach(self) -> None:
        if not self._attached:
            return
        self._attached = self._running = False
        self._hold()
        self._wait()
        self._rewind()
        self._memory.clear()
        self._steps.clear()
        self._found.clear()
        for vcpu in range(self.vcpus):
            with suppress(HostError):
                self._apply(vcpu)
        with suppress(HostError):
            self._memory.pages.apply(self._machine.slot.hardware)
        self._machine.slot.on_debug = None
        self._release(range(self.vcpus))

    def interrupt(self) -> None:
        if self._running:
            self._hold()
            self._wait()
            self._halt(Stop(self._shown(), Signal.INT))

    def resume(self, actions: Mapping[int, Action]) -> None:
        self._running = True
        self._memory.changed()
        if self._found:  # another vCPU's watchpoint, found together with the last stop
            self._running = False
            self._stopped(self._found.pop(0))
            return
        self._steps = {vcpu: action for vcpu, action in actions.items() if isinstance(action, Step)}
        for vcpu in actions:
            self._apply(vcpu)
        self._memory.pages.apply(self._machine.slot.hardware)
        self._release(actions)

    def registers(self, vcpu: int) -> Mapping[str, int]:
        return registers.read(self._vcpu(vcpu))

    def set_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        self._memory.changed()
        registers.write(self._vcpu(vcpu), values)

    def read_memory(self, vcpu: int, address: int, length: int) -> bytes:
        return self._memory.read(vcpu, address, length)

    def write_memory(self, vcpu: int, address: int, data: bytes) -> None:
        self._memory.write(vcpu, address, data)

    def insert(self, vcpu: int, kind: Kind, address: int, length: int) -> None:
        self._memory.insert(vcpu, kind, address, length)

    def remove(self, kind: Kind, address: int, length: int) -> None:
        self._memory.remove(kind, address, length)

    def describe(self, vcpu: int) -> str:
        state = self._vcpu(vcpu).mp_state
        return f"vCPU {vcpu} [{_STATES.get(state, 'not started')}]"

    def monitor(self, line: str) -> str:
        return self._monitor(line)

    def kill(self) -> None:
        self._machine.quit()

    # On the loop

    def _vcpu(self, index: int) -> Vcpu:
        threads = self._threads
        if index >= len(threads):
            raise RefusedError("the machine has ended")
        return threads[index].vcpu

    def _shown(self) -> int:
        """Return the vCPU that Ctrl-C is shown at: the first that is not halted, else the first."""
        states = ((n, self._vcpu(n).mp_state) for n in range(self.vcpus))
        return next((n for n, state in states if state is MpState.RUNNABLE), 0)

    def _connect(self) -> None:
        self._machine.slot.on_debug = self._exit

    def _hold(self) -> None:
        for thread in self._threads:
            thread.request(hold=True)

    def _wait(self) -> None:
        for thread in self._threads:
            thread.wait_parked()

    def _release(self, vcpus: Mapping[int, Action] | range) -> None:
        """Let vCPUs run; if one of them does more than step, the machine runs again."""
        if isinstance(vcpus, range) or any(not isinstance(each, Step) for each in vcpus.values()):
            self._hold_state.end()
        for vcpu in vcpus:
            self._threads[vcpu].request(hold=False)

    def _apply(self, vcpu: int) -> None:
        """Tell KVM what this vCPU shall stop at."""
        flags, values = GuestDebugFlag(0), _NOTHING
        if self._attached and self._memory.patches and self._memory.patches.code != OUT:
            flags |= GuestDebugFlag.USE_SW_BP
        if any(self._memory.registers.slots):
            flags |= GuestDebugFlag.USE_HW_BP
            values = self._memory.registers.values()
        if vcpu in self._steps:
            flags |= GuestDebugFlag.SINGLESTEP | self._quiet_steps
        if flags:
            flags |= GuestDebugFlag.ENABLE
        wanted = (int(flags), values)
        if self._applied.get(vcpu, (0, _NOTHING)) != wanted or vcpu in self._steps:
            self._vcpu(vcpu).set_guest_debug(flags, values)
            self._applied[vcpu] = wanted

    @property
    def _quiet_steps(self) -> GuestDebugFlag:
        """Return the flag that keeps interrupts out of steps, where this KVM has it (Linux 5.16): else a step that
        finds an interrupt pending ends in its handler.
        """
        found = self._machine.kvm.check(Cap.SET_GUEST_DEBUG2) & GuestDebugFlag.BLOCKIRQ
        return GuestDebugFlag(found)

    def _halt(self, stop: Stop) -> None:
        """Stop all vCPUs and report `stop`."""
        self._hold()
        self._wait()
        self._rewind()
        self._hold_state.begin()
        self._found = [each for each in self._found if each.reason in _WATCHES]
        self._running = False
        self._steps.clear()
        self._stopped(stop)

    def _settle(self) -> None:
        """Report what a vCPU's thread has found."""
        if self._running and self._found:
            self._wait()
            first = self._found.pop(0)
            if first.reason == "swbreak":
                self._rewind_one(first)
            self._halt(first)

    def _rewind(self) -> None:
        for each in self._found:
            if each.reason == "swbreak":
                self._rewind_one(each)

    def _rewind_one(self, stop: Stop) -> None:
        """Set RIP back to a breakpoint. A vCPU whose hit is not reported finds the breakpoint, or the instruction,
        again.
        """
        vcpu = self._vcpu(stop.vcpu)
        regs = vcpu.regs
        if regs.rip != stop.address:
            regs.rip = stop.address
            vcpu.regs = regs

    def _paging(self, vcpu: int) -> Paging:
        sregs = self._vcpu(vcpu).sregs
        return Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, user=sregs.cs.selector & _CPL == _CPL)

    # On vCPU threads

    def _exit(self, index: int, exit: Exit) -> bool:
        """Handle an exit that may be the debugger's; return whether it is."""
        match exit:
            case IoOut():
                rip = self._vcpu(index).regs.rip
                address = next((at for at in (rip - len(OUT), rip) if at in self._memory.patches), None)
                if address is None:
                    return False
                self._find(Stop(index, reason="swbreak", address=address))
            case MmioWrite(gpa=gpa, data=data):
                ours, hit = self._memory.pages.written(gpa, data)
                if hit is not None:
                    self._find(Stop(index, reason=hit.reason, address=hit.address))
                return ours
            case MmioRead(gpa=gpa, size=size):
                found, hit = self._memory.pages.read(gpa, size)
                if found is None:
                    return False
                exit.reply(found)
                if hit is not None:
                    self._find(Stop(index, reason=hit.reason, address=hit.address))
            case Debug(exception=exception, pc=pc) if exception == _BP:
                if pc in self._memory.patches:
                    self._find(Stop(index, reason="swbreak", address=pc))
                else:
                    self._pass_on(index, GuestDebugFlag.INJECT_BP)
            case Debug(pc=pc, dr6=dr6):
                watched = self._memory.registers.hit(dr6)
                step = self._steps.get(index)
                if watched is not None:
                    self._find(Stop(index, reason=watched.reason, address=watched.address))
                elif step is not None:
                    if not step.start <= pc < step.end:
                        self._find(Stop(index))
                elif not dr6 & _DR6_STEP:
                    self._pass_on(index, GuestDebugFlag.INJECT_DB)
            case _:
                return False
        return True

    def _pass_on(self, index: int, flag: GuestDebugFlag) -> None:
        """Give the guest an exception of its own: its INT3 or its debug registers'."""
        flags, values = self._applied.get(index, (0, _NOTHING))
        self._vcpu(index).set_guest_debug(GuestDebugFlag(flags) | GuestDebugFlag.ENABLE | flag, values)

    def _find(self, stop: Stop) -> None:
        if stop not in self._found:  # an instruction may access a watched page several times
            self._found.append(stop)
        self._hold()
        self._settling.ask()
