"""Linux uses the device of docs/adding-a-device.md: uio_hv_generic gives its channel to a program."""

from __future__ import annotations

import pytest

from pyvmm.errors import PyvmmError
from pyvmm.images.catalog import find_image
from pyvmm.machine.devices import DEVICES
from tests.support import echo_example
from tests.support.booted import Booted

IMAGE = "debian-6.12"  # before 6.10 uio_hv_generic takes only devices with monitor bits
DRIVER = "/sys/bus/vmbus/drivers/uio_hv_generic"


@pytest.mark.parametrize("engine", ["user", "kernel"])
def test_linux_binds_talks_to_and_loses_a_device_of_ones_own(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in echo_example.ROW.items():
        monkeypatch.setitem(DEVICES, name, kind)
    Echo = echo_example.load().Echo
    try:
        initrd = echo_example.echo_initrd(find_image(IMAGE, build=False))
    except PyvmmError as error:
        pytest.skip(str(error))
    devices = ("hv-balloon", "shutdown", "echo", "echo")
    with Booted(IMAGE, initrd=initrd, engine=engine, devices=devices) as guest:
        guest.sh("insmod /lib/modules/uio.ko; insmod /lib/modules/uio_hv_generic.ko")
        guest.sh(f"echo {Echo.OFFER.type} >{DRIVER}/new_id")
        rows = [row for row in guest.machine.monitor.info_vmbus() if row["name"] == "echo"]
        assert {row["id"] for row in rows} == {"echo", "echo1"}
        for row in rows:
            assert row["guid"] in guest.sh(f"ls {DRIVER}")
        assert guest.sh("echo_guest hello over 'the VMBus'").splitlines() == ["hello", "over", "the VMBus"]
        first = guest.machine.services.devices.find(Echo)
        assert first is not None
        guest.until(lambda: guest.vmbus.device("echo")["state"] != "open", 20, "closed channel")
        guest.machine.monitor.remove_device("echo1")
        guest.until(lambda: "DEVICE_DELETED" in [name for name, _ in guest.events], 20, "the device's end")
        guest.machine.monitor.add_device("echo", "third")
        guest.until(lambda: guest.sh(f"ls {DRIVER}").count(rows[1]["guid"]) == 1, 20, "the device again")
