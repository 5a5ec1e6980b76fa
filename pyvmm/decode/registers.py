"""Registers and ports by number: names of MSRs, the bits of their values, what lies at an I/O port or an address."""

from __future__ import annotations

from pyvmm import address_map
from pyvmm.decode.fields import Decoded, Part, number_row
from pyvmm.hyperv import tlfs
from pyvmm.hyperv.tlfs import Msr

_KINDS: dict[int, type[int]] = {
    **dict.fromkeys(
        (Msr.HYPERCALL, Msr.REFERENCE_TSC, Msr.SIMP, Msr.SIEFP, Msr.VP_ASSIST_PAGE),
        tlfs.PageMsr,
    ),
    Msr.CRASH_CTL: tlfs.CrashControl,
}


def msr_name(index: int) -> str:
    """Return the name of a Hyper-V MSR, such as SINT2; empty for others."""
    found = Msr._value2member_map_.get(index)
    return str(found.name) if found is not None else ""


def msr(index: int, value: int) -> Decoded:
    """Decode the value of an MSR: its bits by name, where they have any."""
    kind = _KINDS.get(index)
    if Msr.SINT0 <= index <= Msr.SINT15:
        kind = tlfs.SintValue
    elif Msr.STIMER0_CONFIG <= index <= Msr.STIMER3_COUNT and index % 2 == 0:
        kind = tlfs.StimerConfig
    name = msr_name(index)
    raw = (value & (1 << 64) - 1).to_bytes(8, "little")
    row = number_row(name or hex(index), "u64", raw, 0, kind)
    title = f"MSR {index:#x}" + (f", HV_X64_MSR_{name}" if name else "")
    return Decoded(row.name, (Part(title, (row,), kind),))


def port_name(port: int) -> str:
    """Return what lies at an I/O port; empty if nothing does."""
    return _place("ports", port)


def address_name(gpa: int) -> str:
    """Return what lies at a guest physical address besides RAM."""
    return _place("memory", gpa)


def _place(space: str, number: int) -> str:
    """Return the smallest place of the address map that holds a number."""
    found = [each for each in address_map.MAP[space] if each.start <= number < each.end]
    return min(found, key=lambda each: each.size).what if found else ""
