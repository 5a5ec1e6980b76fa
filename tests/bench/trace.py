"""What tracing costs: an event off and on, for each kind of sink, and a guest that makes 10,000 exits a second.

    python -m tests.bench.trace [--events N] [--seconds S]

`call` is what the thread that traces pays for an event (a vCPU's, so the guest waits for it); `all` is the processor
time of the whole process for it, the writer's thread or the loop included. Ratios are to an event that is off, a
guarded `if trace.x.on:`.

The guest is a loop of port writes on any /dev/kvm, padded to some 10,000 exits a second, each of them an event. How
far it gets with tracing on against off is what a guest notices. Runs are interleaved; aim: 0.95 or more.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from pyvmm import trace
from pyvmm.control.observe import TraceStream
from pyvmm.errors import HostError
from pyvmm.kvm import Exit, Interrupted, IoOut, Kvm, Vcpu
from pyvmm.loop import Loop
from pyvmm.machine.runner import VcpuThread, install_kick
from pyvmm.trace.writer import FileSink

WANTED_RATE = 10_000
RAM = 0x10000
ENTRY = 0x1000
SINKS = ("text", "json", "chrome", "socket")
EXIT = IoOut(0x3F8, 1, 1, b"x")

happened = trace.event("bench.happened", "vcpu {vcpu}: {exit} at {address:#x} {kind}")


class Running:
    """A loop in a thread, with a client of the trace stream that takes all it gets."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.received = 0
        self._stream: TraceStream | None = None
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self.loop.post(self._subscribe)
        self._thread.start()
        while self._stream is None:
            time.sleep(0.001)

    def _subscribe(self) -> None:
        self._stream = TraceStream(self.loop, lambda: True, self._send, pattern="bench.*")

    def _send(self, message: bytes) -> None:
        self.received += len(message)

    def close(self) -> None:
        assert self._stream is not None
        self.loop.post(self._stream.close)
        self.loop.stop()
        self._thread.join()
        self.loop.close()


@contextmanager
def tracing(kind: str) -> Iterator[None]:
    """Events of `bench.*` go to a file of that format, or to a client; nowhere for `off`."""
    if kind == "off":
        yield
    elif kind == "socket":
        running = Running()
        yield
        running.close()
    else:
        with tempfile.TemporaryDirectory() as folder:
            sink = FileSink(Path(folder) / "t", kind)
            trace.subscribe("bench.*", sink)
            yield
            trace.unsubscribe(sink)
            sink.close()


def emit(count: int, rate: int | None = None) -> None:
    """Trace `count` events as call sites do; `rate` a second, or as fast as it goes."""
    pace = 100
    begin = time.perf_counter()
    for number in range(count):
        if happened.on:
            happened(0, EXIT, number, "write")
        if rate is not None and number % pace == pace - 1:
            left = begin + (number + 1) / rate - time.perf_counter()
            if left > 0:
                time.sleep(left)


def event_off() -> float:
    """Seconds for a guarded event without subscribers: the least of some turns, without the loop around it."""

    def turn(guarded: bool) -> float:
        numbers = range(200_000)
        begin = time.perf_counter()
        if guarded:
            for number in numbers:
                if happened.on:
                    happened(0, EXIT, number, "write")
        else:
            for _ in numbers:
                pass
        return (time.perf_counter() - begin) / len(numbers)

    return max(1e-9, min(turn(True) for _ in range(9)) - min(turn(False) for _ in range(9)))


def per_event(kind: str, count: int) -> tuple[float, float]:
    """Seconds at the call and of processor time in all, for an event at WANTED_RATE a second."""
    with tracing(kind):
        cpu = time.process_time()
        thread = time.thread_time()
        emit(count, WANTED_RATE)
        mine = time.thread_time() - thread
    return mine / count, (time.process_time() - cpu) / count


class PortWriter:
    """A guest that writes a port again and again, `spin` turns of an empty loop in between."""

    def __init__(self, kvm: Kvm, spin: int) -> None:
        # again: mov cx, spin; wait: loop wait; out 0x10, al; jmp again
        code = b"\xb9" + max(1, spin).to_bytes(2, "little") + b"\xe2\xfe\xe6\x10\xeb\xf7"
        self._ram = mmap.mmap(-1, RAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._ram[ENTRY : ENTRY + len(code)] = code
        self._pin = ctypes.c_char.from_buffer(self._ram)
        self._vm = kvm.create_vm()
        self._vm.set_memory(0, 0, RAM, ctypes.addressof(self._pin))
        self.vcpu: Vcpu = self._vm.create_vcpu(0)
        sregs, regs = self.vcpu.sregs, self.vcpu.regs
        sregs.cs.base = sregs.cs.selector = 0
        regs.rip, regs.rflags = ENTRY, 2
        self.vcpu.sregs, self.vcpu.regs = sregs, regs
        self.exits = 0

    def handle(self, exit: Exit) -> bool:
        """What the machine's own handler does about an exit that no device handles: trace and count it."""
        if not isinstance(exit, Interrupted):
            self.exits += 1
            if happened.on:
                happened(0, exit, self.exits, "write")
        return True

    def rate(self, seconds: float) -> float:
        """Exits a second, for a while."""
        failures: list[BaseException] = []
        thread = VcpuThread(self.vcpu, 0, self.handle, failures.append)
        thread.start()
        time.sleep(0.1)
        before, begin = self.exits, time.perf_counter()
        time.sleep(seconds)
        done = (self.exits - before) / (time.perf_counter() - begin)
        thread.request(stop=True)
        thread.join()
        if failures:
            raise HostError(str(failures[0]))
        return done

    def close(self) -> None:
        self.vcpu.close()
        self._vm.close()


def paced_guest(kvm: Kvm) -> tuple[PortWriter, int]:
    """A guest of about WANTED_RATE exits a second, or as many as this KVM makes; and its spin."""
    spin = 1
    for _ in range(8):
        guest = PortWriter(kvm, spin)
        rate = guest.rate(0.3)
        if rate <= WANTED_RATE * 1.15 or spin >= 0xFFFF:
            return guest, spin
        guest.close()
        spin = min(0xFFFF, max(spin + 1, int(spin * rate / WANTED_RATE)))
    return PortWriter(kvm, spin), spin


def guest_ratios(kvm: Kvm, seconds: float, rounds: int) -> Callable[[], None]:
    """Measure; the function prints it."""
    guest, spin = paced_guest(kvm)
    rates: dict[str, list[float]] = {kind: [] for kind in ("off", *SINKS)}
    for _ in range(rounds):
        for kind, found in rates.items():
            with tracing(kind):
                found.append(guest.rate(seconds))
    guest.close()
    off = median(rates["off"])

    def show() -> None:
        print(f"\na guest of {off:,.0f} exits a second (spin {spin}), each an event; on / off, {rounds} rounds:")
        for kind in SINKS:
            ratios = [on / base for on, base in zip(rates[kind], rates["off"], strict=True)]
            print(f"  {kind:<8} {median(ratios):5.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")

    return show


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.setswitchinterval(0.001)
    install_kick()

    off = event_off()
    print(f"an event off: {off * 1e9:.0f} ns")
    print(f"at {WANTED_RATE:,} events a second:      call   ratio       all   ratio   of a processor")
    base_call, base_all = per_event("off", options.events)
    for kind in SINKS:
        call, everything = per_event(kind, options.events)
        call, everything = max(0.0, call - base_call), max(0.0, everything - base_all)
        print(
            f"  {kind:<22} {call * 1e6:8.2f} us {call / off:6.0f} {everything * 1e6:7.2f} us {everything / off:6.0f}"
            f"   {everything * WANTED_RATE:6.1%}"
        )
    if not os.path.exists("/dev/kvm"):
        print("no /dev/kvm: the guest's ratio is left out")
        return 0
    try:
        with Kvm() as kvm:
            guest_ratios(kvm, options.seconds, options.rounds)()
    except HostError as error:
        print(f"the guest's ratio is left out: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
