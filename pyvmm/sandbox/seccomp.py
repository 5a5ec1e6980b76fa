"""The seccomp filter: allows the system calls that a running machine needs, and refuses all others.

Source: seccomp(2); Linux include/uapi/linux/seccomp.h, arch/x86/entry/syscalls/syscall_64.tbl.

    not x86-64, or x32          the process is killed: pyvmm, Python and libc make no such calls
    ioctl                       KVM's requests that pyvmm knows, and the few of terminals and sockets
    calls with conditions       `CONDITIONS`: threads but no processes, signals to itself only, no code written anew
    calls in `ALLOWED`          allowed whatever their arguments
    clone3, openat2             ENOSYS: their arguments lie in memory, which no filter sees; libc uses the older calls
    numbers unknown in 2025     ENOSYS, so that a newer libc falls back
    the rest                    EPERM

Refused calls fail, and do not kill: which calls Python and libc make differs by version, and an optional one (a newer
kind of lock, a hint about memory) must not end a guest. A call that matters shows as PermissionError, with a
traceback. An attacker can try further calls after that, but each is refused just the same.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Collection
from struct import pack

from pyvmm.sandbox.bpf import (
    ALLOW,
    ARCH,
    ARCH_X86_64,
    ERRNO,
    KILL_PROCESS,
    NUMBER,
    X32_BIT,
    Program,
    high,
    low,
)
from pyvmm.sandbox.syscalls import syscall

SECCOMP = 317
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_FLAG_TSYNC, _FLAG_SPEC_ALLOW = 1, 4
NEWEST = 469
"""The newest call that existed when this list was made (Linux 6.17, file_setattr)."""

ALLOWED = {
    # reading and writing what is open
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "preadv": 295, "pwritev": 296, "preadv2": 327, "pwritev2": 328, "select": 23, "dup": 32, "dup2": 33,
    "dup3": 292, "pipe2": 293, "flock": 73, "fsync": 74, "ftruncate": 77, "fdatasync": 75,
    "fallocate": 285, "close_range": 436, "pselect6": 270, "ppoll": 271,
    # the loop
    "epoll_create1": 291, "epoll_ctl": 233, "epoll_wait": 232, "epoll_pwait": 281, "epoll_pwait2": 441,
    "eventfd2": 290, "timerfd_settime": 286,
    # looking at files; Landlock says which can be opened. unlink: the machine's own sockets, in the end
    "stat": 4, "lstat": 6, "access": 21, "getdents64": 217, "getcwd": 79, "readlink": 89, "newfstatat": 262,
    "readlinkat": 267, "faccessat": 269, "statx": 332, "faccessat2": 439, "unlink": 87, "unlinkat": 263,
    # memory
    "munmap": 11, "brk": 12, "mremap": 25, "msync": 26, "mincore": 27, "madvise": 28, "membarrier": 324,
    # clients of the monitor that is open already. recvmsg: descriptors, which clients and helpers send
    "accept": 43, "accept4": 288, "recvfrom": 45, "recvmsg": 47, "shutdown": 48, "getsockname": 51, "getpeername": 52,
    "getsockopt": 55,
    # threads, time, signals of its own
    "futex": 202, "futex_waitv": 449, "set_robust_list": 273, "get_robust_list": 274, "set_tid_address": 218,
    "rseq": 334, "gettid": 186, "sched_yield": 24, "sched_getaffinity": 204, "sched_getparam": 143,
    "sched_getscheduler": 145, "getcpu": 309, "nanosleep": 35, "clock_nanosleep": 230, "clock_gettime": 228,
    "clock_getres": 229, "gettimeofday": 96, "time": 201, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131,
    "pause": 34, "restart_syscall": 219, "exit": 60, "exit_group": 231, "wait4": 61,
    # who and where it is
    "getpid": 39, "getppid": 110, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getpgid": 121,
    "getpgrp": 111, "getsid": 124, "getgroups": 115, "uname": 63, "getrusage": 98, "times": 100, "sysinfo": 99,
    "getrlimit": 97, "getrandom": 318, "capget": 125, "umask": 95,
}  # fmt: skip

UNFILTERABLE = {"clone3": 435, "openat2": 437}
"""Calls whose arguments lie in memory."""

IOCTL = 16
TERMINAL_REQUESTS = {
    "TCGETS": 0x5401, "TCSETS": 0x5402, "TCSETSW": 0x5403, "TCSETSF": 0x5404, "TIOCGPGRP": 0x540F,
    "TIOCGWINSZ": 0x5413, "FIONREAD": 0x541B, "FIONBIO": 0x5421, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451,
    "TCGETS2": 0x802C542A, "TIOCGPTN": 0x80045430, "TIOCGPTPEER": 0x5441,
}  # fmt: skip
"""What terminals, sockets and descriptors need. Not TIOCSTI, which types into the user's shell."""

CLONE_THREAD = 0x00010000
CLONE_NAMESPACES = 0x7E020000 | 0x00000080
"""CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET and TIME."""

PROT_WRITE, PROT_EXEC = 2, 4
MAKING = 0o100 | 0o1000 | 0o20000000
"""Flags of open(2) that make or empty a file: O_CREAT, O_TRUNC, and O_TMPFILE's own."""
WRITING = 0o1 | 0o2
"""O_WRONLY and O_RDWR. Where Landlock says which files can be written, that is enough."""

FCNTL_REQUESTS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1031, 1032, 1034, 36, 37, 38)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, locks, F_DUPFD_CLOEXEC, pipe sizes, F_GET_SEALS, OFD locks; not
F_SETOWN, which sends signals to others."""

PRCTL_REQUESTS = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME and PR_SET_VMA: names of threads and of memory, by libc and newer Pythons."""

ANY_PROCESS = 0x7FFFFFFF
"""A placeholder for the process id in a filter that is built ahead; larger than any process id."""

Condition = Callable[[Program, str, int], None]
"""condition(program, refuse, pid): adds instructions that jump to the label `refuse`, or fall through to allow."""


def _only_to_itself(program: Program, refuse: str, pid: int) -> None:
    program.load(low(0))
    program.equal(pid, false=refuse)


def _thread(program: Program, refuse: str, pid: int) -> None:
    program.load(low(0))
    program.mask(CLONE_THREAD | CLONE_NAMESPACES)
    program.equal(CLONE_THREAD, false=refuse)


def _without_address(program: Program, refuse: str, pid: int) -> None:
    for word in (low(4), high(4)):
        program.load(word)
        program.equal(0, false=refuse)


def _without(flags: int, argument: int) -> Condition:
    def condition(program: Program, refuse: str, pid: int) -> None:
        program.load(low(argument))
        program.mask(flags)
        program.equal(0, false=refuse)

    return condition


def _not_written_and_run(program: Program, refuse: str, pid: int) -> None:
    program.load(low(2))
    program.mask(PROT_WRITE | PROT_EXEC)
    program.equal(PROT_WRITE | PROT_EXEC, true=refuse)


def _not_run(program: Program, refuse: str, pid: int) -> None:
    program.load(low(2))
    program.mask(PROT_EXEC)
    program.equal(0, false=refuse)


def _own_limits_unchanged(program: Program, refuse: str, pid: int) -> None:
    for word in (low(0), low(2), high(2)):  # pid 0 is itself; no new limits
        program.load(word)
        program.equal(0, false=refuse)


def _one_of(argument: int, values: Collection[int]) -> Condition:
    def condition(program: Program, refuse: str, pid: int) -> None:
        program.load(low(argument))
        *others, last = values
        found = f"{refuse}: found"
        for value in others:
            program.equal(value, true=found)
        program.equal(last, true=found, false=refuse)
        program.label(found)

    return condition


CONDITIONS: dict[str, tuple[int, Condition]] = {
    "mmap": (9, _not_written_and_run),
    "mprotect": (10, _not_run),
    "pkey_mprotect": (329, _not_run),
    "open": (2, _without(MAKING | WRITING, 1)),
    "openat": (257, _without(MAKING | WRITING, 2)),
    "fcntl": (72, _one_of(1, FCNTL_REQUESTS)),
    "sendto": (44, _without_address),
    "clone": (56, _thread),
    "kill": (62, _only_to_itself),
    "tgkill": (234, _only_to_itself),
    "prctl": (157, _one_of(0, PRCTL_REQUESTS)),
    "prlimit64": (302, _own_limits_unchanged),
}

BESIDE_LANDLOCK: dict[str, tuple[int, Condition]] = CONDITIONS | {
    "open": (2, _without(MAKING, 1)),
    "openat": (257, _without(MAKING, 2)),
}
"""The same where Landlock refuses writing."""


def build(pid: int, requests: Collection[int], *, landlocked: bool = False) -> bytes:
    """Build the filter for the process `pid`, which may make the ioctl `requests`, the most frequent first.

    `landlocked` says that Landlock refuses to open files for writing.
    """
    program = Program()
    program.load(ARCH)
    program.equal(ARCH_X86_64, false="kill")
    program.load(NUMBER)
    program.equal(IOCTL, false="other")
    _one_of(1, tuple(requests))(program, "refuse ioctl", pid)
    program.give(ALLOW)
    program.label("refuse ioctl")
    program.give(ERRNO | errno.EPERM)
    program.label("kill")
    program.give(KILL_PROCESS)

    program.label("other")
    program.at_least(X32_BIT, false="x86-64")
    program.give(KILL_PROCESS)
    program.label("x86-64")
    _among(program, _ranges(ALLOWED.values()))
    program.label("allow")
    program.give(ALLOW)
    program.label("conditional")
    for name, (number, condition) in (BESIDE_LANDLOCK if landlocked else CONDITIONS).items():
        program.equal(number, false=f"not {name}")
        condition(program, f"refuse {name}", pid)
        program.give(ALLOW)
        program.label(f"refuse {name}")
        program.give(ERRNO | errno.EPERM)
        program.label(f"not {name}")
    for number in UNFILTERABLE.values():
        program.equal(number, true="unknown")
    program.above(NEWEST, true="unknown")
    program.give(ERRNO | errno.EPERM)
    program.label("unknown")
    program.give(ERRNO | errno.ENOSYS)
    return program.build()


def _among(program: Program, ranges: list[tuple[int, int]], name: str = "among") -> None:
    """Jump to "allow" for a number in one of the `ranges`, else to "conditional": a binary search.

    The kernel runs the filter for each number when it is installed, to remember those that it always allows.
    """
    if len(ranges) == 1:
        first, last = ranges[0]
        program.at_least(first, false="conditional")
        program.above(last, true="conditional", false="allow")
        return
    middle = len(ranges) // 2
    program.above(ranges[middle - 1][1], true=f"{name} above")
    _among(program, ranges[:middle], f"{name} below")
    program.label(f"{name} above")
    _among(program, ranges[middle:], f"{name} above {middle}")


def _ranges(numbers: Collection[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def for_process(program: bytes, pid: int) -> bytes:
    """Replace ANY_PROCESS in a prebuilt filter by the process `pid`."""
    return program.replace(pack("<I", ANY_PROCESS), pack("<I", pid))


def available() -> bool:
    """Whether this kernel supports seccomp filters."""
    action = ctypes.c_uint32(ERRNO)
    try:
        syscall(SECCOMP, _GET_ACTION_AVAIL, 0, ctypes.addressof(action))
    except OSError:  # ENOSYS: too old, or built without; EPERM: a container's filter
        return False
    return True


def install(program: bytes) -> None:
    """Install a filter irrevocably on all threads of this process, which must have no_new_privs. Raises OSError.

    Without the speculation mitigations that kernels before 5.16 add to each filtered process (SPEC_ALLOW): there is
    no untrusted code in it; the guest's is in KVM's care, which has its own.
    """
    code = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16)
    flags = _FLAG_TSYNC | _FLAG_SPEC_ALLOW
    thread = syscall(SECCOMP, _SET_MODE_FILTER, flags, ctypes.addressof(head))
    if thread:
        raise OSError(errno.EBUSY, f"thread {thread} has another seccomp filter")
