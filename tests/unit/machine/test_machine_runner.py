"""A vCPU's thread: run, pause, stop, and what it does with errors. The vCPU is a fake that waits as KVM_RUN would."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyvmm.errors import HostError
from pyvmm.kvm import Hlt, Interrupted, IoOut
from pyvmm.machine.runner import VcpuThread, install_kick

LIMIT = 10.0  # seconds until a test gives up


class WaitingVcpu:
    """`run` returns what a test puts in, and Interrupted as soon as `immediate_exit` is set."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._exits: list[Any] = []
        self._immediate = False
        self.entries = 0

    @property
    def immediate_exit(self) -> bool:
        return self._immediate

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        with self._changed:
            self._immediate = value
            self._changed.notify_all()

    def put(self, exit: Any) -> None:
        with self._changed:
            self._exits.append(exit)
            self._changed.notify_all()

    def run(self) -> Any:
        with self._changed:
            self.entries += 1
            if not self._changed.wait_for(lambda: self._immediate or self._exits, LIMIT):
                raise AssertionError("the vCPU was not woken")
            if self._immediate:
                return Interrupted()
            exit = self._exits.pop(0)
            if isinstance(exit, BaseException):
                raise exit
            return exit


class Setup:
    def __init__(self) -> None:
        self.vcpu = WaitingVcpu()
        self.handled: list[Any] = []
        self.errors: list[BaseException] = []
        self.seen = threading.Semaphore(0)
        self.answer: Callable[[Any], bool] = lambda exit: True
        self.thread = VcpuThread(self.vcpu, 0, self._handle, self._failed)  # type: ignore[arg-type]

    def _handle(self, exit: Any) -> bool:
        self.handled.append(exit)
        result = self.answer(exit)
        self.seen.release()
        return result

    def _failed(self, error: BaseException) -> None:
        self.errors.append(error)
        self.seen.release()

    def wait(self) -> None:
        """Until one more exit was handled, or an error told."""
        assert self.seen.acquire(timeout=LIMIT)


@pytest.fixture
def setup() -> Iterator[Setup]:
    install_kick()
    made = Setup()
    yield made
    made.thread.request(stop=True)
    made.thread.join()


OUT = IoOut(0x80, 1, 1, b"\1")


def test_exits_are_handled_and_counted(setup: Setup) -> None:
    setup.thread.start()
    setup.vcpu.put(OUT)
    setup.vcpu.put(Hlt())
    setup.wait()
    setup.wait()
    assert setup.handled == [OUT, Hlt()]
    assert setup.thread.exits == {"IoOut": 1, "Hlt": 1}


def test_exits_that_the_vcpu_answered_itself_are_counted_once(setup: Setup) -> None:
    setup.vcpu.answered.update(IoIn=3, MmioWrite=1)
    setup.thread.start()
    setup.vcpu.put(OUT)
    setup.wait()
    assert (setup.thread.exits["IoIn"], setup.thread.exits["MmioWrite"], setup.vcpu.answered) == (3, 1, {})


def test_stop_ends_a_thread_that_is_in_the_guest(setup: Setup) -> None:
    setup.thread.start()
    setup.thread.request(stop=True)
    setup.thread.join()
    assert setup.handled == []


def test_a_handler_that_says_no_ends_the_thread(setup: Setup) -> None:
    setup.answer = lambda exit: False
    setup.thread.start()
    setup.vcpu.put(OUT)
    setup.thread.join()
    assert setup.handled == [OUT]


def test_a_paused_vcpu_stays_out_of_the_guest_until_resumed(setup: Setup) -> None:
    setup.thread.start()
    setup.thread.request(pause=True)
    setup.thread.wait_parked()
    entries = setup.vcpu.entries
    setup.vcpu.put(OUT)
    assert setup.vcpu.entries == entries
    assert setup.handled == []
    setup.thread.request(pause=False)
    setup.wait()
    assert setup.handled == [OUT]


def test_pausing_before_the_start_holds_the_first_entry_back(setup: Setup) -> None:
    setup.thread.request(pause=True)
    setup.thread.start()
    setup.thread.wait_parked()
    assert setup.vcpu.entries == 1  # in and out at once, to complete what may be half done
    assert setup.vcpu.immediate_exit


def test_a_paused_thread_can_be_stopped(setup: Setup) -> None:
    setup.thread.start()
    setup.thread.request(pause=True)
    setup.thread.wait_parked()
    setup.thread.request(stop=True)
    setup.thread.join()


def test_pause_and_resume_many_times_lose_no_exit(setup: Setup) -> None:
    setup.thread.start()
    for n in range(20):
        setup.thread.request(pause=True)
        setup.thread.wait_parked()
        setup.vcpu.put(IoOut(n, 1, 1, b"\0"))
        setup.thread.request(pause=False)
        setup.wait()
    assert [exit.port for exit in setup.handled] == list(range(20))


@pytest.mark.parametrize("error", [HostError("KVM_RUN: broken"), ValueError("our bug")])
def test_an_error_from_kvm_is_reported_and_ends_the_thread(setup: Setup, error: Exception) -> None:
    setup.thread.start()
    setup.vcpu.put(error)
    setup.wait()
    setup.thread.join()
    assert setup.errors == [error]


def test_an_error_in_a_handler_is_reported_too(setup: Setup) -> None:
    def fail(exit: Any) -> bool:
        raise HostError("device broke")

    setup.answer = fail
    setup.thread.start()
    setup.vcpu.put(OUT)
    setup.thread.join()
    assert [str(e) for e in setup.errors] == ["device broke"]
