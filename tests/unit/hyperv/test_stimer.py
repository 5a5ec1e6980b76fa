"""Synthetic timers: what each register does, when timers expire, what a busy slot delays, and the loop's bound."""

from __future__ import annotations

import pytest

from pyvmm.errors import GuestProtocolError
from pyvmm.hyperv.clock import ReferenceClock
from pyvmm.hyperv.stimer import MIN_GAP, TIMERS, SyntheticTimers
from pyvmm.hyperv.tlfs import StimerConfig, TimerMessage

ENABLE, PERIODIC, LAZY, AUTO = 1, 2, 4, 8
DIRECT = 1 << 12
SINT2 = 2 << 16
MS = 10_000  # in 100 ns
START = 1_000_000_000
VECTOR = 0xED
CONFIG, COUNT = 0, 1  # of timer 0; those of timer 1 are 2 and 3


class Guest:
    """Timers with a clock that moves only when told, and slots that can be busy."""

    def __init__(self, vps: int = 1, *, direct: bool = True) -> None:
        self.now = START
        self.busy = False
        self.refused: list[bool] = []  # of messages: whether EOM was asked for
        self.messages: list[tuple[int, int, TimerMessage]] = []
        self.interrupts: list[tuple[int, int]] = []
        self.alarms: dict[int, int | None] = {}
        self.timers = SyntheticTimers(
            vps,
            ReferenceClock(lambda: self.now),
            send=self._send,
            interrupt=lambda vp, vector: self.interrupts.append((vp, vector)),
            set_alarm=self.alarms.__setitem__,
            direct=direct,
        )

    def _send(self, vp: int, sint: int, payload: bytes, wait: bool) -> bool:
        if self.busy:
            self.refused.append(wait)
            return False
        self.messages.append((vp, sint, TimerMessage.parse(payload)))
        return True

    @property
    def ticks(self) -> int:
        return (self.now - START) // 100

    def write(self, register: int, value: int, vp: int = 0) -> None:
        self.timers.write(vp, register, value)

    def read(self, register: int, vp: int = 0) -> int:
        return self.timers.read(vp, register)

    def run(self, nanoseconds: int) -> int:
        """Let time pass, and ring the alarms that are due. Returns how many rang."""
        end, rang = self.now + nanoseconds, 0
        while (due := min((when, vp) for vp, when in [*self.alarms.items(), (-1, end + 1)] if when is not None))[
            0
        ] <= end:
            self.now = max(self.now, due[0])
            self.alarms[due[1]] = None
            self.timers.due(due[1])
            rang += 1
        self.now = end
        return rang


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_one_shot_timer_sends_one_message_and_disables_itself(guest: Guest) -> None:
    guest.write(COUNT, MS)
    guest.write(CONFIG, ENABLE | SINT2)
    assert guest.read(CONFIG) == ENABLE | SINT2
    guest.run(999_900)
    assert not guest.messages
    guest.run(5_000_000)
    ((vp, sint, message),) = guest.messages
    assert (vp, sint, message) == (0, 2, TimerMessage(0, 0, MS, MS))
    assert guest.read(CONFIG) == SINT2
    assert guest.read(COUNT) == MS
    assert guest.alarms == {0: None}


def test_linux_s_timer_is_enabled_by_its_count_and_interrupts_directly(guest: Guest) -> None:
    guest.write(CONFIG, ENABLE | AUTO | DIRECT | VECTOR << 4)
    assert guest.alarms.get(0) is None
    for n in range(3):
        guest.write(COUNT, guest.ticks + MS)
        assert guest.read(CONFIG) & ENABLE
        guest.run(1_000_000)
        assert guest.interrupts == [(0, VECTOR)] * (n + 1)
        assert not guest.read(CONFIG) & ENABLE


def test_a_time_in_the_past_expires_within_the_access(guest: Guest) -> None:
    guest.run(10_000_000)
    guest.write(CONFIG, AUTO | DIRECT | VECTOR << 4)
    guest.write(COUNT, 5)
    assert guest.interrupts == [(0, VECTOR)]
    assert guest.alarms.get(0) is None


def test_a_periodic_timer_keeps_its_beat_and_counts_missed_ones_once(guest: Guest) -> None:
    guest.write(COUNT, MS)
    guest.write(CONFIG, ENABLE | PERIODIC | SINT2)
    guest.run(3_500_000)
    assert [message.expiration for _, _, message in guest.messages] == [MS, 2 * MS, 3 * MS]
    guest.now += 6_000_000  # the loop does not run
    guest.timers.due(0)
    assert guest.messages[-1][2].expiration == 4 * MS
    assert guest.alarms[0] == START + 10_000_000


@pytest.mark.parametrize("register", [COUNT, CONFIG])
def test_zero_switches_a_timer_off(guest: Guest, register: int) -> None:
    guest.write(COUNT, MS)
    guest.write(CONFIG, ENABLE | PERIODIC | SINT2)
    guest.write(register, 0)
    assert guest.alarms == {0: None}
    assert not guest.read(CONFIG) & ENABLE
    guest.run(10_000_000)
    assert not guest.messages


def test_a_count_alone_starts_nothing_without_auto_enable(guest: Guest) -> None:
    guest.write(CONFIG, SINT2)
    guest.write(COUNT, 1)
    guest.run(10_000_000)
    assert not guest.messages


def test_a_timer_without_sint_and_direct_mode_cannot_be_enabled(guest: Guest) -> None:
    guest.write(CONFIG, ENABLE | AUTO)
    assert guest.read(CONFIG) == AUTO
    guest.write(COUNT, MS)
    assert guest.read(CONFIG) == AUTO
    guest.run(10_000_000)
    assert not guest.messages


def test_four_timers_of_each_vp_are_apart() -> None:
    guest = Guest(2)
    for vp in range(2):
        for timer in range(TIMERS):
            guest.write(2 * timer + CONFIG, AUTO | SINT2, vp)
            guest.write(2 * timer + COUNT, (10 * vp + timer + 1) * MS, vp)
    guest.run(1_000_000_000)
    assert [(vp, message.index) for vp, _, message in guest.messages] == [
        (vp, n) for vp in range(2) for n in range(4)
    ]


def test_a_one_shot_message_waits_for_the_slot_and_holds_its_delivery_time(guest: Guest) -> None:
    guest.busy = True
    guest.write(CONFIG, AUTO | SINT2)
    guest.write(COUNT, MS)
    guest.run(5_000_000)
    assert guest.refused == [True], "asked for EOM once"
    assert guest.read(CONFIG) & ENABLE
    guest.timers.retry(0)
    guest.busy = False
    guest.run(2_000_000)
    guest.timers.retry(0)
    guest.timers.retry(0)
    ((_, _, message),) = guest.messages
    assert (message.expiration, message.delivery) == (MS, 7 * MS)
    assert not guest.read(CONFIG) & ENABLE


def test_a_periodic_timer_loses_the_tick_for_which_there_is_no_slot(guest: Guest) -> None:
    guest.busy = True
    guest.write(CONFIG, AUTO | PERIODIC | SINT2)
    guest.write(COUNT, MS)
    guest.run(2_000_000)
    guest.busy = False
    guest.timers.retry(0)
    assert not guest.messages
    guest.run(1_000_000)
    assert guest.refused == [False, False]
    assert len(guest.messages) == 1


def test_a_timer_set_anew_owes_nothing(guest: Guest) -> None:
    guest.busy = True
    guest.write(CONFIG, AUTO | SINT2)
    guest.write(COUNT, MS)
    guest.run(1_000_000)
    guest.write(COUNT, 0)
    guest.busy = False
    guest.timers.retry(0)
    assert not guest.messages


@pytest.mark.parametrize("vps", [1, 4])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_no_period_takes_more_than_the_loop_s_share(count: int, vps: int) -> None:
    guest = Guest(vps)
    for vp in range(vps):
        for timer in range(TIMERS):
            guest.write(2 * timer + CONFIG, AUTO | PERIODIC | DIRECT | VECTOR << 4, vp)
            guest.write(2 * timer + COUNT, count, vp)
    rang = guest.run(100_000_000)
    assert rang <= 100_000_000 // MIN_GAP + vps
    assert len(guest.interrupts) <= TIMERS * rang


def test_one_shot_timers_a_moment_ahead_are_bound_as_well(guest: Guest) -> None:
    guest.write(CONFIG, AUTO | DIRECT | VECTOR << 4)
    rang = 0
    for _ in range(1000):
        guest.write(COUNT, guest.ticks + 10)
        rang += guest.run(5_000)
    assert rang <= 5_000_000 // MIN_GAP + 1


@pytest.mark.parametrize("count", [1 << 63, (1 << 64) - 1])
def test_counts_up_to_the_last_bit_are_taken(guest: Guest, count: int) -> None:
    for config in (PERIODIC | AUTO | SINT2, AUTO | SINT2):
        guest.write(CONFIG, config)
        guest.write(COUNT, count)
        assert guest.read(COUNT) == count
        assert guest.read(CONFIG) & ENABLE
        guest.run(1_000_000)
    assert not guest.messages


@pytest.mark.parametrize("vector", [0, 15])
def test_a_direct_timer_without_a_vector_is_refused_and_nothing_changes(guest: Guest, vector: int) -> None:
    guest.write(COUNT, MS)
    guest.write(CONFIG, ENABLE | SINT2)
    with pytest.raises(GuestProtocolError, match="vector"):
        guest.write(CONFIG, ENABLE | DIRECT | vector << 4)
    assert guest.read(CONFIG) == ENABLE | SINT2
    guest.run(1_000_000)
    assert len(guest.messages) == 1


def test_direct_mode_is_refused_where_it_is_not_offered() -> None:
    guest = Guest(direct=False)
    with pytest.raises(GuestProtocolError, match="stimer-direct"):
        guest.write(CONFIG, DIRECT | VECTOR << 4)


def test_lazy_changes_nothing_and_reset_clears_all(guest: Guest) -> None:
    guest.write(COUNT, MS)
    guest.write(CONFIG, ENABLE | LAZY | SINT2)
    guest.run(1_000_000)
    assert len(guest.messages) == 1
    guest.timers.reset()
    assert guest.read(CONFIG) == guest.read(COUNT) == 0


def test_the_register_s_fields_lie_where_the_tlfs_has_them() -> None:
    config = StimerConfig(0)
    for name, low in (("enable", 0), ("periodic", 1), ("lazy", 2), ("auto_enable", 3), ("vector", 4), ("direct", 12)):
        assert int(config.replace(**{name: 1})) == 1 << low
    assert int(config.replace(sint=15)) == 15 << 16
    assert TimerMessage.SIZE == 24


def test_rearmed_timers_expire_by_the_shifted_clock(guest: Guest) -> None:
    guest.write(COUNT, MS)
    guest.write(CONFIG, ENABLE | SINT2)
    guest.now += 3_600_000_000_000
    guest.timers._clock.shift(3_600_000_000_000)
    guest.alarms[0] = None  # the alarm was replaced
    guest.timers.rearm()
    guest.run(999_900)
    assert not guest.messages
    guest.run(100)
    assert len(guest.messages) == 1
