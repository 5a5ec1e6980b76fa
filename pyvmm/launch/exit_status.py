"""Exit statuses of `pyvmm`, besides those of a command in the guest, which `pyvmm run -- COMMAND` passes on."""

from __future__ import annotations

import errno

DONE = 0
"""Done; for `run -- COMMAND` and `exec`, the command in the guest returned 0."""
ERROR = 1
"""This computer or the request is at fault, in one line on standard error. Commands that compare or check return it
for a difference or failure."""
USAGE = 2
"""The command line is wrong: the line on standard error names the help that tells how it is right."""
TIMEOUT = 124
"""The time limit (--timeout) passed, as timeout(1) returns it."""
HANGUP = 129
"""The terminal is gone, as a shell shows SIGHUP."""
INTERRUPTED = 130
"""Ctrl-C, as a shell shows SIGINT."""
PIPE = 141
"""The reader of the output has exited, as a shell shows SIGPIPE."""
TERMINATED = 143
"""Ended by SIGTERM, as a shell shows it."""
GUEST_DIED = 255
"""The guest died: panic, triple fault, reset, or it powered off before its command ended."""


def status_of(error: OSError) -> int:
    """Return the exit status after standard output failed with `error`."""
    match error.errno:
        case errno.EPIPE:
            return PIPE
        case errno.EIO:
            return HANGUP
    return ERROR
