"""Linux uses the device of docs/adding-a-device.md: uio_hv_generic gives its channel to a program."""

from __future__ import annotations

import pytest

from pyvmm.errors import PyvmmError
from pyvmm.images.catalog import find_image
from pyvmm.machine.devices import DEVICES
from tests.support import mirror_example
from tests.support.booted import Booted
from tests.support.uio_guest import uio_initrd

IMAGE = "debian-6.12"  # before 6.10 uio_hv_generic takes only devices with monitor bits
DRIVER = "/sys/bus/vmbus/drivers/uio_hv_generic"


def test_linux_binds_talks_to_and_loses_a_device_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in mirror_example.ROW.items():
        monkeypatch.setitem(DEVICES, name, kind)
    Mirror = mirror_example.load().Mirror
    try:
        initrd = uio_initrd(find_image(IMAGE, build=False))
    except PyvmmError as error:
        pytest.skip(str(error))
    devices = ("hv-balloon", "shutdown", "mirror", "mirror")
    with Booted(IMAGE, initrd=initrd, engine="user", devices=devices) as guest:
        guest.sh(f"echo {Mirror.OFFER.type} >{DRIVER}/new_id")
        rows = [row for row in guest.machine.monitor.info_vmbus() if row["name"] == "mirror"]
        assert {row["id"] for row in rows} == {"mirror", "mirror1"}
        for row in rows:
            assert row["guid"] in guest.sh(f"ls {DRIVER}")
        assert guest.sh("uio_echo echo hello over 'the VMBus'").splitlines() == ["hello", "over", "the VMBus"]
        first = guest.machine.services.devices.find(Mirror)
        assert first is not None
        guest.until(lambda: guest.vmbus.device("mirror")["state"] != "open", 20, "closed channel")
        guest.machine.monitor.remove_device("mirror1")
        guest.until(lambda: "DEVICE_DELETED" in [name for name, _ in guest.events], 20, "the device's end")
        guest.machine.monitor.add_device("mirror", "third")
        guest.until(lambda: guest.sh(f"ls {DRIVER}").count(rows[1]["guid"]) == 1, 20, "the device again")
