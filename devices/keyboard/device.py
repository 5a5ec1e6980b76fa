"""The keyboard's messages, and the device.

Source: Linux drivers/input/serio/hyperv-keyboard.c. The payload is the message itself: no pipe header goes before it.

    guest                                    host
      PROTOCOL_REQUEST (1) version 1.0  ->        within 10 s, or the driver's probe fails
                                        <-  PROTOCOL_RESPONSE (2) accepted
                                        <-  EVENT (3) make code, flags
      LED (4) flags                     ->        Linux never sends it
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.keyboard.keys import Key
from pyvmm.errors import ConfigError, GuestProtocolError
from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer
from pyvmm.wire import Wire, u16, u32, wire

key_sent = event("keyboard.key_sent", "code {code:#x} flags {flags}")
accepted = event("keyboard.accepted", "version {version:#x}: {accepted}")
device_view(DeviceView(packages=("keyboard",), track="keyboard"))

VERSION = 0x00010000
REQUEST, RESPONSE, EVENT, LED = 1, 2, 3, 4
BREAK, E0 = 2, 4
KEYS_LIMIT = 32
"""Keys of one stroke: a person has ten fingers."""


@wire
class Hello(Wire):
    """struct synth_kbd_protocol_request, and the response: `value` is the version, or 1 for accepted."""

    type: u32
    value: u32


@wire
class Stroke(Wire):
    """struct synth_kbd_keystroke."""

    type: u32
    code: u16
    reserved: u16
    flags: u32


class Keyboard(VmbusDevice):
    """The device. Keys reach the guest from the driver's request for its protocol on."""

    OFFER: ClassVar[Offer] = Offer(
        "keyboard",
        type=UUID("f912ad6d-2b17-48ea-bd65-f927a61c7684"),
        instance=UUID("d34b2567-b9b6-42b9-8778-0a4ec0b955bf"),
    )
    HOLD: ClassVar[float] = 0.1
    """Seconds for which keys are held, as in QEMU."""

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._accepted = False

    @property
    def ready(self) -> bool:
        """Whether the guest's driver takes keys."""
        return self._accepted

    def press(self, keys: Sequence[Key], hold: float = HOLD) -> None:
        """Press `keys` together, and release them after `hold` seconds. Raises ConfigError if they cannot be."""
        if self._channel is None or not self._accepted:
            raise ConfigError("the guest has no driver for the keyboard (hyperv-keyboard)")
        if not 0 < len(keys) <= KEYS_LIMIT:
            raise ConfigError(f"{len(keys)} keys: 1 to {KEYS_LIMIT} can be pressed together")
        if self._channel.queued:
            raise ConfigError("the guest does not read its keys")
        for key in keys:
            self._send(key, 0)
        self._channel.after(hold, partial(self._release, tuple(keys)))

    def _release(self, keys: tuple[Key, ...]) -> None:
        for key in reversed(keys):
            self._send(key, BREAK)

    def _send(self, key: Key, flags: int) -> None:
        assert self._channel is not None
        flags |= E0 if key.extended else 0
        if key_sent.on:
            key_sent(key.code, flags)
        self._channel.send(Stroke(EVENT, key.code, 0, flags).build())

    def opened(self, channel: Channel) -> None:
        self._channel, self._accepted = channel, False

    def closed(self, channel: Channel) -> None:
        self._channel, self._accepted = None, False

    def received(self, payload: bytes) -> None:
        assert self._channel is not None
        hello = Hello.parse(payload)
        if hello.type == REQUEST:
            self._accepted = hello.value == VERSION
            if accepted.on:
                accepted(hello.value, self._accepted)
            self._channel.send(Hello(RESPONSE, int(self._accepted)).build())
        elif hello.type != LED:  # the lights, which nothing shows
            raise GuestProtocolError(f"keyboard: message {hello.type}")
