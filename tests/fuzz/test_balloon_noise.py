"""Seeded noise at the balloon's machine, whose ledger is checked against a model after every message."""

from __future__ import annotations

from random import Random

import pytest

from pyvmm.devices.balloon.ledger import Ledger
from pyvmm.devices.balloon.protocol import MessageType, parse_guest_message
from pyvmm.devices.balloon.ranges import PageRange
from pyvmm.devices.balloon.state_machine import BalloonMachine
from pyvmm.errors import GuestError
from tests.support.balloon_guest import BalloonGuest

RAM = [PageRange(0, 4096), PageRange(1 << 20, 4096)]


def noise(random: Random) -> bytes:
    """A packet: mostly a header that could be right, with a body that is not."""
    body = bytearray(random.randbytes(random.choice((0, 4, 8, 12, 24, 40, 200, 4088))))
    if random.random() < 0.5:
        for at in range(8, len(body) - 7, 8):  # ranges that may hit RAM
            word = random.randrange(9000) | random.randrange(600) << 40
            body[at : at + 8] = word.to_bytes(8, "little")
    likely = [MessageType.BALLOON_RESPONSE] * 8 + [MessageType.UNBALLOON_RESPONSE] * 4
    kind = random.choice([*MessageType, 0xFFFF, *likely])
    size = random.choice([8 + len(body)] * 4 + [16, random.randrange(0x10000)])
    if kind == MessageType.BALLOON_RESPONSE and len(body) >= 8:
        count = random.choice(((len(body) - 8) // 8, random.randrange(1 << 31)))
        body[4:8] = (count << 1 | random.randrange(2)).to_bytes(4, "little")
    return (kind.to_bytes(2, "little") + size.to_bytes(2, "little") + random.randbytes(4) + body)[: 8 + len(body)]


@pytest.mark.parametrize("seed", range(20))
def test_noise_at_the_balloon_is_refused_or_recorded_correctly(seed: int) -> None:
    random, now = Random(seed), 0.0
    out: set[int] = set()

    def discard(gpa: int, size: int) -> None:
        pages = set(range(gpa >> 12, gpa + size >> 12))
        assert pages.isdisjoint(out)
        assert all(any(r.start <= page < r.end for r in RAM) for page in pages)
        out.update(pages)

    machine = BalloonMachine(Ledger(RAM, discard), clock=lambda: now)
    machine.opened()
    guest = BalloonGuest(0)
    for payload in (guest.version(), guest.caps()):
        machine.receive(parse_guest_message(payload))
    served = accepted = 0
    for _ in range(400):
        now += random.random() * 5
        machine.check_time()
        if random.random() < 0.3:
            machine.set_target(random.randrange(1, 9000) << 12)
        while machine.next_size and random.random() < 0.8:
            message = machine.next_message()
            if message[0] == MessageType.UNBALLOON_REQUEST:
                for at in range(16, len(message), 8):
                    word = int.from_bytes(message[at : at + 8], "little")
                    out -= set(range(word & (1 << 40) - 1, (word & (1 << 40) - 1) + (word >> 40)))
        try:
            machine.receive(parse_guest_message(noise(random)))
            served += 1
        except GuestError:
            pass
        machine.notifications.clear()
        accepted = max(accepted, len(out))
        assert machine.ledger.removed_pages == len(out)
    assert served
    assert accepted
