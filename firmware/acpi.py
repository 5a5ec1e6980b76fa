"""ACPI tables: describe processors, interrupt controllers, power-off, reset and the VMBus to the guest.

Source: ACPI 6.5, chapter 5.2 (tables); Linux drivers/hv/vmbus_drv.c for what the VMBUS device must have.

    RSDP -> XSDT -> FADT -> DSDT (devices, in AML)
                 |       -> FACS
                 -> MADT (processors, IOAPIC)

The VMBUS device sits below a module device that has a window of memory: hv_vmbus walks up its parents looking for
one, and Linux 5.10 crashes without one. There is no `_S4_`: with it hv_balloon assumes that the guest may
hibernate, and ignores the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import pack, pack_into

from pyvmm import address_map
from pyvmm.errors import ConfigError
from pyvmm.firmware import aml
from pyvmm.wire import Buffer

OEM_ID = b"PYVMM "
OEM_TABLE_ID = b"PYVMM   "
CREATOR_ID = b"PYVM"

# Offsets from `AcpiConfig.pm_base`.
PM1_EVENT = 0  # status u16, enable u16
PM1_CONTROL = 4  # u16
PM_TIMER = 8  # u32, if there is one
S5_SLEEP_TYPE = 5  # value of PM1_CONTROL's SLP_TYP that powers off

FIRST_X2APIC_ID = 255  # the first that MADT's old entries cannot hold
MAX_XAPIC_PROCESSOR = 255  # nor processor UIDs from here on; 255 means "all"

_COM = {1: (address_map.COM1, address_map.COM1_LINE), 2: (address_map.COM2, address_map.COM2_LINE)}


@dataclass(frozen=True, slots=True)
class AcpiConfig:
    """The hardware that the tables describe. The defaults are the machine that pyvmm builds.

    `i8042` announces a complete keyboard controller: leave it False for one that only resets, and Linux does not
    search for a keyboard. `com_ports` lists serial ports, 1 and 2; without them Linux probes for COM1-4.
    `com_windows`: MMIO addresses of COM1, COM2, ...; their I/O ports are not listed then.
    `timer_override` says that the PIT's interrupt arrives at IOAPIC pin 2, as on a PC; KVM's default routing has
    it at pin 0, so the machine has to set a route.
    """

    apic_ids: tuple[int, ...] = (0,)
    vmbus: bool = True
    vmbus_window: tuple[int, int] = (address_map.VMBUS_WINDOW.start, address_map.VMBUS_WINDOW.size)
    pm_base: int = address_map.ACPI_PM.start
    sci: int = address_map.SCI_LINE
    pm_timer: bool = False
    power_button: bool = True
    reset_port: int = address_map.RESET.start
    reset_value: int = 0x06
    i8042: bool = False
    rtc: bool = True
    rtc_century: int = 0x32  # CMOS register that holds it, 0 for none
    com_ports: tuple[int, ...] = ()
    com_windows: tuple[int, ...] = ()
    timer_override: bool = True

    @classmethod
    def for_cpus(cls, count: int, *, com_windows: tuple[int, ...] = ()) -> AcpiConfig:
        """Describe the default machine with `count` processors, APIC ids from 0."""
        return cls(apic_ids=tuple(range(count)), com_windows=com_windows)


@dataclass(frozen=True, slots=True)
class AcpiTables:
    """The tables' bytes, to be written to guest memory at the address for which they were built."""

    rsdp_gpa: int
    data: bytes
    tables: dict[str, bytes]  # by signature, to inspect a single table


def build_acpi(config: AcpiConfig, gpa: int, limit: int) -> AcpiTables:
    """Build all tables for `gpa`, at most `limit` bytes. Raises ConfigError if the processors do not fit."""
    tables: dict[str, bytes] = {}
    out = bytearray(64)  # the RSDP's place: it comes first and is written last

    def put(signature: str, table: bytes) -> int:
        tables[signature] = table
        at = len(out)
        out.extend(table.ljust(-(-len(table) // 64) * 64, b"\0"))  # the FACS needs 64; harmless for the others
        return gpa + at

    facs = put("FACS", _facs())
    dsdt = put("DSDT", _dsdt(config))
    fadt = put("FACP", _fadt(config, facs, dsdt))
    madt = put("APIC", _madt(config))
    xsdt = put("XSDT", _table(b"XSDT", 1, pack("<2Q", fadt, madt)))
    tables["RSDP"] = _rsdp(xsdt)
    out[: len(tables["RSDP"])] = tables["RSDP"]
    if len(out) > limit:
        raise ConfigError(f"{len(config.apic_ids)} processors are more than the ACPI tables have room for")
    return AcpiTables(gpa, bytes(out), tables)


def checksum(data: Buffer) -> int:
    """Return the byte that makes the sum of all bytes zero."""
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Build a table with the header that all but RSDP and FACS share."""
    header = pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1)
    table = bytearray(header + body)
    table[9] = checksum(table)
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    """Build the Root System Description Pointer: two checksums, one for the part that ACPI 1.0 had."""
    rsdp = bytearray(pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, 36, xsdt, 0))
    rsdp[8] = checksum(rsdp[:20])
    rsdp[32] = checksum(rsdp)
    return bytes(rsdp)


def _facs() -> bytes:
    """Build the Firmware ACPI Control Structure (waking vectors, global lock): unused, but Linux warns without it."""
    return pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _gas(port: int, width: int) -> bytes:
    """Build a generic address structure for a port of `width` bits; all zero without a port."""
    if not port:
        return bytes(12)
    access = {8: 1, 16: 2, 32: 3}[width]
    return pack("<BBBBQ", 1, width, 0, access, port)


FADT_SIZE = 276  # revision 6
WBINVD, PROC_C1, PWR_BUTTON, SLP_BUTTON, FIX_RTC, TMR_VAL_EXT, RESET_REG_SUP = 0, 2, 4, 5, 6, 8, 10
LEGACY_DEVICES, HAS_8042, VGA_NOT_PRESENT, CMOS_RTC_NOT_PRESENT = 0, 1, 2, 5
NO_C2_LATENCY, NO_C3_LATENCY = 0xFFF, 0xFFF


def _fadt(config: AcpiConfig, facs: int, dsdt: int) -> bytes:
    """Build the Fixed ACPI Description Table: the power management ports, reset, and what legacy devices exist.

    SMI_CMD is zero: without firmware, the machine is always in ACPI mode.
    """
    event, control = config.pm_base + PM1_EVENT, config.pm_base + PM1_CONTROL
    timer = config.pm_base + PM_TIMER if config.pm_timer else 0
    # Buttons and RTC: a set bit says that it is NOT among the fixed registers.
    flags = 1 << WBINVD | 1 << PROC_C1 | 1 << SLP_BUTTON
    flags |= 0 if config.power_button else 1 << PWR_BUTTON
    flags |= 0 if config.rtc else 1 << FIX_RTC
    flags |= 1 << TMR_VAL_EXT if config.pm_timer else 0
    flags |= 1 << RESET_REG_SUP if config.reset_port else 0
    boot = 1 << LEGACY_DEVICES | 1 << VGA_NOT_PRESENT
    boot |= 1 << HAS_8042 if config.i8042 else 0
    boot |= 0 if config.rtc else 1 << CMOS_RTC_NOT_PRESENT

    table = bytearray(FADT_SIZE)
    pack_into("<II", table, 36, facs, dsdt)
    pack_into("<H", table, 46, config.sci)
    pack_into("<I", table, 56, event)
    pack_into("<I", table, 64, control)
    pack_into("<I", table, 76, timer)
    pack_into("<BBBB", table, 88, 4, 2, 0, 4 if timer else 0)  # lengths: PM1 event, PM1 control, PM2, timer
    pack_into("<HH", table, 96, NO_C2_LATENCY, NO_C3_LATENCY)
    pack_into("<B", table, 108, config.rtc_century)
    pack_into("<H", table, 109, boot)
    pack_into("<I", table, 112, flags)
    table[116:128] = _gas(config.reset_port, 8)
    table[128] = config.reset_value
    table[131] = 5  # minor version: 6.5
    pack_into("<Q", table, 140, dsdt)
    table[148:160] = _gas(event, 32)
    table[172:184] = _gas(control, 16)
    table[208:220] = _gas(timer, 32)
    return _table(b"FACP", 6, bytes(table[36:]))


def _madt(config: AcpiConfig) -> bytes:
    """Build the Multiple APIC Description Table: processors, the IOAPIC, how ISA interrupts reach it, and NMI."""
    entries = []
    for uid, apic_id in enumerate(config.apic_ids):
        if apic_id < FIRST_X2APIC_ID and uid < MAX_XAPIC_PROCESSOR:
            entries.append(pack("<BBBBI", 0, 8, uid, apic_id, 1))
        else:
            entries.append(pack("<BBHIII", 9, 16, 0, apic_id, 1, uid))
    entries.append(pack("<BBBBII", 1, 12, 0, 0, address_map.IO_APIC.start, 0))
    if config.timer_override:
        entries.append(pack("<BBBBIH", 2, 10, 0, 0, 2, 0))
    high_level = 1 | 3 << 2
    entries.append(pack("<BBBBIH", 2, 10, 0, config.sci, config.sci, high_level))
    entries.append(pack("<BBBHB", 4, 6, 0xFF, 0, 1))  # NMI at LINT1 of all processors
    if any(apic_id >= FIRST_X2APIC_ID for apic_id in config.apic_ids):
        entries.append(pack("<BBHIBBH", 10, 12, 0, 0xFFFFFFFF, 1, 0, 0))
    also_8259 = 1
    return _table(b"APIC", 5, pack("<II", address_map.LOCAL_APIC.start, also_8259) + b"".join(entries))


def _dsdt(config: AcpiConfig) -> bytes:
    """Build the Differentiated System Description Table: the devices, and how to power off."""
    body = aml.name("\\_S5", aml.package(aml.integer(S5_SLEEP_TYPE), aml.ZERO, aml.ZERO, aml.ZERO))
    devices = list(_devices(config))
    if devices:
        body += aml.scope("\\_SB", *devices)
    return _table(b"DSDT", 2, body)


def _devices(config: AcpiConfig) -> Iterable[bytes]:
    if config.vmbus:
        window, size = config.vmbus_window
        vmbus = aml.device(
            "VMBS",
            aml.name("_HID", aml.string("VMBUS")),
            aml.name("_UID", aml.ZERO),
            aml.name("_DDN", aml.string("VMBUS")),
            aml.name("_STA", aml.integer(0xF)),
            aml.name("_CRS", aml.resources()),
        )
        yield aml.device(
            "VMOD",
            aml.name("_HID", aml.string("ACPI0004")),
            aml.name("_UID", aml.string("VMOD")),
            aml.name("_CRS", aml.resources(aml.memory_window(window, size))),
            vmbus,
        )
    if config.rtc:
        yield aml.device(
            "RTC",
            aml.name("_HID", aml.eisa_id("PNP0B00")),
            aml.name(
                "_CRS",
                aml.resources(aml.io(address_map.RTC.start, address_map.RTC.size), aml.irq(address_map.RTC_LINE)),
            ),
        )
    places = {number: aml.io(_COM[number][0].start, _COM[number][0].size) for number in config.com_ports}
    places |= {number: aml.memory(gpa, 8) for number, gpa in enumerate(config.com_windows, 1)}
    for number, place in sorted(places.items()):
        yield aml.device(
            f"COM{number}",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(number)),
            aml.name("_CRS", aml.resources(place, aml.irq(_COM[number][1]))),
        )
