"""Exit statuses of `pyvmm`, besides those of a command in the guest."""

from __future__ import annotations

import errno

ERROR = 1
USAGE = 2
TIMEOUT = 124
HANGUP = 129  # as a shell shows SIGHUP
INTERRUPTED = 130  # as a shell shows SIGINT
PIPE = 141  # as a shell shows SIGPIPE
GUEST_DIED = 255


def status_of(error: OSError) -> int:
    """Return the exit status after standard output failed with `error`."""
    match error.errno:
        case errno.EPIPE:
            return PIPE
        case errno.EIO:
            return HANGUP
    return ERROR
