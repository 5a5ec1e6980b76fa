"""What an error of a disk's image does, by the disk's policy: the guest sees it, or the machine pauses.

Source: QEMU block/block-backend.c, blk_get_error_action(), and qapi/block-core.json, BLOCK_IO_ERROR.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from pyvmm import qapi
from pyvmm.devices.storvsc import events as trace
from pyvmm.devices.storvsc.disk import Disk
from pyvmm.devices.storvsc.scsi.work import Work
from pyvmm.qapi import Emit


class ErrorReports:
    """Decides on errors, and reports them. `stop` pauses the machine until the user lets it go on."""

    def __init__(self, emit: Emit, stop: Callable[[], object]) -> None:
        self._emit = emit
        self._stop = stop

    def stops(self, disk: Disk, work: Work, error: OSError) -> bool:
        """Report an error; return whether the machine was paused for it, and the work is to be done again."""
        no_space = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if work.writes:
            stops = disk.werror == "stop" or (disk.werror == "enospc" and no_space)
        else:
            stops = disk.rerror == "stop"
        if trace.io_error.on:
            trace.io_error(disk.id, str(error), "stop" if stops else "report")
        self._emit(
            qapi.BLOCK_IO_ERROR(
                {
                    "qom-path": f"/machine/peripheral/{disk.id}",
                    "device": disk.id,
                    "node-name": disk.id,
                    "operation": "write" if work.writes else "read",
                    "action": "stop" if stops else "report",
                    "nospace": no_space,
                    "reason": error.strerror or str(error),
                }
            )
        )
        if stops:
            disk.failed, disk.no_space = True, no_space
            self._stop()
        return stops
