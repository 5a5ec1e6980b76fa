"""Messages a second over the echo device, each way and there and back.

    python -m tests.bench.echo [--packets N] [--runs N] [--image debian-6.12] [--only host|linux]

*host*: the host's side alone, what a packet costs pyvmm: FakeGuest fills and empties the rings, outside of the time.
*linux*: docs/examples/uio_echo.c in Linux, with each engine, also as `echo-monitored` by the monitor page; mostly in
the emulated host, where the guest's own part is many times slower than on hardware.
"""

from __future__ import annotations

import argparse
import re
import sys
import time

from pyvmm.devices.echo import Echo
from pyvmm.devices.echo.protocol import MAGIC, Command, Request
from tests.bench.boot import run_where_linux_runs
from tests.support.fake_guest import FakeGuest

SIZES = (64, 1024, 4000)
WAYS = ("sink", "source", "pingpong")


def host(packets: int) -> None:
    """Measure the host's side alone."""
    print(f"{'host alone':<28}" + "".join(f"{f'{way} {size}':>16}" for way in WAYS[:2] for size in SIZES))
    row = [max(measure(packets, size) for _ in range(3)) for measure in (_sink, _source) for size in SIZES]
    print(f"{'packets a second':<28}" + "".join(f"{each:>16,.0f}" for each in row))


def _sink(packets: int, size: int) -> float:
    guest = FakeGuest(memory_mib=16)
    driver = guest.open(Echo(), ring_pages=257)
    driver.send(Request(MAGIC, Command.SINK, 1 << 30).build())
    spent, done = 0.0, 0
    while done < packets:
        while driver.outgoing.put(bytes(size)) is not None:
            done += 1
        start = time.perf_counter()
        driver.signal()
        guest.loop.run()
        spent += time.perf_counter() - start
    return done / spent


def _source(packets: int, size: int) -> float:
    guest = FakeGuest(memory_mib=16)
    driver = guest.open(Echo(), ring_pages=257)
    driver.outgoing.put(Request(MAGIC, Command.SOURCE, packets, size).build())
    spent = 0.0
    while driver.channel.packets_out < packets:
        start = time.perf_counter()
        driver.signal()
        guest.loop.run()
        spent += time.perf_counter() - start
        while driver.incoming.take() is not None:
            pass
    return packets / spent


def linux(image: str, packets: int, runs: int) -> None:
    """Measure a program in Linux."""
    from pyvmm.images.catalog import find_image
    from pyvmm.machine.config import DEFAULT_DEVICES
    from tests.support.booted import Booted
    from tests.support.uio_guest import uio_initrd

    found = find_image(image, build=False)
    initrd = uio_initrd(found, build=False)
    sizes = (SIZES[0], SIZES[-1])
    print(f"{image:<28}" + "".join(f"{f'{way} {size}':>16}" for way in WAYS for size in sizes), flush=True)
    newer = tuple(map(int, image.removeprefix("debian-").split("."))) >= (6, 10)
    for engine in ("user", "kernel"):
        for device in ("echo", "echo-monitored") if newer else ("echo-monitored",):
            prefix = "MONITORED=1 " if device != "echo" else ""
            with Booted(image, initrd=initrd, engine=engine, devices=(*DEFAULT_DEVICES, device)) as guest:
                row = [
                    max(_rate(guest.sh(f"{prefix}uio_echo {way} {packets} {size}")) for _ in range(runs))
                    for way in WAYS
                    for size in sizes
                ]
            print(f"{f'{engine}, {device}':<28}" + "".join(f"{each:>16,.0f}" for each in row), flush=True)


def _rate(line: str) -> float:
    return float(re.findall(r"([0-9]+) a second", line)[0])


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3, help="in Linux, of which the best counts")
    parser.add_argument("--image", default="debian-6.12")
    parser.add_argument("--only", choices=("host", "linux"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the inner side of linux
    options = parser.parse_args()
    if options.here:
        linux(options.image, options.packets, options.runs)
        return 0
    if options.only != "linux":
        host(20 * options.packets)
    if options.only == "host":
        return 0
    from pyvmm.images.catalog import find_image
    from tests.support.uio_guest import uio_initrd

    uio_initrd(find_image(options.image))
    arguments = ["--here", "--packets", str(options.packets), "--image", options.image, "--runs", str(options.runs)]
    return run_where_linux_runs(arguments, "tests.bench.echo")


if __name__ == "__main__":
    sys.exit(main())
