"""A target on seeded mutations of its corpus, where there is no atheris. Not guided by coverage."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz.feed import EDGES

LONGEST = 2048


def mutate(data: bytes, pool: list[bytes], random: Random) -> bytes:
    """A few changes: bits, bytes, edges of number ranges, pieces cut, doubled or taken from another input."""
    made = bytearray(data)
    for _ in range(random.randint(1, 5)):
        at = random.randrange(len(made) + 1)
        match random.randrange(7):
            case 0 if at < len(made):
                made[at] ^= 1 << random.randrange(8)
            case 1 if at < len(made):
                made[at] = random.randrange(256)
            case 2:
                size = random.choice((1, 2, 4, 8))
                made[at : at + size] = (random.choice(EDGES) & (1 << 8 * size) - 1).to_bytes(size, "little")
            case 3:
                del made[at : at + random.randint(1, 16)]
            case 4:
                made[at:at] = made[at : at + random.randint(1, 64)]
            case 5:
                other = random.choice(pool)
                start = random.randrange(len(other) + 1)
                made[at:at] = other[start : start + random.randint(1, 64)]
            case _:
                made[at:at] = random.randbytes(random.randint(1, 16))
    return bytes(made[:LONGEST])


def fuzz(
    name: str,
    target: Callable[[bytes], None],
    folders: list[Path],
    *,
    seconds: float,
    seed: int,
    artifact: str,
    slow: int,
    memory_mib: int,
) -> None:
    """Play the inputs in `folders`, then mutations of them. What ends the target is written to a file and raised."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"one input took more than {slow} s")

    resource.setrlimit(resource.RLIMIT_AS, (2 * memory_mib << 20, 2 * memory_mib << 20))
    signal.signal(signal.SIGALRM, late)
    random = Random(f"{name} {seed}")
    pool = [path.read_bytes() for folder in folders for path in sorted(folder.glob("*"))] or [b""]
    first = list(pool)
    runs, began, data = 0, time.monotonic(), b""
    try:
        while time.monotonic() - began < seconds:
            data = first[runs] if runs < len(first) else mutate(random.choice(pool), pool, random)
            signal.alarm(slow)
            target(data)
            runs += 1
            if runs % 64 == 0:
                pool = [*pool, data][-512:]
    except BaseException:
        Path(artifact + "crash").write_bytes(data)
        raise
    finally:
        signal.alarm(0)
        print(f"Done {runs} runs in {time.monotonic() - began:.0f} second(s)", flush=True)
