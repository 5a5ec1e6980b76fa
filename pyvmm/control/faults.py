"""QMP commands for fault rules (pyvmm.faults). None is QEMU's, whose blkdebug takes its rules from a file.

{"execute": "x-fault-add", "arguments": {"rule": "packet.out:drop,message=BALLOON_REQUEST,once"}}
{"return": {"id": 1}}
"""

from __future__ import annotations

from pyvmm.control.table import MonitoredMachine, command
from pyvmm.qapi import Empty, FaultId, FaultInfo


@command("x-fault-add", rule=str)
def fault_add(machine: MonitoredMachine, rule: str) -> FaultId:
    """Add a fault rule, or a fault of the library by its name."""
    return {"id": machine.fault_rules().add_text(rule)}


@command("x-fault-remove", id=int)
def fault_remove(machine: MonitoredMachine, id: int) -> Empty:
    """Remove a fault; what it delays is still delivered."""
    machine.fault_rules().remove(id)
    return {}


@command("x-query-faults")
def query_faults(machine: MonitoredMachine) -> list[FaultInfo]:
    """Return the faults in force, with their hits."""
    return machine.fault_rules().info()
