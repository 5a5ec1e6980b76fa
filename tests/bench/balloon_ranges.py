"""How many ranges a second the balloon's bookkeeping takes: `python tests/bench/balloon_ranges.py`.

A synthetic guest of 1 TiB, no KVM and no real discards: this is the host's own work for each message, parsing and
choosing included. Memory goes out, comes back and goes out again. Shown are CPU time, ranges a second, the bytes the
books take, and the share of the time that is ours while a large guest gives up 230 GB a minute (what QEMU's author
measured). Where only a part of the TiB is played, the figures for all of it are extrapolated, and marked so.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from time import process_time

from pyvmm.devices.balloon.ledger import Ledger
from pyvmm.devices.balloon.protocol import RANGES_LIMIT, BalloonResponse, UnballoonRequest
from pyvmm.devices.balloon.ranges import PageRange

GIB = 1 << 18  # pages
TIB = 1 << 28
HYPER_V_RATE = 230e9 / 60 / 2**30  # GiB a second


def batches(ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    for at in range(0, len(ranges), RANGES_LIMIT):
        yield BalloonResponse(0, True, ranges[at : at + RANGES_LIMIT]).build()


def take_out(ledger: Ledger, messages: list[bytes]) -> float:
    start = process_time()
    for message in messages:
        ledger.record_released(BalloonResponse.parse(message).ranges)
    return process_time() - start


def give_back(ledger: Ledger) -> float:
    start = process_time()
    while chosen := ledger.choose(1 << 18, 16 * RANGES_LIMIT):
        for at in range(0, len(chosen), RANGES_LIMIT):
            part = chosen[at : at + RANGES_LIMIT]
            ledger.give_back(part)
            UnballoonRequest(0, True, list(part)).build()
    return process_time() - start


def run(name: str, ranges: list[tuple[int, int]], *, part_of: int = 0) -> None:
    """`part_of`: pages that this is a sample of; the figures are shown for them too."""
    pages = sum(count for _, count in ranges)
    ledger = Ledger([PageRange(0, TIB)], lambda gpa, size: None)
    messages = list(batches(ranges))
    out = take_out(ledger, messages)
    assert ledger.removed_pages == pages
    size = ledger.removed_both.size_bytes
    back = give_back(ledger)
    assert ledger.removed_pages == 0
    again = take_out(ledger, messages)
    print(f"{name}: {len(ranges)} ranges, {pages / GIB:.1f} GiB")
    scale = part_of / pages
    for what, took in (("out", out), ("back", back), ("out again", again)):
        share = HYPER_V_RATE / (pages / GIB / took)
        print(
            f"  {what:9} {took:7.3f} s  {len(ranges) / took / 1e6:6.2f} M ranges/s  {pages / GIB / took:9.1f} GiB/s"
            f"  {share:7.2%} of the time at 230 GB/min"
            + (f"  (extrapolated to {part_of / GIB:.0f} GiB: {took * scale:.0f} s)" if part_of else "")
        )
    print(
        f"  books     {size / 1e6:7.2f} MB, {size / (pages / TIB) / 1e6:.0f} MB a TiB let go of"
        + (" (extrapolated)" if part_of else "")
    )


if __name__ == "__main__":
    run("1 TiB as 2 MiB", [(at, 512) for at in range(0, TIB, 512)])
    run("every other 4 KiB of 8 GiB", [(at, 1) for at in range(0, 8 * GIB, 2)], part_of=TIB // 2)
    scattered = Random(1).sample(range(8 * GIB), GIB)
    run("1 GiB of single pages at random in 8 GiB", [(page, 1) for page in scattered])
    run("200 GB as 2 MiB", [(at, 512) for at in range(0, round(200e9) >> 12 >> 9 << 9, 512)])
