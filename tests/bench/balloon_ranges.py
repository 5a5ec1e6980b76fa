"""How many ranges a second the balloon's bookkeeping takes: `python tests/bench/balloon_ranges.py`.

No KVM and no real discards: this is the host's own work for each message, parsing and choosing included. Shown are
ranges a second (CPU time), GiB a second, and the bytes the books take.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from time import process_time

from devices.balloon.ledger import Ledger
from devices.balloon.protocol import RANGES_LIMIT, BalloonResponse, UnballoonRequest
from devices.balloon.ranges import PageRange

TIB = 1 << 28  # pages
HYPER_V_RATE = 230 / 60  # GiB a second, what a large Windows guest gives up


def batches(ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    for at in range(0, len(ranges), RANGES_LIMIT):
        yield BalloonResponse(0, True, ranges[at : at + RANGES_LIMIT]).build()


def run(name: str, ranges: list[tuple[int, int]]) -> None:
    pages = sum(count for _, count in ranges)
    ledger = Ledger([PageRange(0, TIB)], lambda gpa, size: None)
    messages = list(batches(ranges))
    start = process_time()
    for message in messages:
        ledger.book(BalloonResponse.parse(message).ranges)
    out = process_time() - start
    assert ledger.removed_pages == pages
    size = ledger.removed_both.size_bytes
    start = process_time()
    while chosen := ledger.choose(1 << 18, 16 * RANGES_LIMIT):
        for at in range(0, len(chosen), RANGES_LIMIT):
            part = chosen[at : at + RANGES_LIMIT]
            ledger.give_back(part)
            UnballoonRequest(0, True, list(part)).build()
    back = process_time() - start
    for what, took in (("out", out), ("back", back)):
        gib = (pages >> 18) / took
        share = HYPER_V_RATE / gib
        print(
            f"{name:26} {what:4} {len(ranges) / took / 1e6:6.2f} M ranges/s {gib:9.1f} GiB/s"
            f"  {share:7.2%} of the time at 230 GB/min"
        )
    print(f"{name:26} books {size / 1e6:.2f} MB for {pages / 2**18:.1f} GiB")


if __name__ == "__main__":
    run("1 TiB as 2 MiB", [(at, 512) for at in range(0, TIB, 512)])
    run("every other 4 KiB of 8 GiB", [(at, 1) for at in range(0, 1 << 21, 2)])
    scattered = Random(1).sample(range(1 << 21), 1 << 18)
    run("1 GiB at random in 8 GiB", [(page, 1) for page in scattered])
    run("200 GiB as 2 MiB", [(at, 512) for at in range(0, 200 << 18, 512)])
