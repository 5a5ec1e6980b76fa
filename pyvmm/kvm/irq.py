"""Where an interrupt line goes: to a pin of an interrupt controller, to an MSI, or to a Hyper-V SINT.

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
    """One entry of the routing table: raising line `gsi` does what `type` and `words` say."""

    gsi: int
    type: RouteType
    words: tuple[int, int, int, int]

    @classmethod
    def irqchip(cls, gsi: int, chip: IrqchipId, pin: int) -> Self:
        """To a pin of the in-kernel PICs or I/O APIC."""
        return cls(gsi, RouteType.IRQCHIP, (chip, pin, 0, 0))

    @classmethod
    def msi(cls, gsi: int, address: int, data: int) -> Self:
        """To a local APIC: what a device would write (`data`) and where (`address`)."""
        return cls(gsi, RouteType.MSI, (address & 0xFFFFFFFF, address >> 32, data, 0))

    @classmethod
    def hv_sint(cls, gsi: int, vp_index: int, sint: int) -> Self:
        """To a synthetic interrupt source of a vCPU; its vector is what the guest put into that SINT."""
        return cls(gsi, RouteType.HV_SINT, (vp_index, sint, 0, 0))


def pack_routes(routes: Sequence[IrqRoute]) -> bytearray:
    """struct kvm_irq_routing holding `routes`."""
    table = bytearray(_HEAD.size + _ENTRY.size * len(routes))
    _HEAD.pack_into(table, 0, len(routes), 0)
    for position, route in enumerate(routes):
        _ENTRY.pack_into(table, _HEAD.size + position * _ENTRY.size, route.gsi, route.type, 0, 0, *route.words)
    return table


def pc_routes() -> list[IrqRoute]:
    """The routing a PC has and KVM_CREATE_IRQCHIP sets up: lines 0-15 to the PICs, 0-23 to the I/O APIC.

    `set_routes` replaces the whole table, so begin with these. As in KVM, line n goes to I/O APIC pin n
    (the PIT's line 0 included; QEMU moves that one to pin 2 and says so in the MADT, KVM's PIT does not).
    """
    routes = []
    for gsi in range(2 * _PIC_PINS):
        chip = IrqchipId.PIC_MASTER if gsi < _PIC_PINS else IrqchipId.PIC_SLAVE
        routes.append(IrqRoute.irqchip(gsi, chip, gsi % _PIC_PINS))
    routes += [IrqRoute.irqchip(gsi, IrqchipId.IOAPIC, gsi) for gsi in range(_IOAPIC_PINS)]
    return routes
