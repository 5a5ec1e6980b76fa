"""Solutions to the exercises of chapter 10."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch04_long_mode import MEMORY
from ch07_messages import HypervGuest

from pyvmm import trace
from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.images import balloon_assembler
from pyvmm.kvm import Kvm
from pyvmm.vmbus.bus import Vmbus

MIB = 1 << 20
GIVEN = balloon_assembler.FREE_FRAME * 4096  # the address of the first page that the guest gives away


def resized(*targets: int, before: bytes = b"") -> tuple[list[int], BalloonDevice, HypervGuest]:
    """Run a guest through these sizes in MiB; return the sizes reached. `before` lies in its free memory."""
    with Kvm() as kvm:
        guest = HypervGuest(kvm, balloon_assembler.driver())
        guest.memory.write(GIVEN, before)
        balloon = BalloonDevice([(0, MEMORY)], guest.memory.discard, clock=guest.loop.clock)
        sizes, left = [], iter(targets)

        def next_target(outcome: object = None) -> None:
            if outcome:
                sizes.append(balloon.actual // MIB)
            target = next(left, None)
            if target is None:
                guest.vcpu.immediate_exit = True
            else:
                balloon.set_target(target * MIB, retry_in_background=False)

        def stop(record: trace.Record) -> None:
            guest.vcpu.immediate_exit = True  # the host would try again and again

        trace.subscribe("balloon.pages_refused", stop)
        balloon.on_finish.append(next_target)
        next_target()
        bus = Vmbus(guest.loop, guest.memory, guest.engine)
        bus.add(balloon)
        guest.run()
        return sizes, balloon, guest


def exercise_1() -> None:
    """Pages beyond the guest's memory."""
    honest = balloon_assembler.FREE_FRAME
    balloon_assembler.FREE_FRAME = MEMORY // 4096
    try:
        sizes, balloon, _ = resized(12)
    finally:
        balloon_assembler.FREE_FRAME = honest
    assert sizes == [] and balloon.actual == MEMORY
    assert balloon.info()["refused-pages"]["outside"] == 4 * MIB // 4096


def exercise_2() -> None:
    """What was in the memory is gone."""
    sizes, _, guest = resized(12, 16, before=b"important")
    assert sizes == [12, 16]
    assert guest.memory.read(GIVEN, 9) == bytes(9)


def exercise_3() -> None:
    """The states."""
    states: list[str] = []

    def note(record: trace.Record) -> None:
        states.append(record.values[0])

    trace.subscribe("hv_balloon_state_change", note)
    resized(12)
    trace.unsubscribe(note)
    assert states == [
        "S_VERSION",
        "S_CAPS",
        "S_IDLE",
        "S_BALLOON_RB_WAIT",
        "S_BALLOON_POSTING",
        "S_BALLOON_REPLY_WAIT",
        "S_IDLE",
    ]


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
