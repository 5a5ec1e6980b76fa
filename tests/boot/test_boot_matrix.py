"""Stock Debian guests on both engines, with one and two vCPUs: what they see, and memory out and back.

Each combination boots once; its tests run in the order of this file and leave the guest as they found it, but for
the last, which powers it off.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.booted import MIB, Booted

MATRIX = [
    pytest.param((image, engine, cpus), id=f"{image}-{engine}-{cpus}cpu")
    for image in ("debian-6.1", "debian-6.12")
    for engine in ("kernel", "user")
    for cpus in (1, 2)
]


@pytest.fixture(scope="module", params=MATRIX)
def guest(request: pytest.FixtureRequest) -> Iterator[Booted]:
    image, engine, cpus = request.param
    with Booted(image, engine=engine, cpus=cpus) as booted:
        yield booted


def test_linux_detects_hyper_v(guest: Booted) -> None:
    assert "Hypervisor detected: Microsoft Hyper-V" in guest.dmesg()
