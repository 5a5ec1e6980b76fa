"""Sense data: why a SCSI command failed, as a key, a code and its qualifier.

Source: T10 SPC-5, 4.4.3 (fixed format) and annex D (codes); Linux drivers/scsi/scsi_error.c, scsi_lib.c for the
effects.
"""

from __future__ import annotations

import errno
from struct import pack
from typing import NamedTuple


class Sense(NamedTuple):
    """Sense key, additional sense code and qualifier."""

    key: int
    code: int
    qualifier: int = 0

    def build(self) -> bytes:
        """Return 18 bytes of the fixed format."""
        return pack(">BxBxxxxBxxxxBB4x", 0x70, self.key, 10, self.code, self.qualifier)

    def __str__(self) -> str:
        return f"{self.key:x}/{self.code:02x}/{self.qualifier:02x}"


NO_SENSE = Sense(0, 0)
READ_ERROR = Sense(3, 0x11)
WRITE_ERROR = Sense(3, 0x0C)
UNKNOWN_COMMAND = Sense(5, 0x20)
OUT_OF_RANGE = Sense(5, 0x21)
BAD_FIELD = Sense(5, 0x24)
BAD_LUN = Sense(5, 0x25)
BAD_PARAMETER = Sense(5, 0x26)
BAD_LENGTH = Sense(5, 0x1A)  # of a parameter list
CAPACITY_CHANGED = Sense(6, 0x2A, 9)
WRITE_PROTECTED = Sense(7, 0x27)
SPACE_EXHAUSTED = Sense(7, 0x27, 7)
"""Linux makes ENOSPC of it. It does not try again."""


class CheckCondition(Exception):
    """A command failed with this sense data."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(str(sense))
        self.sense = sense


def sense_of(error: OSError, *, writing: bool) -> Sense:
    """Return the sense data for an error of the disk's file."""
    if writing and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SPACE_EXHAUSTED
    if writing and error.errno == errno.EROFS:
        return WRITE_PROTECTED
    return WRITE_ERROR if writing else READ_ERROR
