"""The bodies of file copy's requests; the answers are statuses.

Source: Linux include/uapi/linux/hyperv.h, struct hv_fcopy_hdr, hv_start_fcopy, hv_do_fcopy.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

from pyvmm.errors import ConfigError
from pyvmm.wire import Wire, u32, u64, wire

NAME_SIZE = 520
"""Bytes of a name, UTF-16 with its zero."""
MESSAGE_VERSIONS = ((1, 1),)


class Operation(IntEnum):
    """What a file copy message is.

    Source: Linux include/uapi/linux/hyperv.h, enum hv_fcopy_op.
    """

    START = 0  # START_FILE_COPY: a name, a folder and a size.
    WRITE = 1  # WRITE_TO_FILE: the next bytes.
    COMPLETE = 2  # COMPLETE_FCOPY: that was all.
    CANCEL = 3  # CANCEL_FCOPY: give it up.


class Flag(IntFlag):
    """OVER_WRITE and CREATE_PATH."""

    OVERWRITE = 1
    CREATE_PATH = 2


@wire
class Header(Wire):
    """struct hv_fcopy_hdr; COMPLETE and CANCEL are this alone."""

    operation: u32
    services: Annotated[bytes, "32s"] = bytes(32)


@wire
class Start(Wire):
    """struct hv_start_fcopy."""

    operation: u32
    services: Annotated[bytes, "32s"]
    name: Annotated[bytes, "520s"]
    folder: Annotated[bytes, "520s"]
    flags: u32
    size: u64


@wire
class Write(Wire):
    """struct hv_do_fcopy up to its data, which Linux takes to be up to 6144 bytes."""

    operation: u32
    services: Annotated[bytes, "32s"]
    padding: u32
    offset: u64
    size: u32


def encode_name(what: str, text: str) -> bytes:
    """Return a name as it goes into a request. Raises ConfigError if it does not fit."""
    data = text.encode("utf-16-le", "replace") + b"\0\0"
    if not text or "\0" in text or len(data) > NAME_SIZE:
        raise ConfigError(f"a {what} of {len(text)} characters: 1 to {NAME_SIZE // 2 - 1}, without zero bytes")
    return data
