"""Facts about the host for the report: processor, KVM, kernel. Nothing that names the machine or its user.

Every fact is optional: what a file or a KVM does not tell is left out.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyvmm import __version__
from pyvmm.errors import HostError
from pyvmm.kvm import Cap, Kvm

FLAGS = """
    vmx svm hypervisor ept ept_ad vpid npt nrip_save tsc_scale vmcb_clean flushbyasid decodeassists pausefilter avic
    x2avic vgif v_spec_ctrl vnmi tpr_shadow flexpriority constant_tsc nonstop_tsc tsc_known_freq tsc_reliable arat
    rdtscp tsc_deadline_timer tsc_adjust x2apic pcid invpcid pdpe1gb la57 smep smap umip pku fsrm erms cx16 rdrand
    xsave xsaveopt xsavec xgetbv1 xsaves avx avx2 avx512f amx_tile apx user_shstk ibt split_lock_detect
    bus_lock_detect
"""
"""CPU flags on which KVM's or pyvmm's behaviour depends."""

_MODULES = ("kvm", "kvm_intel", "kvm_amd")


def facts() -> dict[str, Any]:
    """Return the facts, ready for JSON."""
    release = platform.release()
    found: dict[str, Any] = {
        "pyvmm": __version__,
        "python": platform.python_version(),
        "kernel": release,
        "system": _system(),
        "cpu": _cpu(),
        "memory-mib": _memory(),
        "huge-pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "nested-under": _read("/sys/class/dmi/id/sys_vendor") if "hypervisor" in _words() else None,
        "kvm": _kvm(),
    }
    return {name: value for name, value in found.items() if value not in (None, "", {})}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()[:200]
    except OSError:
        return None


def _chosen(path: str) -> str | None:
    """Return the word in brackets: `always [madvise] never`."""
    text = _read(path) or ""
    return text.partition("[")[2].partition("]")[0] or None


def _system() -> str | None:
    lines = (_read("/etc/os-release") or "").splitlines()
    names = [line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return names[0] if names else None


def _memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("MemTotal:")), None)


def _processor() -> Iterator[tuple[str, str]]:
    """Yield the fields of the first processor in /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _words() -> set[str]:
    return set(dict(_processor()).get("flags", "").split())


def _cpu() -> dict[str, Any]:
    fields = dict(_processor())
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode")
    cpu: dict[str, Any] = {name: fields[name] for name in wanted if name in fields}
    cpu["processors"] = os.cpu_count()
    cpu["flags"] = " ".join(sorted(_words().intersection(FLAGS.split())))
    if "vmx flags" in fields:
        cpu["vmx flags"] = fields["vmx flags"]
    return cpu


def _kvm() -> dict[str, Any]:
    """Return the parameters of KVM's modules, and its capabilities, if /dev/kvm can be opened."""
    about: dict[str, Any] = {}
    for module in _MODULES:
        folder = Path("/sys/module", module, "parameters")
        try:
            names = sorted(path.name for path in folder.iterdir())
        except OSError:
            continue
        about[module] = {name: value for name in names if (value := _read(f"{folder}/{name}")) is not None}
    try:
        with Kvm() as kvm:
            about["capabilities"] = {cap.name: number for cap in Cap if (number := kvm.check(cap))}
            features = {entry.function: entry for entry in kvm.supported_cpuid() if not entry.index}
            if 0x80000008 in features:
                about["physical-bits"] = features[0x80000008].eax & 0xFF
            if kvm.check(Cap.SYS_HYPERV_CPUID):
                about["hyperv-cpuid"] = {
                    f"{entry.function:#x}": f"{entry.eax:08x} {entry.ebx:08x} {entry.ecx:08x} {entry.edx:08x}"
                    for entry in kvm.supported_hv_cpuid()
                }
    except HostError as error:
        about["error"] = str(error)
    return about
