"""Solutions to the exercises of chapter 12."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch12_driver_bug import Result, resized

from pyvmm.devices.balloon import protocol as dm
from pyvmm.images.tiny import data, program
from pyvmm.images.tiny.data import AT, place
from pyvmm.images.tiny.kernel import write_kernel

PAYLOAD = program.PAYLOAD


def run(fault: str | None, *targets: int) -> Result:
    """Run the guest, resize it."""
    with tempfile.TemporaryDirectory() as folder:
        return resized(write_kernel(Path(folder) / "kernel"), fault, *targets)


def exercise_1() -> None:
    """Two steps."""
    result = run(None, 48, 40)
    assert set(result.sizes) == {48}
    assert result.known and result.known % 2048 == 0  # 8 MiB at each try


def serve_balloon_mended(a: program.Kernel) -> None:
    """Give away as many pages as the host asks for, each once; stop when it gives some back."""
    a.move("r14", data.SPARE_FRAME)
    a.label("serve")
    a.next_packet("request")
    a.compare("rax", dm.MessageType.UNBALLOON_REQUEST)
    a.jump("take back", "e")
    a.compare("rax", dm.MessageType.BALLOON_REQUEST)
    a.jump("serve", "ne")
    a.load("rcx", "rbx", PAYLOAD + place(dm.BalloonRequest, "pages"), 4)
    a.move("rax", "rcx")
    a.shift_left("rax", dm.PAGE_COUNT_SHIFT)
    a.add("rax", "r14")
    a.add("r14", "rcx")
    a.store(AT["released"] + PAYLOAD + dm.RANGES_AT, "rax", 8)
    a.send("released")
    a.jump("serve")
    a.label("take back")
    a.send("taken back")


def exercise_2() -> None:
    """The mended driver."""
    broken: Callable[[program.Kernel], None] = program._serve_balloon
    program._serve_balloon = serve_balloon_mended
    try:
        result = run(None, 48, 40)
    finally:
        program._serve_balloon = broken
    assert (result.sizes, result.known) == ([48, 40], 0)


def exercise_3() -> None:
    """A lost answer."""
    result = run("packet.in:drop,message=UNBALLOON_RESPONSE", 48, 64)
    assert result.sizes == [48]


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
