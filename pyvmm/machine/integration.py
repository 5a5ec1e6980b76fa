"""What clients ask of the guest's integration services: values (KVP), freezing (VSS), keys. On the loop's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pyvmm.errors import ConfigError, NotFoundError, WireError
from pyvmm.qapi import CardAddresses, GuestFacts, KvpInfo
from pyvmm.vmbus.device import VmbusDevice

if TYPE_CHECKING:
    from pyvmm.devices.fcopy import FileCopy
    from pyvmm.devices.kvp import Kvp
    from pyvmm.devices.netvsc import Netvsc
    from pyvmm.machine.device_set import DeviceSet

D = TypeVar("D", bound=VmbusDevice)

CARD_NOT_FOUND = 0x80041002
"""Status of SET_IP_INFO (HV_GUID_NOTFOUND)."""


class Integration:
    """The integration services of one machine's devices; each may be absent."""

    def __init__(self, devices: DeviceSet) -> None:
        self._devices = devices

    def _need(self, kind: type[D], name: str) -> D:
        found = self._devices.find(kind)
        if found is None:
            raise ConfigError(f"the machine has no device {name}: `pyvmm run --device {name}` gives it one")
        return found

    # KVP

    def _kvp(self) -> Kvp:
        from pyvmm.devices.kvp import Kvp

        return self._need(Kvp, "kvp")

    def kvp_info(self) -> KvpInfo:
        """Return all values. Raises ConfigError without the device."""
        kvp = self._kvp()
        return {
            "ready": kvp.ready,
            "auto": dict(kvp.auto),
            "guest": dict(kvp.guest),
            "external": dict(kvp.external),
            "refused": {key: f"{status:#x}" for key, status in kvp.refused.items()},
        }

    def kvp_set(self, key: str, value: str | None) -> None:
        """Set a value in the guest; None deletes it. Raises ConfigError."""
        if value is None:
            self._kvp().delete(key)
        else:
            self._kvp().set(key, value)

    def addresses(self, card: str, done: Callable[[CardAddresses | str], object]) -> None:
        """Ask for a network card's addresses; `done` gets them, or why not. Raises ConfigError, NotFoundError."""
        from pyvmm.devices.kvp.addresses import Addresses, build_get
        from pyvmm.devices.kvp.protocol import Operation

        def answered(body: bytes | None, status: int) -> None:
            if body is None or status:
                done(_trouble(status))
                return
            try:
                found = Addresses.parse(body)
            except WireError as error:
                done(str(error))
                return
            done(
                {
                    "card": card,
                    "dhcp": found.dhcp,
                    "addresses": found.addresses,
                    "gateways": found.gateways,
                    "dns": found.dns,
                }
            )

        self._kvp().request(Operation.GET_IP_INFO, build_get(self._card(card).card.address), answered)

    def set_addresses(self, card: str, wanted: CardAddresses, done: Callable[[str], object]) -> None:
        """Set a network card's addresses; `done` gets "" or why not. Raises ConfigError, NotFoundError."""
        from pyvmm.devices.kvp.addresses import Addresses
        from pyvmm.devices.kvp.protocol import Operation

        addresses = Addresses(wanted["dhcp"], wanted["addresses"], wanted["gateways"], wanted["dns"])
        addresses.check()
        body = addresses.build_set(self._card(card).offer.instance)

        def answered(body: bytes | None, status: int) -> None:
            done(_trouble(status) if body is None or status else "")

        self._kvp().request(Operation.SET_IP_INFO, body, answered)

    def _card(self, name: str) -> Netvsc:
        if "netvsc" in self._devices.kinds:
            from pyvmm.devices.netvsc import Netvsc

            for each, card in self._devices.of_kind(Netvsc):
                if each == name:
                    return card
        raise NotFoundError(f"Device '{name}' not found")

    def facts(self) -> GuestFacts | None:
        """Return what the guest tells of itself; None if it does not."""
        if self._devices.device("kvp") is None:  # the usual case imports nothing
            return None
        from pyvmm.devices.kvp import Kvp

        kvp = self._devices.find(Kvp)
        if kvp is None or not kvp.auto:
            return None
        name = kvp.auto.get("FullyQualifiedDomainName", "")
        addresses = ";".join(kvp.auto.get(f"NetworkAddressIPv{version}", "") for version in (4, 6))
        return {
            "name": "" if " " in name else name,  # Linux's daemon tells the resolver's error in its place
            "os": " ".join(filter(None, (kvp.auto.get(key, "") for key in ("OSName", "OSVersion")))),
            "addresses": [each for each in addresses.split(";") if each],
        }

    # VSS

    def freeze(self, seconds: float, done: Callable[[str], object]) -> None:
        """Freeze the guest's file systems for `seconds` at most; `done` gets "" or why not. Raises ConfigError."""
        from pyvmm.devices.vss import Vss

        self._need(Vss, "vss").freeze(seconds, done)

    def thaw(self, done: Callable[[str], object]) -> None:
        """Thaw them. Raises ConfigError if they are not frozen."""
        from pyvmm.devices.vss import Vss

        self._need(Vss, "vss").thaw(done)

    # File copy

    def _fcopy(self) -> FileCopy:
        from pyvmm.devices.fcopy import FileCopy

        return self._need(FileCopy, "fcopy")

    def file_start(
        self, folder: str, name: str, size: int, *, overwrite: bool, create: bool, done: Callable[[str], object]
    ) -> None:
        """Begin a file in the guest; `done` gets "" or why it failed. Raises ConfigError."""
        from pyvmm.devices.fcopy.protocol import Flag

        flags = (Flag.OVERWRITE if overwrite else Flag(0)) | (Flag.CREATE_PATH if create else Flag(0))
        self._fcopy().start(folder, name, size, flags, done)

    def file_write(self, data: bytes, done: Callable[[str], object]) -> None:
        """Write its next bytes. Raises ConfigError."""
        self._fcopy().write(data, done)

    def file_end(self, complete: bool, done: Callable[[str], object]) -> None:
        """End it, or give it up. Raises ConfigError."""
        if complete:
            self._fcopy().finish(done)
        else:
            self._fcopy().cancel(done)

    # Keyboard

    def press(self, names: Sequence[str | int], hold: float) -> None:
        """Press keys together for `hold` seconds: names of QEMU's QKeyCode, or make codes. Raises ConfigError."""
        from pyvmm.devices.keyboard import Keyboard
        from pyvmm.devices.keyboard.keys import Key, key_named

        keys = [key_named(each) if isinstance(each, str) else Key(each & 0x7F, each >= 0x80) for each in names]
        self._need(Keyboard, "keyboard").press(keys, hold)


def _trouble(status: int) -> str:
    """Return why the guest's daemon did not do what was asked."""
    if status == CARD_NOT_FOUND:
        return "the guest's hv_kvp_daemon finds no such network card: is its driver loaded?"
    return f"the guest's hv_kvp_daemon failed with {status:#x}" if status else "the guest's hv_kvp_daemon has ended"
