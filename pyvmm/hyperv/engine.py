"""The base class of both engines: SynIC, hypercalls, event signals, crash registers, interface to the machine.

A machine reset creates a new KVM VM, so that no state of the old one can survive in the kernel; the engine goes back
to its power-on state and is set up for the new VM. Callers:

    machine (before the vCPUs exist)   setup_vm
    machine (each vCPU)                cpuid, setup_vcpu
    vCPU threads                       handle(vcpu, vp, exit) -> bool
    loop                               the Partition methods
    machine (no vCPU runs any more)    reset, or to go on in another VM: save, detach, setup_*, restore, attach
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from pyvmm.contain import contained
from pyvmm.errors import HostError
from pyvmm.hyperv import events as trace
from pyvmm.hyperv.cpuid import Offer
from pyvmm.hyperv.crash import CrashRegisters, CrashReport
from pyvmm.hyperv.enlightenments import DEFAULT
from pyvmm.hyperv.extended import Discard, ExtendedCalls
from pyvmm.hyperv.hypercall import Hypercalls, call_by_registers
from pyvmm.hyperv.partition import MessageListener
from pyvmm.hyperv.synic import Synic
from pyvmm.hyperv.tlfs import Privilege
from pyvmm.kvm import CpuidEntry, Exit, Vcpu, Vm
from pyvmm.kvm.abi import MsrExitReason
from pyvmm.loop import Loop, Pending
from pyvmm.memory import GuestMemory
from pyvmm.tap import Fields, Item, Taps

Notify = Callable[[], None]


class Engine(ABC):
    """Hyper-V as the guest sees it: handles exits of vCPUs, and implements `partition.Partition` for VMBus."""

    name: str

    def __init__(
        self,
        vp_count: int,
        memory: GuestMemory,
        loop: Loop,
        *,
        masks_known: bool,
        enlightenments: Iterable[str] = DEFAULT,
    ) -> None:
        self.vp_count = vp_count
        self.memory = memory
        self.loop = loop
        self.taps = Taps()
        self.synic = Synic(vp_count, memory, self.interrupt, masks_known=masks_known, tap=self.taps.interrupt)
        self.hypercalls = Hypercalls(memory, self._signalled, self.taps.hypercall)
        self.message_ports = self.hypercalls.message_ports
        self.event_ports = self.hypercalls.event_ports
        self.crash = CrashRegisters()
        self.offer = Offer.of(enlightenments)
        self.on_crash: Callable[[CrashReport], None] = lambda report: None
        self.msr_exits = MsrExitReason.FILTER
        """Which MSR accesses KVM leaves to user space. Set before `setup_vm`."""
        self.on_msr_refused: Callable[[str, int, int | None], None] = lambda kind, msr, value: None
        """Called with "msr read" or "msr write", the MSR and the value written for an access that raises #GP."""
        self.kick: Callable[[int], None] = lambda vp: None
        """Makes a vCPU leave the guest soon, and its thread call `interrupted`. From any thread."""
        self.on_reset: Notify = lambda: None
        """Called on the vCPU's thread that wrote the reset MSR."""
        self._signals: dict[int, Pending] = {}  # by connection; signals merge as those of eventfds do
        self._retries = [Pending(loop, self._retry, vp) for vp in range(vp_count)]
        self._eoms = [Pending(loop, self._eom_seen, vp) for vp in range(vp_count)]
        self._crash_report: CrashReport | None = None  # the newest one, until the loop has passed it on
        self._report_crash = Pending(loop, self._crashed)

    def _retry(self, vp: int) -> None:
        """Deliver what waits for a message slot. On the loop, after the guest wrote EOM or changed its SynIC."""
        self.synic.retry(vp)

    @contained("SynIC")
    def _eom_seen(self, vp: int) -> None:
        """Handle the guest's EOM on the loop."""
        if self.taps.eom.on:
            self.taps.eom.cross("in", b"", {"vp": vp}, self._tapped_eom)
        else:
            self._retry(vp)

    def _tapped_eom(self, item: Item) -> None:
        vp = int(item.fields["vp"])
        if not 0 <= vp < self.vp_count:
            raise HostError(f"no VP {vp}")
        self._retry(vp)

    def _tapped_time(self, what: str, ticks: int) -> int:
        """Return the reference time that `what` shows, through the tap `clock`."""
        if not self.taps.clock.on:
            return ticks
        fields: Fields = {"what": what, "time": ticks}
        seen = self.taps.clock.cross("out", b"", fields, lambda item: int(item.fields["time"]) & 0xFFFFFFFFFFFFFFFF)
        return ticks if seen is None else int(seen)

    def report_free_pages(self, discard: Discard) -> None:
        """Offer free page reporting; reported pages go to `discard`, on vCPU threads. Before `cpuid`."""
        self.offer.privileges |= Privilege.EXTENDED_HYPERCALLS
        self.hypercalls.extended = ExtendedCalls(self.memory, discard)

    @property
    def shares_slots(self) -> bool:
        """Whether KVM writes message slots as well, while a vCPU runs; `synic.exclusive` must stop the vCPUs then."""
        return False

    @abstractmethod
    def setup_vm(self, vm: Vm) -> None:
        """Set up the new VM, before anything else."""

    @abstractmethod
    def cpuid(self) -> list[CpuidEntry]:
        """The 0x4000xxxx leaves of every vCPU."""

    @abstractmethod
    def setup_vcpu(self, vcpu: Vcpu, vp: int) -> None:
        """Set up a vCPU. After its CPUID was set."""

    @abstractmethod
    def handle(self, vcpu: Vcpu, vp: int, exit: Exit) -> bool:
        """Handle a Hyper-V exit, on the vCPU's thread. False if it is not one."""

    def interrupted(self, vcpu: Vcpu, vp: int) -> None:  # noqa: B027 - few engines have anything to do here
        """Do what needs the vCPU's registers: called on its thread when KVM_RUN was interrupted."""

    @abstractmethod
    def open_sint(self, vp: int, sint: int) -> None:
        """Prepare a SINT for `interrupt` and messages. From any thread; raises HostError. VMBus's are open."""

    @abstractmethod
    def close_sint(self, vp: int, sint: int) -> None:
        """Undo `open_sint`; harmless if it is not open, or VMBus's. From any thread."""

    @abstractmethod
    def interrupt(self, vp: int, sint: int) -> None:
        """Raise the vector the guest put into `sint`, unless masked. From any thread."""

    @abstractmethod
    def reference_time(self) -> int:
        """The partition's reference counter, in 100 ns."""

    def reset(self) -> None:
        """Return to the power-on state and free the host's resources. The owner closes the VM after this.

        The listener and the callbacks stay; signal connections belong to the bus, which has ended them before.
        """
        self.synic.reset()
        self.crash = CrashRegisters()
        self._crash_report = None

    @abstractmethod
    def save(self, vcpu: Vcpu, vp: int) -> object:
        """Return the state that KVM holds for this engine in a vCPU, for `restore`. The vCPUs do not run."""

    @abstractmethod
    def restore(self, vcpu: Vcpu, vp: int, saved: object) -> None:
        """Restore the state that `save` returned, into a vCPU of a new VM. After the VM's clock was set."""

    @abstractmethod
    def detach(self) -> None:
        """Free what belongs to the VM and keep what the guest knows, so that it can go on in another VM.

        The owner closes the VM after this. Until `attach` no method but those of setting up may be called.
        """

    @abstractmethod
    def attach(self, passed: float) -> None:
        """Go on in a VM that was set up and restored, `passed` seconds after `detach`, which the guest shall not
        notice. On the loop's thread.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what outlives resets. After the last `reset`, on the loop's thread."""

    # Partition

    def post_message(self, vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        self.synic.post(vp, sint, type, payload, done)

    def drop_messages(self, sint: int) -> None:
        self.synic.drop(sint)

    def signal_event(self, vp: int, sint: int, flag: int) -> bool:
        return self.synic.signal(vp, sint, flag)

    def listen(self, listener: MessageListener) -> None:
        self.hypercalls.listen(listener)

    def connect_signal(self, connection_id: int, callback: Notify) -> None:
        self._signals[connection_id] = Pending(self.loop, callback)

    def disconnect_signal(self, connection_id: int) -> None:
        signal = self._signals.pop(connection_id, None)
        if signal is not None:
            signal.cancel()

    def _signalled(self, connection_id: int) -> bool:
        signal = self._signals.get(connection_id)
        if signal is None:
            return False
        signal.ask()
        return True

    def _call_by_port(self, vcpu: Vcpu, vp: int, width: int) -> None:
        """Handle a hypercall that exits by the hypercall page's OUT instruction of `width` bytes."""
        regs = vcpu.regs
        control, result = call_by_registers(self.hypercalls.call, regs, width)
        if trace.hypercall.on:
            trace.hypercall(vp, control & 0xFFFF, control, result)
        # RIP goes back as it came: KVM may still have to step over the OUT, and does so only if RIP is unchanged.
        vcpu.regs = regs

    def _write_crash(self, msr: int, value: int) -> None:
        with self.synic.lock:
            report = self.crash.write(msr, value, self.memory)
        if report is not None:
            self._crash_report = report
            self._report_crash.ask()

    def _crashed(self) -> None:
        """Pass on the newest crash report, on the loop."""
        report, self._crash_report = self._crash_report, None
        if report is not None:
            self.on_crash(report)
