"""Endurance: memory, descriptors and latency at the start and at the end of long repetitions.

    python -m tests.bench.endurance                       everything
    python -m tests.bench.endurance reboots --times 50    one of: reboots, binds, resizes, synthetic

`reboots`, `binds` and `resizes` drive a real Linux guest (in the emulated host where the local KVM cannot run Linux):
the guest resets the machine, hv_balloon is unbound and bound again, the guest is resized to random sizes. `synthetic`
needs no KVM: FakeGuest opens hv-balloon, is resized, and leaves by CLOSE, by UNLOAD, or by a machine reset.

A figure is "start -> end": the mean of the first tenth (after a warm-up) and of the last tenth of the repetitions.
Resident memory is the process's without the guest's RAM. The exit status is 1 if something grew beyond its limit.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from tests.bench import boot

MIB = 1 << 20
GUEST_MIB = 256
HOST_MIB = 1536
TIMES = {"reboots": 200, "binds": 1000, "resizes": 2000, "synthetic": 10_000}
WARM_UP = 0.05
"""The part of the repetitions that fills caches and is not looked at."""
TENTH = 0.1
SEED = 20261129
MOST_GROWTH_KIB = 4096
"""KiB by which the process may have grown from the first tenth to the last: the allocator's own noise."""
MOST_SLOWER = 1.5
"""Ratio of the last tenth's latency to the first's. Boots in the emulated host differ by a fifth."""


@dataclass(slots=True)
class Sample:
    """One repetition, or a look at the process after it."""

    seconds: float
    own_kib: int
    descriptors: int
    threads: int
    objects: int


@dataclass(slots=True)
class Series:
    """The samples of one kind of repetition."""

    name: str
    settling: float = WARM_UP
    """The part of the repetitions in which latency may still change."""
    samples: list[Sample] = field(default_factory=list)

    def look(self, seconds: float, ram: tuple[int, int]) -> None:
        """Take a sample; `seconds` is what the repetition took, `ram` the address range of the guest's memory."""
        gc.collect()
        descriptors, objects = len(os.listdir("/proc/self/fd")), len(gc.get_objects())
        self.samples.append(Sample(seconds, own_kib(ram), descriptors, threading.active_count(), objects))

    def report(self) -> bool:
        """Print start and end of each figure; whether all stayed within their limits."""
        warm = self.samples[int(len(self.samples) * WARM_UP) :]
        part = max(1, int(len(warm) * TENTH))
        settled = self.samples[int(len(self.samples) * self.settling) :]
        first, last = warm[:part], warm[-part:]
        print(f"\n{self.name}: {len(self.samples)} samples")
        good = True
        rows: list[tuple[str, Callable[[Sample], float], str, Callable[[float, float], bool]]] = [
            ("latency, ms", lambda s: s.seconds * 1000, ".2f", lambda a, b: b <= a * MOST_SLOWER),
            ("own memory, KiB", lambda s: s.own_kib, ".0f", lambda a, b: b - a <= MOST_GROWTH_KIB),
            ("descriptors", lambda s: s.descriptors, ".1f", lambda a, b: b <= a + 1),
            ("threads", lambda s: s.threads, ".1f", lambda a, b: b <= a + 1),
            ("Python objects", lambda s: s.objects, ".0f", lambda a, b: b <= a * 1.05 + 500),
        ]
        for label, value, form, holds in rows:
            a, b = mean(map(value, settled[:part] if label.startswith("latency") else first)), mean(map(value, last))
            held = holds(a, b)
            good &= held
            print(f"  {label:16} {a:{form}} -> {b:{form}}{'' if held else '   GROWS'}", flush=True)
        tenths = [warm[at : at + part] for at in range(0, len(warm), part)]
        print("  by tenths, ms    " + " ".join(f"{mean(s.seconds for s in some) * 1000:.1f}" for some in tenths))
        return good


def own_kib(ram: tuple[int, int]) -> int:
    """Resident KiB of this process without mappings inside `ram`, from /proc/self/smaps."""
    total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(number, 16) for number in found.groups())
            inside = ram[0] <= start and end <= ram[1]
        elif line.startswith("Rss:") and not inside:
            total += int(line.split()[1])
    return total


def report_progress(name: str, done: int, of: int) -> None:
    """Say how far a series is, twenty times in all."""
    if done % max(1, of // 20) == 0:
        print(f"{name} {done}/{of}", file=sys.stderr, flush=True)


class RealGuest:
    """A Booted guest whose RAM's mapping is known, and a Series that counts its repetitions."""

    def __init__(self, engine: str, cpus: int, image: str) -> None:
        import ctypes

        from tests.support.booted import Booted

        self.guest = Booted(image, engine=engine, cpus=cpus, memory=GUEST_MIB * MIB, console=False)
        self.guest.__enter__()
        self.guest.wait_balloon_ready()
        views = [region.view for region in self.guest.machine.memory]
        starts = [(ctypes.addressof(ctypes.c_char.from_buffer(view)), len(view)) for view in views]
        self.ram = (min(start for start, _ in starts), max(start + size for start, size in starts))

    def repeat(
        self, name: str, times: int, step: Callable[[int], float | None], every: int = 1, **how: float
    ) -> bool:
        """Run `step` `times` times and sample after each `every`th; whether nothing grew.

        A sample's latency is the mean of the steps since the last one, or if `step` returns an amount of work, the
        time by that amount.
        """
        series = Series(name, **how)
        taken = work = 0.0
        for number in range(times):
            begun = time.monotonic()
            done = step(number)
            taken += time.monotonic() - begun
            work += 1 if done is None else done
            self.guest.events.clear()
            self.guest.balloon.outcomes.clear()
            if (number + 1) % every == 0:
                series.look(taken / max(work, 1), self.ram)
                taken = work = 0.0
            report_progress(name, number, times)
        return series.report()


def reboots(real: RealGuest, times: int, label: str) -> bool:
    """The guest reboots by itself; latency is from the command to the agent of the next life."""

    def step(number: int) -> None:
        with real.guest.expect_reset():
            real.guest.send("reboot -f" if number % 2 else "echo b >/proc/sysrq-trigger")
        real.guest.wait_balloon_ready()

    return real.repeat(f"reboots, {label}", times, step)


def binds(real: RealGuest, times: int, label: str) -> bool:
    """hv_balloon is unbound from its device and bound again, each time with memory out."""

    def step(number: int) -> None:
        real.guest.balloon.unbind()
        real.guest.balloon.bind()

    return real.repeat(f"unbind and bind, {label}", times, step, every=10)


def resizes(real: RealGuest, times: int, label: str) -> bool:
    """Targets between two thirds and all of the boot memory, in single MiB; latency is by MiB moved.

    It rises at first: the host's huge pages under the guest's RAM are split by what is given back, and then each page
    that the guest touches again is a page fault of its own. That is the host kernel's work and has an end.
    """
    chance = random.Random(SEED)
    last = GUEST_MIB

    def step(number: int) -> float:
        nonlocal last
        before, last = last, chance.randrange(GUEST_MIB * 2 // 3, GUEST_MIB + 1)
        real.guest.balloon.resize(last * MIB)
        return abs(last - before)

    return real.repeat(f"resizes, by MiB, {label}", times, step, every=10, settling=0.4)


def synthetic(times: int) -> bool:
    """Open, negotiate, out, back; leave by CLOSE, UNLOAD or machine reset."""
    from pyvmm.devices.balloon import BalloonDevice
    from tests.guest.test_balloon import FREE, PAGES, RAM, bind, serve
    from tests.support.balloon_guest import BalloonGuest
    from tests.support.fake_guest import FakeGuest

    guest = FakeGuest()
    guest._frames = [frame for frame in guest._frames if frame < FREE]
    ram = [(region.gpa, region.size) for region in guest.memory]
    device = BalloonDevice(ram, guest.memory.discard, clock=guest.loop.clock)
    series = Series("synthetic open, resize, close")
    for number in range(times):
        begun = time.monotonic()
        frames = list(guest._frames)
        linux = BalloonGuest(PAGES - FREE, first=FREE)
        driver = bind(guest, device, linux)
        device.set_target(RAM - (number % 8 + 1) * MIB)
        serve(driver, linux)
        device.set_target(RAM)
        serve(driver, linux)
        if number % 3 == 0:
            guest.close()
        elif number % 3 == 1:
            guest.unload()
        else:
            guest.reset()
        guest.advance(1.0)
        guest._frames = frames
        guest.partition.clear_flag(0, driver.offer.relid)
        taken = time.monotonic() - begun
        if number % 20 == 0:
            series.look(taken, (0, 0))
        report_progress("synthetic", number, times)
    return series.report()


def tasks(chosen: list[str], times: int | None) -> Iterator[tuple[str, int]]:
    """What to repeat, and how often."""
    for name in chosen or list(TIMES):
        yield name, times or TIMES[name]


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(TIMES)}; all of them by default")
    parser.add_argument("--times", type=int, help="repetitions of each; default " + str(TIMES))
    parser.add_argument("--engine", choices=["kernel", "user"], default="kernel")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--image", default="debian-6.1")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.what) - set(TIMES):
        parser.error(f"no such repetition: {', '.join(sorted(unknown))}")
    wanted = list(tasks(options.what, options.times))
    real = [(name, times) for name, times in wanted if name != "synthetic"]
    good = True
    if not options.here:
        for _, times in (each for each in wanted if each[0] == "synthetic"):
            good &= synthetic(times)
        if real:
            arguments = ["--here", "--engine", options.engine, "--cpus", str(options.cpus), "--image", options.image]
            arguments += [name for name, _ in real] + (["--times", str(options.times)] if options.times else [])
            good &= boot.run_where_linux_runs(arguments, __spec__.name, memory_mib=HOST_MIB) == 0
        return 0 if good else 1
    label = f"{options.image}, {options.engine} engine, {options.cpus} vCPU"
    runs = {"reboots": reboots, "binds": binds, "resizes": resizes}
    for name, times in real:
        guest = RealGuest(options.engine, options.cpus, options.image)
        good &= runs[name](guest, times, label)
        guest.guest.close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
