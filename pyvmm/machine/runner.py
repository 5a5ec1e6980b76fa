"""The threads that run the guest: one for each vCPU, blocked in KVM_RUN with the GIL released.

A thread handles exits that cannot wait (ports, MMIO, MSRs, hypercalls) and posts the rest to the loop. To make it
leave the guest, set `immediate_exit` and signal it; the two together close the race with entering the guest.

    Running --pause, freeze, hold, sleep--> Parked --none of them--> Running        any --stop--> ended

A user pauses a guest; back-pressure freezes a guest whose output is not read (`pyvmm.machine.throttle`); a debugger
holds single vCPUs; a guest with test devices can sleep (`pyvmm.machine.test_devices`).
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable

from pyvmm.errors import HostError
from pyvmm.kvm import Exit, Interrupted, Vcpu

KICK = signal.SIGUSR1
_PAUSED, _FROZEN, _HELD, _ASLEEP = 1, 2, 4, 8  # why a thread is parked
_handler_set = False


def install_kick() -> None:
    """Install an empty handler for the kick signal, so that it only interrupts. Called once, on the main thread."""
    global _handler_set
    if not _handler_set:
        signal.signal(KICK, lambda number, frame: None)
        _handler_set = True


class VcpuThread:
    """Runs one vCPU. `handle(exit) -> bool` handles an exit; False ends the thread. `interrupted()` is called after a
    kick, out of the guest.

    `failed(error)` is called on the thread if an exception is raised: the machine cannot go on then.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        index: int,
        handle: Callable[[Exit], bool],
        failed: Callable[[BaseException], None],
        interrupted: Callable[[], None] = lambda: None,
    ) -> None:
        self.vcpu = vcpu
        self.index = index
        self.exits: Counter[str] = Counter()
        self._handle = handle
        self._failed = failed
        self._interrupted = interrupted
        self._state = threading.Condition()
        self._stop = False
        self._pause = 0
        self._parked = False
        self._thread = threading.Thread(target=self._run, name=f"vcpu{index}", daemon=True)

    @property
    def native_id(self) -> int:
        """Return the host's id of the thread, as in /proc/PID/task; 0 if it does not run."""
        return self._thread.native_id or 0 if self._thread.is_alive() else 0

    def start(self) -> None:
        self._thread.start()

    def kick(self) -> None:
        """Make the thread leave the guest soon."""
        self.vcpu.immediate_exit = True
        if self._thread.ident is not None and self._thread.is_alive():
            signal.pthread_kill(self._thread.ident, KICK)

    def request(
        self,
        *,
        pause: bool | None = None,
        freeze: bool | None = None,
        hold: bool | None = None,
        sleep: bool | None = None,
        stop: bool = False,
    ) -> None:
        """Request a state; `wait_parked` and `join` wait until it is reached. Callable from any thread."""
        with self._state:
            for why, on in ((_PAUSED, pause), (_FROZEN, freeze), (_HELD, hold), (_ASLEEP, sleep)):
                if on is not None:
                    self._pause = self._pause | why if on else self._pause & ~why
            self._stop = self._stop or stop
            self._state.notify_all()
        if pause or freeze or hold or sleep or stop:
            self.kick()

    def wait_parked(self) -> None:
        """Wait until the thread is out of the guest (parked or ended)."""
        while True:
            with self._state:
                if self._parked or not self._thread.is_alive():
                    return
                if self._state.wait(0.1):
                    continue
            self.kick()  # again: the thread may have been between two states

    def join(self) -> None:
        """Wait until the thread has ended."""
        while self._thread.is_alive():
            self._thread.join(0.1)
            if self._thread.is_alive():
                self.kick()

    def _run(self) -> None:
        vcpu, handle, exits = self.vcpu, self._handle, self.exits
        try:
            while True:
                if self._stop or self._pause:
                    if not self._park():
                        return
                    self._interrupted()  # a kick meanwhile had no other effect
                    continue
                exit = vcpu.run()
                exits[exit.NAME] += 1
                if vcpu.answered:
                    exits.update(vcpu.answered)
                    vcpu.answered.clear()
                if type(exit) is Interrupted:
                    vcpu.immediate_exit = False
                    self._interrupted()
                elif not handle(exit):
                    return
        except (HostError, Exception) as error:
            self._failed(error)

    def _park(self) -> bool:
        """Wait while paused, frozen, held or asleep. Return whether to run on."""
        # An exit may still be half done: KVM completes it at the next entry, so enter and leave at once.
        self.vcpu.immediate_exit = True
        while type(exit := self.vcpu.run()) is not Interrupted:
            if not self._handle(exit):
                return False
        with self._state:
            self._parked = True
            self._state.notify_all()
            while self._pause and not self._stop:
                self._state.wait()
            self._parked = False
        self.vcpu.immediate_exit = False
        return not self._stop
