"""The machine's address map: every fixed guest physical address, I/O port, interrupt line and KVM memory slot, once.

Firmware, devices, the Hyper-V engines and the machine take their numbers from here; `pyvmm doctor --map` prints them.
The guest gets them from the e820 map, the ACPI tables and its registers at the start.

RAM beyond 3 GiB continues at 4 GiB: interrupt controllers, serial windows and the VMBus window lie between. One place
may lie in another (the kernel command line in low RAM), but two never overlap partially.
"""

from __future__ import annotations

from typing import NamedTuple

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB


class Place(NamedTuple):
    """A range of one address space: `size` addresses from `start` on, and its contents."""

    start: int
    size: int
    what: str

    @property
    def end(self) -> int:
        """Return the first address after the place."""
        return self.start + self.size


MAP: dict[str, list[Place]] = {"memory": [], "ports": [], "lines": [], "slots": []}
"""All places, by address space: guest physical memory, I/O ports, interrupt lines (GSIs), KVM memory slots."""


def _place(space: str, start: int, size: int, what: str) -> Place:
    place = Place(start, size, what)
    MAP[space].append(place)
    return place


def _memory(start: int, end: int, what: str) -> Place:
    return _place("memory", start, end - start, what)


def _ports(start: int, count: int, what: str) -> Place:
    return _place("ports", start, count, what)


def _line(number: int, what: str) -> int:
    return _place("lines", number, 1, what).start


def _slots(start: int, count: int, what: str) -> Place:
    return _place("slots", start, count, what)


# Guest physical memory. The kernel may overwrite the boot loader's data in low RAM.
LOW_RAM = _memory(0, 0x9FC00, "RAM below the EBDA")
GDT = _memory(0x1000, 0x2000, "boot loader: GDT")
START_INFO = _memory(0x2000, 0x7000, "boot loader: PVH start info or Multiboot information")
ZERO_PAGE = _memory(0x7000, 0x8000, "boot loader: zero page (struct boot_params)")
STACK = _memory(0x8000, 0x8FF0, "boot loader: stack, downwards; Linux sets its own")
PAGE_TABLES = _memory(0x9000, 0xF000, "boot loader: page tables, identity map of 4 GiB")
CMDLINE = _memory(0x20000, 0x9FC00, "boot loader: kernel command line, as long as the kernel takes one")
EBDA = _memory(0x9FC00, 0xA0000, "extended BIOS data area, reserved")
ACPI_TABLES = _memory(0xE0000, 0x100000, "ACPI tables; the RSDP is at the start, where a guest searches for it")
EXTENDED_RAM = _memory(1 * MIB, 3 * GIB, "RAM: kernel where it was linked, initramfs at the end")
HOLE = _memory(3 * GIB, 4 * GIB, "no RAM: devices")
VMBUS_WINDOW = _memory(0xF8000000, 0xFEC00000, "VMBus: address space that drivers may ask for")
IO_APIC = _memory(0xFEC00000, 0xFEC00000 + PAGE, "I/O APIC (KVM)")
# Above the I/O APIC, where PCs have only more I/O APICs; a page apart, because RBR is in the page before.
CONSOLE_WINDOW = _memory(0xFEC11000, 0xFEC12000, "COM1, the console: registers; RBR in the byte before")
AGENT_WINDOW = _memory(0xFEC13000, 0xFEC14000, "COM2, the agent: registers; RBR in the byte before")
LOCAL_APIC = _memory(0xFEE00000, 0xFEE00000 + MIB, "local APICs (KVM); written by a device: MSIs")
TEST_MEMORY = _memory(0xFF000000, 0xFF010000, "test devices: memory whose accesses exit")
IDENTITY_MAP = _memory(0xFFFBC000, 0xFFFBD000, "page table for real mode (KVM on Intel)")
TSS = _memory(0xFFFBD000, 0xFFFC0000, "task state segment for real mode (KVM on Intel)")
HIGH_RAM = _memory(4 * GIB, 1 << 52, "RAM beyond 3 GiB, then the window for hot-added memory; end: the CPU's")

# I/O ports. (KVM): handled in the kernel.
PIC_MASTER = _ports(0x20, 2, "8259 interrupt controller (KVM)")
PIT = _ports(0x40, 4, "8254 timer (KVM)")
I8042_DATA = _ports(0x60, 1, "keyboard controller: data")
SPEAKER = _ports(0x61, 1, "speaker gate of the 8254 (KVM)")
I8042_STATUS = _ports(0x64, 1, "keyboard controller: status, command; 0xfe resets")
RTC = _ports(0x70, 2, "CMOS clock: index, data")
BREAKPOINT = _ports(0x7E, 1, "a debugger's breakpoints, where INT3 does not leave the guest")
PIC_SLAVE = _ports(0xA0, 2, "second 8259 interrupt controller (KVM)")
TEST_SCRATCH = _ports(0xE0, 4, "test devices: hold what was written")
TEST_FLUSH = _ports(0xE4, 4, "test devices: take a page out of the guest's page tables for a moment")
TEST_BYTES = _ports(0xE8, 4, "test devices: hold what was written, a byte each")
HYPERCALL = _ports(0xEC, 1, "hypercalls, written by the hypercall page")
TEST_EXIT = _ports(0xF4, 4, "test devices: exit port")
COM2 = _ports(0x2F8, 8, "serial port ttyS1, the agent")
COM1 = _ports(0x3F8, 8, "serial port ttyS0, the console")
ELCR = _ports(0x4D0, 2, "edge or level of the 8259s' lines (KVM)")
FW_CFG = _ports(0x510, 2, "test devices: QEMU's fw_cfg, item and data")
ACPI_PM = _ports(0x600, 12, "ACPI power management: PM1 event, PM1 control, timer")
RESET = _ports(0xCF9, 1, "reset register")
TEST_LINES = _ports(0x2000, 24, "test devices: levels of the interrupt lines")
HYPERV_TESTDEV = _ports(0x3000, 4, "test devices: QEMU's hyperv-testdev")

# Interrupt lines. Channels have none: the SynIC interrupts Linux at the vector that it chose (0xf3).
PIT_LINE = _line(0, "8254 timer, on I/O APIC pin 2")
KEYBOARD_LINE = _line(1, "keyboard controller")
COM2_LINE = _line(3, "ttyS1, the agent")
COM1_LINE = _line(4, "ttyS0, the console")
RTC_LINE = _line(8, "CMOS clock")
SCI_LINE = _line(9, "ACPI: power button, clock alarm; level-triggered")
MOUSE_LINE = _line(12, "keyboard controller's second port")

# KVM memory slots. Some KVMs have 509 in all.
RAM_SLOTS = _slots(0, 8, "boot RAM, one a range of the e820 map")
READONLY_SLOTS = _slots(8, 2, "serial windows, read-only")
WATCH_SLOTS = _slots(10, 6, "pages that a debugger watches, and the RAM behind each")
HOT_ADD_SLOTS = _slots(16, 400, "hot-added memory; 64 used unless --slots says another number")
