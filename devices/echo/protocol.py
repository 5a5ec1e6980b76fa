"""The commands of the echo device, all little-endian; pyvmm's own, as no Hyper-V host has such a device.

guest to host   in-band packet                         host to guest
anything else                                          the same payload
magic, ECHO                                            the same payload
magic, SINK, count                                     Report, once `count` further packets came, which it drops
magic, SOURCE, count, size                             `count` payloads of `size` bytes: number u64, then zeros
magic, LATER, 0, 0, milliseconds                       the same payload, after that time
magic, CHANNELS, count                                 Report; sub-channels 1 to `count` are offered
magic, PAGES, gpadl, size                              TRANSFER_PAGES: `size` bytes of the GPADL, written before
GPA_DIRECT packet with a completion requested          the completion; the bytes in its ranges are inverted
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from pyvmm.wire import Wire, u32, u64, wire

MAGIC = b"pvm_echo"
TYPE_GUID = "6a3a6f0e-3c58-4b0f-9c4e-70796d6d6563"
"""The device's type, for uio_hv_generic's new_id."""


class Command(IntEnum):
    """The commands' numbers."""

    ECHO = 0  # Send the packet back.
    SINK = 1  # Count it.
    SOURCE = 2  # Send so many packets.
    LATER = 3  # Answer after a while.
    CHANNELS = 4  # Offer so many sub-channels.
    PAGES = 5  # Send bytes of a GPADL, as TRANSFER_PAGES.


@wire
class Request(Wire):
    """A command. `count` is a GPADL's id for PAGES."""

    magic: Annotated[bytes, "8s"]
    command: u32
    count: u32 = 0
    size: u32 = 0
    milliseconds: u32 = 0


@wire
class Report(Wire):
    """The answer to SINK and CHANNELS. `size`: bytes of the payloads that were dropped."""

    magic: Annotated[bytes, "8s"]
    command: u32
    count: u32
    size: u64
