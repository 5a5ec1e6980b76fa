"""The devices for test programs on the board of a machine with `--test-devices`: `pyvmm.devices.testdev`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from struct import unpack_from
from typing import TYPE_CHECKING

from pyvmm import address_map
from pyvmm.contain import contained
from pyvmm.devices.testdev.exit_port import ExitPort
from pyvmm.devices.testdev.fw_cfg import FwCfg
from pyvmm.devices.testdev.hyperv import HypervTestdev
from pyvmm.devices.testdev.pc import InterruptLines, PageFlush, Scratch
from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.firmware.entry import RealMode
from pyvmm.iomap import IoDevice, IoMap
from pyvmm.loop import Loop, Pending

if TYPE_CHECKING:
    from pyvmm.hyperv.engine import Engine
    from pyvmm.machine.board import Board
    from pyvmm.machine.hardware_slot import HardwareSlot
    from pyvmm.memory import GuestMemory


class TestDevices:
    """The test devices, at their ports and addresses on `board`.

    `end(status)` ends the machine, and `wake(state)` lets it wake from S3; both on the loop. The power management of
    `board` gets S3 for programs that know it (SLP_TYP 1).
    """

    __test__ = False  # no class of tests, whatever pytest takes from the name

    def __init__(
        self,
        board: Board,
        loop: Loop,
        *,
        slot: HardwareSlot,
        memory: GuestMemory,
        engine: Engine,
        ram_size: int,
        end: Callable[[int], None],
        wake: Callable[[RealMode], None],
    ) -> None:
        self._slot = slot
        self._memory = memory
        self._end = end
        self._wake = wake
        self._waking = Pending(loop, self._wake_up)
        board.pm.suspend, board.pm.wake = lambda: slot.sleep(True), self._waking.ask
        self._status: int | None = None  # as written to the exit port
        self._ending = Pending(loop, self._exit)
        self._pages: list[int] = []  # to flush; each vCPU waits for its own, so they are few
        self._lock = threading.Lock()
        self._flushing = Pending(loop, self._flush)
        self._fw_cfg = FwCfg(engine.vp_count, ram_size)
        self._hyperv = HypervTestdev(engine, loop)
        self._scratch = [Scratch(place.size) for place in _SCRATCH]
        devices: list[tuple[address_map.Place, IoDevice]] = [
            (address_map.TEST_EXIT, ExitPort(self._ask_exit)),
            (address_map.TEST_LINES, InterruptLines(slot.set_irq)),
            (address_map.TEST_FLUSH, PageFlush(self._ask_flush)),
            (address_map.FW_CFG, self._fw_cfg),
            (address_map.HYPERV_TESTDEV, self._hyperv),
            *zip(_SCRATCH, self._scratch, strict=True),
        ]
        for place, device in devices:
            _claim(board.mmio if place is address_map.TEST_MEMORY else board.ports, place, device)

    def reset(self) -> None:
        """Reset all to power-on state. No vCPU runs."""
        self._hyperv.reset()
        self._fw_cfg.reset()
        for each in self._scratch:
            each.reset()
        with self._lock:
            self._pages.clear()

    def _ask_exit(self, status: int) -> None:
        """Stop the vCPUs, and have the loop end the machine with the first status that one wrote."""
        if self._status is None:
            self._status = status
        self._slot.stop()
        self._ending.ask()

    def _exit(self) -> None:
        if self._status is not None:
            self._end(self._status)

    @contained("wake-up")
    def _wake_up(self) -> None:
        """Wake the suspended machine at the waking vector that it has put into the FACS."""
        tables = self._memory.read(address_map.ACPI_TABLES.start, address_map.ACPI_TABLES.size)
        facs = tables.find(b"FACS")
        (vector,) = unpack_from("<I", tables, facs + _WAKING_VECTOR) if 0 <= facs <= len(tables) - 64 else (0,)
        self._wake(RealMode(vector))

    def _ask_flush(self, gpa: int) -> None:
        """Stop the vCPUs, the writing one as well, until the loop has flushed the page."""
        with self._lock:
            self._pages.append(gpa)
        self._slot.sleep(True)
        self._flushing.ask()

    @contained("page flush")
    def _flush(self) -> None:
        with self._lock:
            pages, self._pages = self._pages, []
        try:
            with self._slot.stopped_vcpus():
                for gpa in pages:
                    self._memory.drop_mappings(gpa)
        except (GuestMemoryError, HostError):
            pass  # not RAM: nothing is mapped there
        finally:
            self._slot.sleep(False)


_WAKING_VECTOR = 12  # in the FACS
_SCRATCH = (address_map.TEST_SCRATCH, address_map.TEST_BYTES, address_map.TEST_MEMORY)


def _claim(space: IoMap, place: address_map.Place, device: IoDevice) -> None:
    space.claim(place.start, place.size, device, getattr(device, "lock", None))
