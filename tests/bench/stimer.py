"""How late the interrupts of synthetic timers come: a tiny guest on this machine's KVM notes the TSC in its handler.

    python -m tests.bench.stimer [--engine user|kernel] [--interrupts N] [--cpus N] [--busy]

Each line is a kind of timer: 1 ms one-shot as Linux uses them, and periodic of 1 ms and of 100 ns, which the user
engine bounds. The kernel engine needs a KVM with Hyper-V:

    pyvmm host exec -- python -m tests.bench.stimer --engine kernel

`--busy` adds a thread that computes, as a loop with much to do.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

from tests.support.timer_guest import TimerGuest

KINDS = (
    ("one-shot, direct", 10_000, {"one_shot": True}),
    ("one-shot, message", 10_000, {"one_shot": True, "direct": False}),
    ("periodic, direct", 10_000, {}),
    ("periodic, message", 10_000, {"direct": False}),
    ("periodic 100 ns, direct", 1, {}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure synthetic timers.")
    parser.add_argument("--engine", default="user", choices=("user", "kernel"))
    parser.add_argument("--interrupts", type=int, default=2000)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--busy", action="store_true")
    asked = parser.parse_args()
    if asked.busy:
        threading.Thread(target=_compute, daemon=True).start()
    print(f"{asked.engine} engine, {asked.cpus} vCPUs, {asked.interrupts} interrupts each; microseconds late")
    print(f"{'':24} {'least':>8} {'median':>8} {'90 %':>8} {'99 %':>8} {'most':>8} {'a second':>9} {'loop':>6}")
    for name, period, options in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            guest = TimerGuest(Path(folder), asked.engine, period, cpus=asked.cpus, **options)  # type: ignore[arg-type]
            with guest:
                guest.run(until=1)
                began, used = time.monotonic(), time.thread_time()
                guest.run(until=asked.interrupts)
                seconds, used = time.monotonic() - began, time.thread_time() - used
                late = sorted(
                    guest.lateness()[1 : asked.interrupts]
                )  # the first comes while the machine still starts
        marks = [late[0], *(late[int(len(late) * part)] for part in (0.5, 0.9, 0.99)), late[-1]]
        columns = " ".join(f"{mark / 10:8.1f}" for mark in marks) if period > 1 else " " * 44
        print(f"{name:24} {columns} {asked.interrupts / seconds:9.0f} {used / seconds:6.0%}", flush=True)


def _compute() -> None:
    while True:
        sum(range(1000))


if __name__ == "__main__":
    main()
