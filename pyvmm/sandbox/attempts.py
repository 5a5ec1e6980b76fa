"""Attempts: the calls that an attacker in the process would make first, in a harmless form. For tests and the demo.

Each gives the name of an error ("EPERM", "EACCES"), or "allowed".
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from pyvmm.sandbox.syscalls import prctl, syscall


def attempts(folder: Path, victim: int) -> dict[str, str]:
    """Make every attempt; return each outcome by name. `folder` has a file "secret" and a listening socket "socket";
    `victim` is another process of the same user."""
    return {name: _outcome(call) for name, call in _calls(folder, victim)}


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "allowed"


def _calls(folder: Path, victim: int) -> Iterator[tuple[str, Callable[[], object]]]:
    secret = folder / "secret"
    yield "read a file", secret.read_bytes
    yield "write a file", lambda: secret.write_bytes(b"changed")
    yield "append to a file", lambda: os.close(os.open(secret, os.O_WRONLY | os.O_APPEND))
    yield "make a file", lambda: (folder / "made").write_bytes(b"")
    yield "make a file without a name", lambda: os.close(os.open(folder, os.O_RDWR | os.O_TMPFILE))
    yield "make a folder", (folder / "new").mkdir
    yield "make a link", lambda: (folder / "link").symlink_to("/etc/passwd")
    yield "remove a file", secret.unlink
    yield "rename a file", lambda: secret.rename(folder / "renamed")
    yield "change a file's mode", lambda: secret.chmod(0o777)
    yield "empty a file", lambda: os.truncate(secret, 0)
    yield "list a folder", lambda: os.listdir(folder)
    yield "read another process's memory", Path(f"/proc/{victim}/mem").read_bytes
    yield "write its own memory by /proc", lambda: os.close(os.open("/proc/self/mem", os.O_RDWR))
    yield "open /dev/kvm", lambda: os.close(os.open("/dev/kvm", os.O_RDWR))
    yield "execve", lambda: os.execv("/bin/true", ["true"])
    yield "fork", _fork
    yield "start a program", lambda: subprocess.run(["/bin/true"], check=True)
    yield "unix socket", lambda: socket.socket(socket.AF_UNIX).close()
    yield "inet socket", lambda: socket.socket(socket.AF_INET).close()
    yield "netlink socket", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
    yield "vsock", lambda: socket.socket(socket.AF_VSOCK).close()
    yield "socketpair", _pair
    yield "kill another process", lambda: os.kill(victim, 0)
    yield "kill all processes", lambda: os.kill(-1, 0)
    yield "kill its group", lambda: os.kill(0, 0)
    yield "signal another by fcntl", lambda: _set_owner(victim)
    yield "ptrace", lambda: syscall(101, 16, victim, 0, 0)
    yield "process_vm_readv", lambda: syscall(310, victim, 0, 0, 0, 0, 0)
    yield "process_vm_writev", lambda: syscall(311, victim, 0, 0, 0, 0, 0)
    yield "pidfd_open", lambda: os.close(syscall(434, victim, 0))
    yield "mount", lambda: syscall(165, 0, 0, 0, 0, 0)
    yield "unshare", lambda: syscall(272, 0x10000000)
    yield "setns", lambda: syscall(308, 0, 0)
    yield "chroot", lambda: os.chroot(folder)
    yield "chdir", lambda: os.chdir("/")
    yield "bpf", lambda: syscall(321, 0, 0, 0)
    yield "perf_event_open", lambda: syscall(298, 0, 0, -1, -1, 0)
    yield "userfaultfd", lambda: os.close(syscall(323, 0))
    yield "io_uring_setup", lambda: syscall(425, 1, 0)
    yield "keyctl", lambda: syscall(250, 0, -3, 1)
    yield "add_key", lambda: syscall(248, 0, 0, 0, 0, -3)
    yield "memfd_create", lambda: os.close(os.memfd_create("x"))
    yield "seccomp", lambda: syscall(317, 2, 0, 0)
    yield "become dumpable by prctl", lambda: prctl(4, 1)
    yield "set a limit", lambda: syscall(302, 0, 7, 0x1000, 0)
    yield "another's limits", lambda: syscall(302, victim, 7, 0, 0)
    yield "setuid", lambda: os.setuid(os.getuid())
    yield "capset", lambda: syscall(126, 0, 0)
    yield "write and run memory", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    yield "type into the terminal", lambda: syscall(16, 0, 0x5412, 0)
    yield "openat2", lambda: syscall(437, -100, 0, 0, 0)
    yield "clone3", lambda: syscall(435, 0, 0)


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _pair() -> None:
    for each in socket.socketpair():
        each.close()


def _set_owner(victim: int) -> None:
    import fcntl

    reader, writer = os.pipe()
    try:
        fcntl.fcntl(reader, fcntl.F_SETOWN, victim)
    finally:
        os.close(reader)
        os.close(writer)
