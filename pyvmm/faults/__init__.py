"""Fault rules: change, delay or lose what passes between host and guest, to see what the guest's drivers do then.

    pyvmm run --fault 'message.out:drop,type=OPEN_RESULT,channel=hv-balloon,once'
    pyvmm run --fault torndown-withheld                      a fault of the library; `--fault help` lists all

    with vm.faults.add("packet.out:duplicate,message=UNBALLOON_REQUEST,once") as fault:
        vm.balloon.resize("512M")
        assert fault.hits == 1

    text, TOML --parse--> Rule --FaultSet.add--> Fault         one Fault is one rule, or those of a named fault
    pyvmm.tap  --items--> FaultSet --> the rule's action --> deliver, or not, or later

A rule is made in the manner of QEMU's blkdebug: a point (its event), a state, an action, `once` or a count, and a new
state. `points` has the points with what crosses each, `actions` what can be done with it, `library` the named faults.
A rule cannot harm pyvmm itself: each layer checks what it is given (`pyvmm.tap`), what fails is traced and counted.
"""

from __future__ import annotations

from pyvmm.faults.fault_set import Fault, FaultError, FaultNeverHit, FaultSet
from pyvmm.faults.rules import Rule

__all__ = ["Fault", "FaultError", "FaultNeverHit", "FaultSet", "Rule"]
