"""The guest without Linux (pyvmm.images.tiny) in a machine: it opens the balloon, gives memory, takes it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import trace
from pyvmm.images.tiny.kernel import MEMORY, write_kernel
from pyvmm.kvm import Kvm
from pyvmm.loop import Loop
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.machine import Machine

pytestmark = pytest.mark.kvm

LIMIT = 20.0
SMALL = MEMORY - (16 << 20)


@pytest.fixture
def machine(kvm: Kvm, tmp_path: Path) -> Iterator[Machine]:
    loop = Loop()
    kernel = write_kernel(tmp_path / "tiny")
    with Machine(MachineConfig(kernel=kernel, memory=MEMORY, engine="user"), loop) as made:
        yield made
    loop.close()


def test_it_gives_memory_away_takes_it_back_and_powers_off(machine: Machine) -> None:
    states: list[str] = []

    def note(record: trace.Record) -> None:
        states.append(str(record.values[0]))

    trace.subscribe("hv_balloon_state_change", note)
    try:
        machine.start()
        balloon = machine.balloon
        assert balloon is not None
        sizes: list[int] = []

        def finished(_outcome: object) -> None:
            sizes.append(balloon.actual)
            if len(sizes) == 1:
                machine.monitor.balloon_set(MEMORY)

        balloon.on_finish.append(finished)
        machine.monitor.balloon_set(SMALL)
        machine.loop.after(LIMIT, machine.quit)
        outcome = machine.run()
    finally:
        trace.unsubscribe(note)
    assert outcome.kind == "poweroff"
    assert sizes == [SMALL, MEMORY]
    assert {"S_BALLOON_REPLY_WAIT", "S_UNBALLOON_REPLY_WAIT"} <= set(states)
