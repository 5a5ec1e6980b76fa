"""KVM's file descriptors (system, VM, vCPU): the only place that issues ioctls and explains their failures."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from types import TracebackType
from typing import Final, Self, TypeGuard

from pyvmm.errors import HostError
from pyvmm.kvm.abi import Op
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.structs import EnableCap
from pyvmm.tap import Item, Tap

_FCNTL_COPIES: Final = 1024  # fcntl.ioctl copies arguments up to this and gives up the GIL only then (3.11)
_C_INT_MAX: Final = 2**31 - 1

_libc_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_libc_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
_libc_ioctl.restype = ctypes.c_int

Argument = int | bytearray | ctypes.Structure | ctypes.Array[ctypes.c_char]

# What the usual failures mean. `None` stands for any request without an entry of its own.
_CAUSES: dict[tuple[Op | None, int], str] = {
    (Op.CREATE_VM, errno.EBUSY): "another hypervisor (VirtualBox, VMware) holds the CPU's virtualization",
    (Op.CREATE_VM, errno.EINVAL): "this KVM does not know that machine type",
    (Op.CREATE_VCPU, errno.EEXIST): "the VM has a vCPU with this id",
    (Op.CREATE_VCPU, errno.EINVAL): "more vCPUs than KVM_CAP_MAX_VCPUS, or an id beyond KVM_CAP_MAX_VCPU_ID",
    (Op.SET_USER_MEMORY_REGION, errno.EEXIST): "the range overlaps another memory slot",
    (Op.SET_USER_MEMORY_REGION, errno.EINVAL): (
        "address and size must be multiples of 4096, the slot below KVM_CAP_NR_MEMSLOTS, the memory mapped, "
        "and a slot in use cannot change its size: delete it first"
    ),
    (Op.SET_USER_MEMORY_REGION, errno.ENOENT): "deleting a slot that does not exist",
    (Op.GET_DIRTY_LOG, errno.ENOENT): "the slot does not exist or was made without log_dirty",
    (Op.CREATE_IRQCHIP, errno.EEXIST): "the VM has an irqchip",
    (Op.CREATE_IRQCHIP, errno.EINVAL): "it must be made before the first vCPU",
    (Op.CREATE_PIT2, errno.ENOENT): "the PIT needs the in-kernel irqchip: create_irqchip() first",
    (Op.CREATE_PIT2, errno.EEXIST): "the VM has a PIT",
    (Op.GET_PIT2, errno.ENXIO): "the VM has no in-kernel PIT",
    (Op.SET_PIT2, errno.ENXIO): "the VM has no in-kernel PIT",
    (Op.GET_IRQCHIP, errno.ENXIO): "the VM has no full in-kernel irqchip",
    (Op.SET_IRQCHIP, errno.ENXIO): "the VM has no full in-kernel irqchip",
    (Op.IRQ_LINE, errno.ENXIO): "the VM has no in-kernel irqchip",
    (Op.IRQ_LINE_STATUS, errno.ENXIO): "the VM has no in-kernel irqchip",
    (Op.SIGNAL_MSI, errno.EINVAL): "the VM has no in-kernel irqchip",
    (Op.SIGNAL_MSI, errno.ENXIO): "the VM has no in-kernel irqchip",
    (Op.SET_GSI_ROUTING, errno.EINVAL): (
        "no in-kernel irqchip, a line routed twice, or a pin, MSI address or route type this KVM does not take"
    ),
    (Op.IRQFD, errno.EBUSY): "this eventfd drives an interrupt line already",
    (Op.IRQFD, errno.EINVAL): "no in-kernel irqchip, a bad line number, or a file that is no eventfd",
    (Op.IRQFD, errno.ENOENT): "no such irqfd to remove",
    (Op.IOEVENTFD, errno.EEXIST): "an ioeventfd with this address, length and value exists",
    (Op.IOEVENTFD, errno.ENOENT): "no such ioeventfd to remove",
    (Op.IOEVENTFD, errno.ENOSPC): "KVM's bus is full (1000 ioeventfds and coalesced zones)",
    (Op.REGISTER_COALESCED_MMIO, errno.ENOSPC): "KVM's bus is full (1000 ioeventfds and coalesced zones)",
    (Op.ENABLE_CAP, errno.EINVAL): "this KVM lacks the capability, or an argument is wrong, or it comes too late",
    (Op.X86_SET_MSR_FILTER, errno.EINVAL): "a range is empty, too long, or covers x2APIC MSRs (0x800-0x8ff)",
    (Op.HYPERV_EVENTFD, errno.EEXIST): "the connection id has an eventfd",
    (Op.HYPERV_EVENTFD, errno.ENOENT): "the connection id has no eventfd",
    (Op.HYPERV_EVENTFD, errno.EINVAL): "the connection id has more than 24 bits, or this KVM has no Hyper-V",
    (Op.GET_SUPPORTED_HV_CPUID, errno.EINVAL): "this KVM was built without CONFIG_KVM_HYPERV",
    (Op.GET_SUPPORTED_HV_CPUID, errno.ENOTTY): "this KVM was built without CONFIG_KVM_HYPERV",
    (Op.SET_CPUID2, errno.EINVAL): "entries this CPU cannot have, or a change after the vCPU has run",
    (Op.SET_CPUID2, errno.E2BIG): "too many CPUID entries for this KVM",
    (Op.SET_SREGS, errno.EINVAL): "control registers, EFER and segments contradict each other",
    (Op.GET_LAPIC, errno.EINVAL): "the VM has no in-kernel local APIC: create_irqchip() before the vCPU",
    (Op.SET_LAPIC, errno.EINVAL): "the VM has no in-kernel local APIC, or the APIC id does not fit the vCPU",
    (Op.SET_MP_STATE, errno.EINVAL): "without an in-kernel local APIC only RUNNABLE exists",
    (Op.SET_TSC_KHZ, errno.EINVAL): "the CPU cannot scale its TSC to that frequency",
    (Op.RUN, errno.EFAULT): "guest memory with nothing behind it: the host mapping of a slot is gone",
    (Op.RUN, errno.EINVAL): "the vCPU's state is not one a CPU can be in",
    (Op.RUN, errno.EIO): "KVM stopped this VM after an error of its own (see dmesg)",
    (None, errno.EBADF): "the handle is closed",
    (None, errno.EFAULT): "a wrong address was handed to KVM",
    (None, errno.EIO): "the VM belongs to another process (this one was forked?), or KVM stopped it",
    (None, errno.ENOMEM): "the host is out of memory, or over a memory limit (ulimit -l, cgroup)",
    (None, errno.ENOTTY): "this KVM does not know the request: its kernel is too old or built without it",
    (None, errno.EINVAL): "KVM does not accept an argument, or not in this state",
    (None, errno.EMFILE): "too many open files (ulimit -n)",
    (None, errno.EPERM): "the process may not do this: a security policy or a missing privilege",
}


CHANGEABLE: Final = frozenset((Op.SIGNAL_MSI, Op.IRQ_LINE, Op.SET_CLOCK))
"""Ioctls whose argument holds no address, count or file descriptor of this process: a tap may change its bytes."""
REPEATABLE: Final = CHANGEABLE | {Op.SET_GSI_ROUTING, Op.NMI}
"""Ioctls that a tap may delay and repeat as well: they name nothing of this process, and have no result."""
DROPPABLE: Final = REPEATABLE | {Op.HYPERV_EVENTFD, Op.IRQFD, Op.IOEVENTFD}
"""Ioctls that a tap may drop: nothing of this process depends on them."""


class KvmError(HostError):
    """An ioctl that KVM refused. Callers that have a fallback look at `op` and `errno`."""

    def __init__(self, op: Op, where: str, about: str, number: int) -> None:
        self.op = op
        self.errno = number
        name = errno.errorcode.get(number, str(number))
        cause = _CAUSES.get((op, number)) or _CAUSES.get((None, number))
        call = f"KVM_{op.name}({about})" if about else f"KVM_{op.name}"
        text = f"{call} on {where} failed: {os.strerror(number)} ({name})"
        super().__init__(f"{text}; {cause}" if cause else text)


class Handle:
    """An open file descriptor of KVM. Closing twice is fine; using it closed raises HostError.

    `where` names it in errors: "/dev/kvm", "vm", "vcpu 0".
    """

    def __init__(self, fd: int, where: str) -> None:
        self._fd = fd
        self.where = where
        self.tap = Tap("ioctl")
        """What its ioctls cross, except KVM_RUN. Handles made by this one have the same."""

    @property
    def fd(self) -> int:
        """The file descriptor. Raises HostError once closed."""
        if self._fd < 0:
            raise HostError(f"{self.where} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the file descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ioctl(self, op: Op, argument: Argument = 0, about: str = "", *, tapped: bool = False) -> int:
        """Issue the ioctl and return its non-negative result; structures and bytearrays are changed in place.

        Releases the GIL while in the kernel, whatever the argument. Raises KvmError with `about` in its text.
        `tapped`: it has crossed the tap already.
        """
        if self.tap.on and not tapped:
            return self._cross_tap(op, argument, about)
        fd = self.fd
        try:
            if isinstance(argument, int):
                if not argument:  # left out: `ioctl` takes any int for two kinds of buffers first, which costs more
                    return fcntl.ioctl(fd, op)
                if argument <= _C_INT_MAX:
                    return fcntl.ioctl(fd, op, argument)
                return _big_ioctl(fd, op, argument)
            if memoryview(argument).nbytes <= _FCNTL_COPIES:
                result: int = fcntl.ioctl(fd, op, argument)
                return result
            if isinstance(argument, bytearray):
                argument = (ctypes.c_char * len(argument)).from_buffer(argument)
            return _big_ioctl(fd, op, ctypes.addressof(argument))
        except OSError as error:
            raise KvmError(op, self.where, about, error.errno or 0) from None

    def _cross_tap(self, op: Op, argument: Argument, about: str) -> int:
        """Issue an ioctl through the tap. Of those that return or hold something only the failure can be changed:
        they are issued exactly once, with their own argument.
        """
        data = bytes(argument) if op in REPEATABLE and not isinstance(argument, int) else b""
        done: list[int] = []  # results
        over = False

        def deliver(item: Item) -> int:
            if op not in REPEATABLE:
                if over:
                    raise HostError(f"KVM_{op.name} cannot be issued later")
                if done:
                    return done[0]
            given: Argument = argument
            if data:  # a copy: the caller's may change meanwhile
                changed = item.data if op in CHANGEABLE else data
                if len(changed) != len(data):
                    raise HostError(f"KVM_{op.name} takes {len(data)} bytes, not {len(changed)}")
                given = type(argument).from_buffer_copy(changed) if _is_struct(argument) else bytearray(changed)
            done.append(self.ioctl(op, given, about, tapped=True))
            return done[-1]

        fields = {"op": op.name, "handle": self.where}
        try:
            result = self.tap.cross("out", data, fields, deliver)
        except KvmError:
            raise
        except OSError as error:
            raise KvmError(op, self.where, about, error.errno or 0) from None
        if result is None and op not in DROPPABLE:
            result = deliver(Item("ioctl.out", data, fields))
        over = True
        return 0 if result is None else int(result)


def _is_struct(argument: Argument) -> TypeGuard[ctypes.Structure]:
    return isinstance(argument, ctypes.Structure)


def _big_ioctl(fd: int, op: Op, argument: int) -> int:
    """ioctl(2) through libc: for 64-bit arguments, and for structures during which fcntl.ioctl would keep the GIL."""
    result: int = _libc_ioctl(fd, op, argument)
    if result < 0:
        raise OSError(ctypes.get_errno(), "ioctl")
    return result


def enable_cap(handle: Handle, cap: Cap, args: tuple[int, ...]) -> None:
    """Enable a capability of a VM or vCPU, with up to four arguments (KVM_ENABLE_CAP)."""
    request = EnableCap(cap=int(cap))
    request.args[: len(args)] = args
    handle.ioctl(Op.ENABLE_CAP, request, " ".join([cap.name, *map(hex, args)]))
