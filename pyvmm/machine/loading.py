"""The kernel on its way into guest memory, beside whatever else is made for the machine meanwhile.

Reading waits: for a disk, or in the emulated host for the files' owner outside, a third of what a start takes there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from firmware.entry import BootState


class Loading:
    """Runs `load` on a thread of its own from now on. `wait` must be called before the memory goes away."""

    def __init__(self, load: Callable[[], BootState]) -> None:
        self._load = load
        self._state: BootState | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._state = self._load()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Until it is done, one way or the other."""
        self._thread.join()

    def state(self) -> BootState:
        """What the first vCPU begins with. Raises what `load` raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._state is not None
        return self._state
