"""The bodies of VSS's requests and answers.

Source: Linux include/uapi/linux/hyperv.h, struct hv_vss_msg; drivers/hv/hv_snapshot.c.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from pyvmm.wire import Wire, u8, u32, wire

VERSIONS = ((7, 0), (6, 0), (5, 0), (4, 0))
"""Message versions as Hyper-V's; Linux knows 5.0 only, and of the frameworks 3.0."""


class Operation(IntEnum):
    """VSS_OP_*: what a VSS message is, of those that are used.

    Source: Linux include/uapi/linux/hyperv.h, enum hv_vss_op.
    """

    HOT_BACKUP = 2  # Is a daemon there that can freeze: then Linux answers without an error.
    FREEZE = 5  # Freeze the file systems.
    THAW = 6  # Let them go on.


@wire
class VssBody(Wire):
    """struct hv_vss_msg: operation and flags."""

    operation: u8
    reserved: Annotated[bytes, "7s"] = bytes(7)
    flags: u32 = 0
