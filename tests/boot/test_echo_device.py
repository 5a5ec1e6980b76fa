"""A program in Linux drives the echo device raw, over uio_hv_generic: rings, shared memory, sub-channels, removal."""

from __future__ import annotations

import pytest

from pyvmm.errors import PyvmmError
from pyvmm.images.catalog import find_image
from pyvmm.machine.config import DEFAULT_DEVICES
from tests.support.booted import Booted
from tests.support.uio_guest import uio_initrd


def states(guest: Booted, device: str) -> list[str]:
    """The states of the device's channels."""
    return [row["state"] for row in guest.machine.monitor.info_vmbus() if row["name"] == device]


@pytest.mark.parametrize(
    ("image", "engine", "cpus", "device"),
    [("debian-6.12", "user", 2, "echo"), ("debian-6.1", "kernel", 1, "echo-monitored")],
)
def test_a_program_drives_the_echo_device(image: str, engine: str, cpus: int, device: str) -> None:
    try:
        initrd = uio_initrd(find_image(image, build=False))
    except PyvmmError as error:
        pytest.skip(str(error))
    devices = (*DEFAULT_DEVICES, device)
    with Booted(image, initrd=initrd, engine=engine, cpus=cpus, devices=devices) as guest:
        uio = "uio_echo" if device == "echo" else "MONITORED=1 uio_echo"
        assert guest.sh(f"{uio} echo hello over 'the VMBus'").splitlines() == ["hello", "over", "the VMBus"]
        for command in ("sink 2000 100", "source 2000 100", "pingpong 100 1000", "sink 300 20000"):
            assert " packets of " in guest.sh(f"{uio} {command}")
        assert guest.sh(f"{uio} invert 40") == "invert: 163840 bytes\n"
        assert guest.sh(f"{uio} pages 100000").startswith("pages: 100000 bytes")
        guest.send(f"{uio} channels 2 100")
        guest.until(lambda: states(guest, device) == ["open"] * 3, 30, "open sub-channels")
        guest.sh("killall uio_echo")
        guest.until(lambda: guest.vmbus.device(device)["state"] == "offered", 20, "closed channel")
        # Removed under load, and back.
        guest.send(f"while {uio} pingpong 100 64 >/tmp/log 2>&1; do :; done")
        before = guest.vmbus.device(device).get("packets-in", 0)
        guest.until(lambda: guest.vmbus.device(device).get("packets-in", 0) > before, 20, "traffic")
        guest.machine.monitor.remove_device(device)
        guest.until(lambda: "DEVICE_DELETED" in [name for name, _ in guest.events], 20, "the device's end")
        guest.machine.monitor.add_device(device, "again")
        guest.until(lambda: guest.vmbus.device(device)["state"] == "offered", 20, "the device again")
        number = guest.sh("sleep 1; ls /sys/class/uio").split()[-1].removeprefix("uio")
        assert guest.sh(f"{uio} -u {number} echo again") == "again\n"
