"""Layout of the memory of the guest's program for sessions, and numbers of the kernel's that its parts share."""

from __future__ import annotations

from pyvmm.images.assembler import Assembler, Call, Local
from pyvmm.session_protocol import OUTPUT_LIMIT, START_LIMIT, WORDS_LIMIT

AF_VSOCK, CID_ANY, CID_HOST = 40, 0xFFFFFFFF, 2
STREAM_CLOEXEC = 1 | 0o2000000
CLOEXEC, NONBLOCK, RDWR, NOCTTY = 0o2000000, 0o4000, 2, 0o400
SIGHUP, SIGPIPE, SIGCHLD, SIGCONT = 1, 13, 17, 18
IGNORE, DEFAULT = 1, 0
F_SETFL = 4
POLLIN, POLLOUT = 1, 4
TIOCSPTLCK, TIOCGPTPEER, TIOCSWINSZ, TIOCSCTTY = 0x40045431, 0x5441, 0x5414, 0x540E

DRAIN_ROUNDS = 64
"""Rounds of reading output that the command left in its pipes, or that its children still write, after its end."""

RELAY_LIMIT = (128 << 10) + 4096
"""Bytes of the largest request or reply of FUSE: pyvmm.share.protocol.REQUEST_LIMIT."""

FUSE_FD = 9
"""Where `session fuse` has /dev/fuse: its number is in the options of mount(2)."""
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4

# What lies at rbp
POLL = 0  # struct pollfd of: the connection, output, errors, the command's pidfd, input
PIPES = 40  # three pairs: input, output, errors
HEADER = 64
SMALL = 72  # payload of SIGNAL or WINDOW
STATUS = 80
WINDOW = 88
ENDED = 96  # 0, or rounds since the command's end
LEFT = 104  # bytes of input not written yet
NEXT = 112  # their address
SLAVE = 120
FLAGS = 128
INPUT_FD = 136  # or -1
ACTION = 144  # struct sigaction: handler, flags, restorer, mask
ADDRESS = 176  # struct sockaddr_vm
ARGV = 192
OUT = ARGV + 8 * (WORDS_LIMIT + 2)  # a frame to the host
IN = OUT + 8 + OUTPUT_LIMIT  # START, then input; or a request of FUSE
FRAME = (IN + max(START_LIMIT, RELAY_LIMIT) + 16 + 15) & ~15

FD = {"connection": POLL, "output": POLL + 8, "errors": POLL + 16, "process": POLL + 24, "input": POLL + 32}
EVENTS = 4
READY = 6


def check(a: Assembler, failed: str) -> None:
    a.compare("rax", 0)
    a.jump(failed, "l")


def set_signal(a: Assembler, number: int, handler: int) -> None:
    a.store(ACTION, handler)
    for offset in (8, 16, 24):
        a.store(ACTION + offset, 0)
    a.syscall(Call.SIGACTION, number, Local(ACTION), 0, 8)
