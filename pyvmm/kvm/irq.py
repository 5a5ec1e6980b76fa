"""Interrupt routes: an interrupt line (GSI) goes to a pin of an interrupt controller, an MSI, or a Hyper-V SINT.

Source: Linux include/uapi/linux/kvm.h, struct kvm_irq_routing_entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

from pyvmm.kvm.abi import IrqchipId, RouteType

_HEAD: Final = Struct("<II")  # nr, flags
_ENTRY: Final = Struct("<4I4I16x")  # gsi, type, flags, pad; 32 bytes of union

_PIC_PINS: Final = 8
_IOAPIC_PINS: Final = 24


@dataclass(frozen=True, slots=True)
class IrqRoute:
    """One entry of the interrupt routing table: the target of line `gsi`."""

    gsi: int
    type: RouteType
    words: tuple[int, int, int, int]

    @classmethod
    def irqchip(cls, gsi: int, chip: IrqchipId, pin: int) -> Self:
        """A route to a pin of the in-kernel PICs or I/O APIC."""
        return cls(gsi, RouteType.IRQCHIP, (chip, pin, 0, 0))

    @classmethod
    def msi(cls, gsi: int, address: int, data: int) -> Self:
        """A route to a local APIC by MSI: the `address` and `data` that a device would write."""
        return cls(gsi, RouteType.MSI, (address & 0xFFFFFFFF, address >> 32, data, 0))

    @classmethod
    def hv_sint(cls, gsi: int, vp_index: int, sint: int) -> Self:
        """A route to a synthetic interrupt source of a VP; its vector is the one in the guest's SINT register."""
        return cls(gsi, RouteType.HV_SINT, (vp_index, sint, 0, 0))


def pack_routes(routes: Sequence[IrqRoute]) -> bytearray:
    """struct kvm_irq_routing holding `routes`."""
    table = bytearray(_HEAD.size + _ENTRY.size * len(routes))
    _HEAD.pack_into(table, 0, len(routes), 0)
    for position, route in enumerate(routes):
        _ENTRY.pack_into(table, _HEAD.size + position * _ENTRY.size, route.gsi, route.type, 0, 0, *route.words)
    return table


def pc_routes() -> list[IrqRoute]:
    """The routes of a PC, as KVM_CREATE_IRQCHIP sets them up: lines 0-15 to the PICs, 0-23 to the I/O APIC.

    `set_routes` replaces the whole table, so begin with these. As in KVM, line n goes to I/O APIC pin n
    (the PIT's line 0 included; QEMU moves that one to pin 2 and says so in the MADT, KVM's PIT does not).
    """
    routes = []
    for gsi in range(2 * _PIC_PINS):
        chip = IrqchipId.PIC_MASTER if gsi < _PIC_PINS else IrqchipId.PIC_SLAVE
        routes.append(IrqRoute.irqchip(gsi, chip, gsi % _PIC_PINS))
    routes += [IrqRoute.irqchip(gsi, IrqchipId.IOAPIC, gsi) for gsi in range(_IOAPIC_PINS)]
    return routes
