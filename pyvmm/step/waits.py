"""Who waits for what in a machine that stands: its vCPUs, the VMBus, each channel, the balloon.

The texts are the first sentences of the states' own docstrings (pyvmm.vmbus.states, pyvmm.devices.balloon.states).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.devices.balloon.states import Closed
from pyvmm.errors import HostError
from pyvmm.kvm import MpState
from pyvmm.vmbus.states import Disconnected, Hidden, Offered

if TYPE_CHECKING:
    from pyvmm.machine import Machine

_HALTED = {MpState.HALTED: "halted: waits for an interrupt", MpState.UNINITIALIZED: "waits for INIT and SIPI"}


def sentence(state: object) -> str:
    """Return what a state means: the first sentence of its docstring."""
    text = " ".join((type(state).__doc__ or "").split())
    return text.split(". ")[0].rstrip(".")


def waits(machine: Machine, blocked: int | None = None, held: int = 0) -> list[tuple[str, str]]:
    """Return (who, state and what it waits for). `blocked`: the vCPU that stands in a hypercall or at an exit."""
    rows: list[tuple[str, str]] = []
    for thread in machine.slot.threads:
        who = f"vcpu {thread.index}"
        if thread.index == blocked:
            rows.append((who, f"stands where it left the guest, rip {thread.vcpu.regs.rip:#x}"))
            continue
        try:
            state = thread.vcpu.mp_state
            text = _HALTED.get(state, "runs guest code")
            rows.append((who, f"{text}, rip {thread.vcpu.regs.rip:#x}"))
        except HostError as error:
            rows.append((who, str(error)))
    rows += _bus_rows(machine)
    balloon = machine.balloon
    if balloon is not None and not isinstance(balloon.machine.state, Closed):
        rows.append(("balloon", f"{balloon.machine.state.NAME}: {sentence(balloon.machine.state)}"))
    if held:
        rows.append(("step", f"{held} more {'item waits' if held == 1 else 'items wait'} behind this one"))
    return rows


def _bus_rows(machine: Machine) -> list[tuple[str, str]]:
    server = machine.services.bus.server
    rows = [("vmbus", f"{server.state.NAME}: {sentence(server.state)}")]
    if isinstance(server.state, Disconnected):
        return rows
    for channel in server.channels.values():
        if not isinstance(channel.state, Offered | Hidden):
            rows.append((f"channel {channel.relid}", f"{channel.offer.name}: {sentence(channel.state)}"))
    offered = [each.offer.name for each in server.channels.values() if isinstance(each.state, Offered)]
    if offered:
        rows.append(("offered", f"not open: {', '.join(offered)}"))
    for vp, state in enumerate(machine.engine.synic.vps):
        for sint, queue in state.queues.items():
            if queue:
                count = len(queue)
                text = f"{count} {'message waits' if count == 1 else 'messages wait'} until the guest frees the slot"
                rows.append((f"SINT {sint}", f"{text} of VP {vp}"))
    return rows
