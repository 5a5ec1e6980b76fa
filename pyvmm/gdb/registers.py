"""The registers that a debugger sees: names, order and sizes, and their places in KVM's structures.

Source: gdb/features/i386/64bit-{core,sse,segments}.xml for the features that GDB knows; QEMU gdb-xml/i386-64bit.xml
for names and flags of the control registers.

The description is sent as target.xml. Its order is that of the `g` packet and of the numbers in `p` and `P`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyvmm.errors import HostError
from pyvmm.gdb.target import RefusedError
from pyvmm.kvm.state import VcpuState

KERNEL_GS_BASE: Final = 0xC0000102  # MSR


@dataclass(frozen=True, slots=True)
class Register:
    """One register: its name, size in bits, GDB's type, and the feature that it belongs to."""

    name: str
    bits: int
    type: str
    feature: str

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.bits // 8


_CORE, _SSE, _SEGMENTS = (f"org.gnu.gdb.i386.{each}" for each in ("core", "sse", "segments"))
_SYSTEM = "org.pyvmm.system"
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
_POINTERS = {"rbp": "data_ptr", "rsp": "data_ptr"}
_FLOATING = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_FLAGS = {"cr0": "cr0_flags", "cr4": "cr4_flags", "efer": "efer_flags"}

TABLE: Final = (
    *(Register(name, 64, _POINTERS.get(name, "int64"), _CORE) for name in _GENERAL),
    Register("rip", 64, "code_ptr", _CORE),
    Register("eflags", 32, "eflags", _CORE),
    *(Register(name, 32, "int32", _CORE) for name in _SELECTORS),
    *(Register(f"st{n}", 80, "i387_ext", _CORE) for n in range(8)),
    *(Register(name, 32, "int", _CORE) for name in _FLOATING),
    *(Register(f"xmm{n}", 128, "vec128", _SSE) for n in range(16)),
    Register("mxcsr", 32, "i386_mxcsr", _SSE),
    *(Register(name, 64, "int", _SEGMENTS) for name in ("fs_base", "gs_base")),
    Register("k_gs_base", 64, "int", _SYSTEM),
    *(Register(name, 64, _FLAGS.get(name, "int"), _SYSTEM) for name in _CONTROL),
)
NUMBER: Final = {each.name: number for number, each in enumerate(TABLE)}

_BITS: Final = {
    "eflags": "CF:0 PF:2 AF:4 ZF:6 SF:7 TF:8 IF:9 DF:10 OF:11 IOPL:12-13 NT:14 RF:16 VM:17 AC:18 VIF:19 VIP:20 ID:21",
    "i386_mxcsr": "IE:0 DE:1 ZE:2 OE:3 UE:4 PE:5 DAZ:6 IM:7 DM:8 ZM:9 OM:10 UM:11 PM:12 FZ:15",
    "cr0_flags": "PE:0 MP:1 EM:2 TS:3 ET:4 NE:5 WP:16 AM:18 NW:29 CD:30 PG:31",
    "cr4_flags": "VME:0 PVI:1 TSD:2 DE:3 PSE:4 PAE:5 MCE:6 PGE:7 PCE:8 OSFXSR:9 OSXMMEXCPT:10 UMIP:11 LA57:12 "
    "FSGSBASE:16 PCIDE:17 OSXSAVE:18 SMEP:20 SMAP:21 PKE:22 CET:23",
    "efer_flags": "SCE:0 LME:8 LMA:10 NXE:11 SVME:12 FFXSR:14 TCE:15",
}
_VECTORS: Final = (
    ("v4f", "ieee_single", 4),
    ("v2d", "ieee_double", 2),
    ("v16i8", "int8", 16),
    ("v8i16", "int16", 8),
    ("v4i32", "int32", 4),
    ("v2i64", "int64", 2),
)
_UNION: Final = (
    ("v4_float", "v4f"),
    ("v2_double", "v2d"),
    ("v16_int8", "v16i8"),
    ("v8_int16", "v8i16"),
    ("v4_int32", "v4i32"),
    ("v2_int64", "v2i64"),
    ("uint128", "uint128"),
)


def target_xml() -> bytes:
    """Return the description of TABLE for GDB."""
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    lines.append("<architecture>i386:x86-64</architecture>")
    for feature in dict.fromkeys(each.feature for each in TABLE):
        of_it = [each for each in TABLE if each.feature == feature]
        lines.append(f'<feature name="{feature}">')
        if feature == _SSE:
            lines += [f'<vector id="{name}" type="{item}" count="{count}"/>' for name, item, count in _VECTORS]
            lines.append('<union id="vec128">')
            lines += [f'<field name="{name}" type="{type}"/>' for name, type in _UNION]
            lines.append("</union>")
        lines += [_flags(name) for name in dict.fromkeys(each.type for each in of_it) if name in _BITS]
        lines += [
            f'<reg name="{each.name}" bitsize="{each.bits}" type="{each.type}" regnum="{NUMBER[each.name]}"/>'
            for each in of_it
        ]
        lines.append("</feature>")
    return "\n".join([*lines, "</target>", ""]).encode()


def _flags(name: str) -> str:
    """Return the XML type of a register of single bits."""
    size = 8 if name in _FLAGS.values() else 4
    fields = []
    for each in _BITS[name].split():
        bit, _, place = each.partition(":")
        first, _, last = place.partition("-")
        fields.append(f'<field name="{bit}" start="{first}" end="{last or first}"/>')
    return f'<flags id="{name}" size="{size}">{"".join(fields)}</flags>'


def pack(values: Mapping[str, int]) -> bytes:
    """Return the registers as in a `g` packet."""
    return b"".join(values[each.name].to_bytes(each.size, "little") for each in TABLE)


def unpack(data: bytes) -> dict[str, int]:
    """Return the registers of a `G` packet. Raises RefusedError if it has not all."""
    if len(data) != sum(each.size for each in TABLE):
        raise RefusedError(f"{len(data)} bytes of registers")
    values, at = {}, 0
    for each in TABLE:
        values[each.name] = int.from_bytes(data[at : at + each.size], "little")
        at += each.size
    return values


def read(vcpu: VcpuState) -> dict[str, int]:
    """Return the registers of a stopped vCPU. Raises HostError."""
    regs, sregs, fpu = vcpu.regs, vcpu.sregs, vcpu.fpu
    values: dict[str, int] = {name: getattr(regs, name) for name in (*_GENERAL, "rip")}
    values["eflags"] = regs.rflags & 0xFFFFFFFF
    values |= {name: getattr(sregs, name).selector for name in _SELECTORS}
    values |= {f"st{n}": int.from_bytes(bytes(fpu.fpr[n])[:10], "little") for n in range(8)}
    values |= {
        "fctrl": fpu.fcw,
        "fstat": fpu.fsw,
        "ftag": _full_tags(fpu.ftwx),
        "fiseg": fpu.last_ip >> 32 & 0xFFFF,
        "fioff": fpu.last_ip & 0xFFFFFFFF,
        "foseg": fpu.last_dp >> 32 & 0xFFFF,
        "fooff": fpu.last_dp & 0xFFFFFFFF,
        "fop": fpu.last_opcode,
    }
    values |= {f"xmm{n}": int.from_bytes(bytes(fpu.xmm[n]), "little") for n in range(16)}
    values["mxcsr"] = fpu.mxcsr
    values |= {"fs_base": sregs.fs.base, "gs_base": sregs.gs.base}
    values["k_gs_base"] = vcpu.get_msrs([KERNEL_GS_BASE], skip_unreadable=True).get(KERNEL_GS_BASE, 0)
    return values | {name: getattr(sregs, name) for name in _CONTROL}


def write(vcpu: VcpuState, values: Mapping[str, int]) -> None:
    """Set registers of a stopped vCPU. Raises RefusedError for those that cannot be set, and what KVM refuses."""
    before = read(vcpu)
    changed = {name: value for name, value in values.items() if value != before[name]}
    for name in changed:
        if name in _SELECTORS or name in _FLOATING:
            raise RefusedError(f"{name} cannot be set")
    try:
        _write(vcpu, changed)
    except HostError as error:
        raise RefusedError(str(error)) from error


def _write(vcpu: VcpuState, changed: Mapping[str, int]) -> None:
    regs, sregs, fpu = vcpu.regs, vcpu.sregs, vcpu.fpu
    touched = set()
    for name, value in changed.items():
        if name in _GENERAL or name == "rip":
            setattr(regs, name, value)
            touched.add("regs")
        elif name == "eflags":
            regs.rflags = value
            touched.add("regs")
        elif name in _CONTROL:
            setattr(sregs, name, value)
            touched.add("sregs")
        elif name in ("fs_base", "gs_base"):
            getattr(sregs, name[:2]).base = value
            touched.add("sregs")
        elif name == "k_gs_base":
            vcpu.set_msrs({KERNEL_GS_BASE: value})
        else:
            _write_fpu(fpu, name, value)
            touched.add("fpu")
    if "sregs" in touched:
        vcpu.sregs = sregs
    if "regs" in touched:
        vcpu.regs = regs
    if "fpu" in touched:
        vcpu.fpu = fpu


def _write_fpu(fpu: object, name: str, value: int) -> None:
    if name == "mxcsr":
        fpu.mxcsr = value  # type: ignore[attr-defined]
    elif name.startswith("xmm"):
        fpu.xmm[int(name[3:])][:] = value.to_bytes(16, "little")  # type: ignore[attr-defined]
    else:
        fpu.fpr[int(name[2:])][:10] = value.to_bytes(10, "little")  # type: ignore[attr-defined]


def _full_tags(short: int) -> int:
    """Return the x87 tag word for FXSAVE's short one: a set bit there is a register in use (0), else empty (3)."""
    return sum((0 if short >> n & 1 else 3) << 2 * n for n in range(8))
