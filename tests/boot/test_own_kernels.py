"""Kernels made from images/kernel.config: they boot without a warning, and their memory goes out, back and grows.

`make test-kdir` builds them and names their trees in PYVMM_TEST_TREES; pytest collects this file only then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.images.catalog import initrd_for
from pyvmm.images.kdir import open_kdir
from pyvmm.images.kernel_config import missing_options
from pyvmm.testbed.oracles.log_lines import KNOWN_WARNINGS
from tests.kernels.build import ROOT
from tests.support.booted import MIB, Booted
from tests.support.session_guest import check_share, in_session, serving

TREES = [ROOT / name for name in os.environ["PYVMM_TEST_TREES"].split(os.pathsep)]
GUESTS = [
    pytest.param((tree, engine, cpus), id=f"{tree.name}-{engine}-{cpus}cpu")
    for tree in TREES
    for engine, cpus in (("kernel", 2), ("user", 1))
]
BOOT = 512 * MIB
SMALL = 320 * MIB
MAX = 768 * MIB


@pytest.fixture(scope="module", params=GUESTS)
def guest(request: pytest.FixtureRequest) -> Iterator[Booted]:
    tree, engine, cpus = request.param
    with boot(tree, engine, cpus) as booted:
        yield booted


def boot(folder: Path, engine: str, cpus: int) -> Booted:
    tree = open_kdir(folder, features=("share",))
    initrd = initrd_for(tree.release, tree.select().modules)
    return Booted(kernel=tree.kernel, initrd=initrd, engine=engine, cpus=cpus, memory=BOOT, max_memory=MAX)


def test_the_configuration_lacks_nothing(guest: Booted) -> None:
    text = (guest.config.kernel.parent / ".config").read_text()
    assert missing_options(text) == []


def test_the_engine_runs_with_all_cpus_and_the_bus_works(guest: Booted) -> None:
    guest.wait_balloon_ready()
    assert guest.machine.engine.name == guest.config.engine
    assert int(guest.sh("nproc")) == guest.config.cpus
    for service in ("heartbeat", "shutdown", "timesync"):
        assert guest.vmbus.device(service)["state"] == "open"


def test_sessions_run_and_a_folder_is_shared(guest: Booted, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert in_session(guest, "echo out; exit 7") == (7, b"out\n", b"")
    with serving(guest, folder):
        check_share(guest, folder)
        in_session(guest, "umount /mnt")


def test_memory_goes_out_comes_back_and_grows(guest: Booted) -> None:
    guest.wait_balloon_ready()
    total = guest.guest.memory_total
    for size in (SMALL, BOOT, MAX, SMALL, BOOT):
        outcome = guest.balloon.resize(size)
        assert outcome.reached, outcome.reason
        assert guest.guest.memory_total == total + size - BOOT


def test_the_kernel_logs_no_warning(guest: Booted) -> None:
    """After all that; level 4 is KERN_WARNING, WARN() included, and lower is worse."""
    lines = guest.sh("dmesg -r | grep '^<[0-4]>'", check=False).splitlines()
    texts = [re.sub(r"^<\d>(\[ *[0-9.]+\] )?", "", line) for line in lines]  # the time needs CONFIG_PRINTK_TIME
    assert [text for text in texts if not text.startswith(KNOWN_WARNINGS)] == []


def test_it_reboots_and_powers_off(guest: Booted) -> None:
    with guest.expect_reset():
        guest.send("reboot")
    guest.wait_balloon_ready()
    guest.send("poweroff")
    assert guest.wait_end().kind == "poweroff"
