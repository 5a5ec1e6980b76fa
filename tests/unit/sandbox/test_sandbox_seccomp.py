"""The filter of a running machine, interpreted: what it lets through and what not."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from pyvmm.kvm.abi import Op
from pyvmm.sandbox import seccomp
from pyvmm.sandbox.bpf import ALLOW, ERRNO, KILL_PROCESS, interpret
from pyvmm.sandbox.confine import REQUESTS

PID = 4711
FILTER = seccomp.build(PID, REQUESTS)
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
NUMBERS = {name: number for name, (number, _) in seccomp.CONDITIONS.items()}
ARCH_I386 = 0x40000003

REFUSED = """
acct add_key adjtimex bind bpf capset chdir chmod chown chroot clock_settime connect creat delete_module
execve execveat fanotify_init fchmod fchmodat fchown fork fsconfig fsopen init_module inotify_init1 io_setup
io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_load keyctl landlock_create_ruleset
link linkat listen lookup_dcookie mbind memfd_create memfd_secret migrate_pages mkdir mkdirat mknod mount
mount_setattr move_mount move_pages msgget name_to_handle_at open_by_handle_at open_tree perf_event_open
personality pidfd_getfd pidfd_open pidfd_send_signal pivot_root process_madvise process_vm_readv
process_vm_writev ptrace quotactl reboot recvmmsg rename renameat renameat2 request_key rmdir
rt_sigqueueinfo rt_tgsigqueueinfo sched_setaffinity sched_setscheduler seccomp semget sendfile sendmmsg
sendmsg setdomainname setgid setgroups sethostname setns setpgid setpriority setresuid setrlimit setsid
setsockopt settimeofday setuid setxattr shmat shmget signalfd4 socket socketpair splice swapon symlink
symlinkat sysfs syslog timer_create timerfd_create tkill truncate umount2 unshare uselib userfaultfd
utimensat vfork vmsplice waitid
"""


def numbers() -> dict[str, int]:
    """Every system call of this computer's headers."""
    if not HEADER.exists():
        pytest.skip(f"{HEADER} is missing: apt-get install linux-libc-dev")
    return {name: int(value) for name, value in re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())}


def test_the_numbers_are_those_of_the_kernel_s_header() -> None:
    known = numbers()
    ours = seccomp.ALLOWED | seccomp.UNFILTERABLE | NUMBERS | {"ioctl": seccomp.IOCTL}
    assert {name: known[name] for name in ours if name in known} == {n: v for n, v in ours.items() if n in known}
    assert len([name for name in ours if name in known]) > 100


def test_every_call_of_the_header_is_allowed_by_name_or_refused() -> None:
    conditional = seccomp.UNFILTERABLE.keys() | NUMBERS.keys() | {"ioctl"}
    for name, number in numbers().items():
        if name not in conditional:
            wanted = ALLOW if name in seccomp.ALLOWED else EPERM if number <= seccomp.NEWEST else ENOSYS
            assert interpret(FILTER, number) == wanted, name


@pytest.mark.parametrize("name", REFUSED.split())
def test_what_an_intruder_would_call_is_refused(name: str) -> None:
    number = numbers().get(name)
    if number is None:
        pytest.skip(f"the header does not know {name}")
    assert interpret(FILTER, number, [0] * 6) == EPERM


@pytest.mark.parametrize("arch", [ARCH_I386, 0, 0xC00000B7])
def test_calls_of_another_architecture_kill(arch: int) -> None:
    assert interpret(FILTER, 0, arch=arch) == KILL_PROCESS


def test_calls_of_the_x32_abi_kill() -> None:
    for number in (0x40000000, 0x40000000 | 59, 0xFFFFFFFF):
        assert interpret(FILTER, number) == KILL_PROCESS
    assert interpret(FILTER, 520) == ENOSYS, "x32's own numbers without the bit"


@pytest.mark.parametrize("request_number", [*Op, *seccomp.TERMINAL_REQUESTS.values()])
def test_requests_of_kvm_and_terminals_are_allowed_whatever_their_upper_half(request_number: int) -> None:
    assert interpret(FILTER, seccomp.IOCTL, [3, request_number]) == ALLOW
    assert interpret(FILTER, seccomp.IOCTL, [3, 0xFFFFFFFF_00000000 | request_number]) == ALLOW


def test_other_requests_are_refused() -> None:
    tiocsti, tiocsctty, tiocsetd, kvm_create_device, siocgifconf, ficlone = (
        0x5412, 0x540E, 0x5423, 0xC00CAEE0, 0x8912, 0x40049409,
    )  # fmt: skip
    for request in (tiocsti, tiocsctty, tiocsetd, kvm_create_device, siocgifconf, ficlone, 0, 0xAE80 << 8):
        assert interpret(FILTER, seccomp.IOCTL, [0, request]) == EPERM, hex(request)


PTHREAD = 0x3D0F00  # what glibc's pthread_create passes to clone
CASES = [
    ("clone", [PTHREAD], ALLOW),
    ("clone", [17], EPERM),  # fork: SIGCHLD
    ("clone", [0x4111], EPERM),  # vfork
    ("clone", [PTHREAD | 0x10000000], EPERM),  # CLONE_NEWUSER
    ("clone", [PTHREAD | 0x40000000], EPERM),  # CLONE_NEWNET
    ("kill", [PID, 9], ALLOW),
    ("kill", [PID + 1, 9], EPERM),
    ("kill", [0, 9], EPERM),
    ("kill", [-1, 9], EPERM),
    ("kill", [-PID, 9], EPERM),
    ("tgkill", [PID, PID + 3, 10], ALLOW),
    ("tgkill", [PID + 3, PID + 3, 10], EPERM),
    ("sendto", [5, 0x1000, 10, 0, 0, 0], ALLOW),
    ("sendto", [5, 0x1000, 10, 0, 0x7000, 16], EPERM),
    ("sendto", [5, 0x1000, 10, 0, 0x7000_00000000, 16], EPERM),
    ("openat", [-100, 0x1000, 0o2000000], ALLOW),
    ("openat", [-100, 0x1000, 0o1], EPERM),
    ("openat", [-100, 0x1000, 0o2], EPERM),
    ("openat", [-100, 0x1000, 0o100], EPERM),
    ("openat", [-100, 0x1000, 0o1000], EPERM),
    ("openat", [-100, 0x1000, 0o20200000], EPERM),  # O_TMPFILE
    ("open", [0x1000, 0], ALLOW),
    ("open", [0x1000, 0o1101], EPERM),
    ("mmap", [0, 4096, 3, 0x22], ALLOW),
    ("mmap", [0, 4096, 5, 0x2], ALLOW),  # a library
    ("mmap", [0, 4096, 7, 0x22], EPERM),
    ("mmap", [0, 4096, 6, 0x22], EPERM),
    ("mprotect", [0, 4096, 3], ALLOW),
    ("mprotect", [0, 4096, 5], EPERM),
    ("pkey_mprotect", [0, 4096, 4], EPERM),
    ("prctl", [15], ALLOW),  # PR_SET_NAME
    ("prctl", [22], EPERM),  # PR_SET_SECCOMP
    ("prctl", [8], EPERM),  # PR_SET_KEEPCAPS
    ("prlimit64", [0, 3, 0, 0x1000], ALLOW),
    ("prlimit64", [0, 3, 0x1000, 0], EPERM),
    ("prlimit64", [0, 3, 0x1000_00000000, 0], EPERM),
    ("prlimit64", [PID + 1, 3, 0, 0x1000], EPERM),
    ("fcntl", [3, 4, 0o4000], ALLOW),  # O_NONBLOCK
    ("fcntl", [3, 8, PID], EPERM),  # F_SETOWN
    ("fcntl", [3, 15, PID], EPERM),  # F_SETOWN_EX
    ("fcntl", [3, 1024, 0], EPERM),  # F_SETLEASE
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "action"), CASES)
def test_conditions_look_at_the_arguments(name: str, arguments: list[int], action: int) -> None:
    assert interpret(FILTER, NUMBERS[name], arguments) == action


def test_beside_landlock_files_may_be_opened_for_writing_and_not_made_or_emptied() -> None:
    beside = seccomp.build(PID, REQUESTS, landlocked=True)
    for flags, action in ((0o1, ALLOW), (0o2, ALLOW), (0o101, EPERM), (0o1000, EPERM), (0o20200002, EPERM)):
        assert interpret(beside, NUMBERS["openat"], [-100, 0x1000, flags]) == action
    assert interpret(beside, NUMBERS["kill"], [PID + 1, 9]) == EPERM, "the rest is as without"


def test_calls_with_arguments_in_memory_and_unknown_ones_are_not_there_for_libc() -> None:
    for number in (*seccomp.UNFILTERABLE.values(), seccomp.NEWEST + 1, 100_000):
        assert interpret(FILTER, number) == ENOSYS
    assert interpret(FILTER, seccomp.NEWEST) == EPERM


def test_the_filter_is_short_enough_for_the_kernel() -> None:
    assert len(FILTER) // 8 < 4096
    assert len(FILTER) % 8 == 0
