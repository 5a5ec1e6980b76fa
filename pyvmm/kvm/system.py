"""/dev/kvm itself: KVM's capabilities, supported CPUID and MSRs, and the creation of VMs."""

from __future__ import annotations

import errno
import os
from functools import cached_property
from struct import Struct, pack_into, unpack_from
from typing import Final

from pyvmm.errors import HostError
from pyvmm.kvm.abi import API_VERSION, Op
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.cpuid import CpuidEntry, read_cpuid
from pyvmm.kvm.handle import Handle, KvmError
from pyvmm.kvm.vm import Vm

_MSR_LIST_HEAD: Final = Struct("<I")
_FIRST_GUESS: Final = 512  # MSR indices; kernels list 50 to 400

_OPEN_CAUSES: Final = {
    errno.ENOENT: "load kvm-intel or kvm-amd, turn on nested virtualization, or use --host emulated",
    errno.ENXIO: "load kvm-intel or kvm-amd, turn on nested virtualization, or use --host emulated",
    errno.ENODEV: "the CPU has no virtualization (or the firmware turned it off): use --host emulated",
    errno.EACCES: "add yourself to the group kvm (sudo usermod -aG kvm $USER, then log in again)",
    errno.EPERM: "the container or a security policy forbids it: pass the device in, or use --host emulated",
    errno.EBUSY: "another hypervisor (VirtualBox, VMware) holds the CPU's virtualization: stop it",
    errno.EMFILE: "too many open files (ulimit -n)",
}


class Kvm(Handle):
    """The KVM of this host, an open /dev/kvm. A context manager; VMs created by it stay open when it closes."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        """Open the device. Raises HostError with what would fix it."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            number = error.errno or 0
            cause = _OPEN_CAUSES.get(number)
            text = f"cannot open {path}: {os.strerror(number)}"
            raise HostError(f"{text}; {cause}" if cause else text) from None
        super().__init__(fd, path)
        try:
            version = self.api_version
        except KvmError as error:
            self.close()
            raise HostError(f"{path} is not KVM: {error}") from None
        if version != API_VERSION:
            self.close()
            raise HostError(f"{path} speaks KVM API {version}, this library {API_VERSION}")

    @property
    def api_version(self) -> int:
        """The version of KVM's API: 12 since Linux 2.6.22, and fixed."""
        return self.ioctl(Op.GET_API_VERSION)

    def check(self, cap: Cap) -> int:
        """The value of a capability (KVM_CHECK_EXTENSION); 0 if this KVM lacks it."""
        return self.ioctl(Op.CHECK_EXTENSION, int(cap), cap.name)

    @cached_property
    def vcpu_mmap_size(self) -> int:
        """Bytes of a vCPU's shared area: kvm_run, port I/O data, the coalesced ring."""
        return self.ioctl(Op.GET_VCPU_MMAP_SIZE)

    def create_vm(self, type: int = 0) -> Vm:
        """Create a VM without memory or vCPUs."""
        while True:
            try:
                vm = Vm(self.ioctl(Op.CREATE_VM, type), self.vcpu_mmap_size)
                vm.tap = self.tap
                return vm
            except KvmError as error:
                if error.errno != errno.EINTR:  # a signal while KVM allocates: try again, as QEMU does
                    raise

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The CPUID table that guests can have on this host, KVM's own leaves 0x40000000 and 0x40000001 included."""
        return read_cpuid(self, Op.GET_SUPPORTED_CPUID)

    def supported_hv_cpuid(self) -> list[CpuidEntry]:
        """The Hyper-V CPUID leaves that this KVM implements. Needs Cap.SYS_HYPERV_CPUID (else ask a vCPU)."""
        return read_cpuid(self, Op.GET_SUPPORTED_HV_CPUID)

    def msr_index_list(self) -> list[int]:
        """The MSRs that make up a vCPU's state, to be saved and restored."""
        return self._msr_list(Op.GET_MSR_INDEX_LIST)

    def msr_feature_index_list(self) -> list[int]:
        """The MSRs that report features of this host's CPU and KVM. Needs Cap.GET_MSR_FEATURES."""
        return self._msr_list(Op.GET_MSR_FEATURE_INDEX_LIST)

    def _msr_list(self, op: Op) -> list[int]:
        room = _FIRST_GUESS
        while True:
            table = bytearray(_MSR_LIST_HEAD.size + 4 * room)
            pack_into("<I", table, 0, room)
            try:
                self.ioctl(op, table, f"room for {room}")
            except KvmError as error:
                if error.errno != errno.E2BIG:
                    raise
                room *= 2
            else:
                (count,) = unpack_from("<I", table)
                return list(unpack_from(f"<{count}I", table, _MSR_LIST_HEAD.size))
