"""Test harness: the balloon's state machine and a fake guest, connected without a bus; answers are immediate."""

from __future__ import annotations

from collections import deque
from typing import Self

from pyvmm.devices.balloon import protocol as p
from pyvmm.devices.balloon.hot_add import Window
from pyvmm.devices.balloon.ledger import Ledger
from pyvmm.devices.balloon.plan import ResizeOutcome
from pyvmm.devices.balloon.ranges import PageRange
from pyvmm.devices.balloon.state_machine import BalloonMachine
from pyvmm.devices.balloon.tuning import Tuning
from tests.support.balloon_guest import BalloonGuest

PAGE = 4096
BOOT = 16384  # pages: 64 MiB
PIECE = 2048


class BalloonHarness:
    """A machine and a guest of `boot` pages, connected by two queues; with a `window` it may grow."""

    def __init__(
        self, guest: BalloonGuest | None = None, *, boot: int = BOOT, window: Window | None = None, **tuning: object
    ) -> None:
        self.now = 0.0
        self.discarded: list[tuple[int, int]] = []
        self.ledger = Ledger([PageRange(0, boot)], self._discard, window)
        options = {"balloon_piece": PIECE, "unballoon_piece": PIECE, "send_info": False} | tuning
        self.machine = BalloonMachine(
            self.ledger,
            clock=lambda: self.now,
            tuning=Tuning(**options),  # type: ignore[arg-type]
        )
        self.guest = guest or BalloonGuest(boot)
        self.sent: list[p.HostMessage] = []
        self.pending: deque[bytes] = deque()

    def _discard(self, gpa: int, size: int) -> None:
        self.discarded.append((gpa >> 12, size >> 12))

    def boot(self) -> Self:
        self.machine.opened()
        self.send_to_host(self.guest.version())
        return self.run()

    def boot_without_answers(self) -> None:
        """Negotiate only."""
        self.machine.opened()
        self.send_to_host(self.guest.version())
        self.send_to_host(self.guest.caps())
        for _ in range(2):
            self.machine.next_message()

    def send_to_host(self, payload: bytes) -> None:
        self.machine.receive(p.parse_guest_message(payload))

    def host_turn(self, limit: int = 10_000) -> list[p.HostMessage]:
        """The machine sends what it has."""
        sent = []
        while self.machine.next_size and len(sent) < limit:
            size = self.machine.next_size
            message = self.machine.next_message()
            assert len(message) == size <= p.MESSAGE_LIMIT
            sent.append(p.parse_host_message(message))
            self.check_sent(sent[-1])
        self.sent += sent
        return sent

    def check_sent(self, message: p.HostMessage) -> None:
        """What must be true of each message when it is sent."""

    def run(self) -> Self:
        """Both sides until nothing moves."""
        while messages := self.host_turn():
            for message in messages:
                for answer in self.guest.answers(message):
                    self.send_to_host(answer)
        return self

    def wait(self, seconds: float) -> Self:
        """Both sides for so long; the machine looks at the clock each second."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1)
            self.machine.check_time()
            self.run()
        return self

    def outcome(self) -> ResizeOutcome:
        assert self.machine.outcome is not None
        return self.machine.outcome

    def requests(self) -> list[int]:
        return [m.pages for m in self.sent if isinstance(m, p.BalloonRequest)]
