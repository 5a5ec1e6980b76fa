"""The guest's program for sessions over vsock: runs commands for the host. Static, made of machine code, some 2 KiB.

    session listen PORT               serve each connection to PORT by a process of its own; returns once it listens
    session connect PORT PROGRAM ...  connect to the host's PORT, then run PROGRAM with it as standard input and
    output session serve                     one session on standard input, for tests

`pyvmm.session_protocol` has the frames of a session. Flow control: the host reads no further, and this program blocks
in its write and the command in its own; input is one frame, kept until the command has taken it.

The parts of this module are the program in order, an instruction or system call per line. Linux 5.4 or newer.
"""

from __future__ import annotations

import errno

from pyvmm.images.assembler import Assembler, At, Call, Local, Value
from pyvmm.images.session_command import command_session
from pyvmm.images.session_layout import (
    ADDRESS,
    AF_VSOCK,
    CID_ANY,
    CID_HOST,
    CLOEXEC,
    FRAME,
    FUSE_FD,
    HEADER,
    IGNORE,
    IN,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    OUT,
    RDWR,
    RELAY_LIMIT,
    SIGCHLD,
    SIGPIPE,
    STREAM_CLOEXEC,
    check,
    set_signal,
)
from pyvmm.images.static_elf import static_elf


def session_program() -> bytes:
    """Build the ELF program."""
    a = Assembler()
    for part in (_begin, _listen, _connect, _fuse, command_session, _routines):
        part(a)
    return static_elf(a.build())


def _begin(a: Assembler) -> None:
    a.load("rax", "rsp", 0)  # argc
    a.address("r15", "rsp", 8)  # argv
    a.move("r14", "rax")
    a.shift_left("r14", 3)
    a.add("r14", "r15")
    a.add("r14", 8)  # envp
    a.subtract("rsp", FRAME)
    a.move("rbp", "rsp")
    a.load("rdi", "r15", 8)
    a.compare("rdi", 0)
    a.jump("usage", "e")
    a.load("rax", "rdi", 0, 1)
    for letter, label in (("l", "listen"), ("c", "connect"), ("f", "fuse"), ("s", "serve")):
        a.compare("rax", ord(letter))
        a.jump(label, "e")
    a.label("usage")
    a.syscall(Call.EXIT, 2)
    a.label("serve")
    a.move("r13", 0)
    a.jump("session")


def _socket(a: Assembler, cid: int) -> None:
    """r12: a socket; the address of argv[2] on `cid` is in ADDRESS."""
    a.load("rdi", "r15", 16)
    a.compare("rdi", 0)
    a.jump("usage", "e")
    a.call("number")
    a.store(ADDRESS, AF_VSOCK, 4)
    a.store(ADDRESS + 4, "rbx", 4)
    a.store(ADDRESS + 8, cid, 4)
    a.store(ADDRESS + 12, 0, 4)
    a.syscall(Call.SOCKET, AF_VSOCK, STREAM_CLOEXEC, 0)
    check(a, "fail")
    a.move("r12", "rax")


def _listen(a: Assembler) -> None:
    a.label("listen")
    _socket(a, CID_ANY)
    a.syscall(Call.BIND, "r12", Local(ADDRESS), 16)
    check(a, "fail")
    a.syscall(Call.LISTEN, "r12", 16)
    check(a, "fail")
    a.syscall(Call.FORK)
    check(a, "fail")
    a.jump("listening", "e")
    a.syscall(Call.EXIT, 0)
    a.label("listening")
    a.syscall(Call.SETSID)
    set_signal(a, SIGCHLD, IGNORE)  # sessions leave no zombies
    a.label("accept")
    a.syscall(Call.ACCEPT4, "r12", 0, 0, CLOEXEC)
    a.compare("rax", 0)
    a.jump("accepted", "ge")
    a.syscall(Call.POLL, 0, 0, 100)  # out of memory or descriptors: wait
    a.jump("accept")
    a.label("accepted")
    a.move("r13", "rax")
    a.syscall(Call.FORK)
    a.compare("rax", 0)
    a.jump("forked", "e")
    a.syscall(Call.CLOSE, "r13")
    a.jump("accept")
    a.label("forked")
    a.syscall(Call.CLOSE, "r12")
    a.jump("session")


def _connect(a: Assembler) -> None:
    a.label("connect")
    _socket(a, CID_HOST)
    a.syscall(Call.CONNECT, "r12", Local(ADDRESS), 16)
    check(a, "fail")
    for descriptor in (0, 1):
        a.syscall(Call.DUP2, "r12", descriptor)
    a.load("rdi", "r15", 24)
    a.compare("rdi", 0)
    a.jump("usage", "e")
    a.address("rsi", "r15", 24)
    a.syscall(Call.EXECVE, "rdi", "rsi", "r14")
    a.label("fail")
    a.negate("rax")
    a.move("rdi", "rax")
    a.syscall(Call.EXIT, "rdi")


def _fuse(a: Assembler) -> None:
    """Mount, then two processes: each passes on what one side sends. The end of either side ends both."""
    a.label("fuse")
    _socket(a, CID_HOST)
    a.syscall(Call.CONNECT, "r12", Local(ADDRESS), 16)
    check(a, "fail")
    a.move("r13", "r12")
    a.move("r12", 0)
    a.syscall(Call.OPEN, At("dev fuse"), RDWR | CLOEXEC, 0)
    check(a, "fail")
    a.move("rbx", "rax")
    a.syscall(Call.DUP2, "rbx", FUSE_FD)
    a.syscall(Call.CLOSE, "rbx")
    a.load("rsi", "r15", 24)
    a.compare("rsi", 0)
    a.jump("usage", "e")
    a.move("r10", MS_NOSUID | MS_NODEV)
    a.load("rax", "r15", 32)
    a.compare("rax", 0)
    a.jump("mount", "e")
    a.move("r10", MS_NOSUID | MS_NODEV | MS_RDONLY)
    a.label("mount")
    a.syscall(Call.MOUNT, At("source"), "rsi", At("fuse type"), "r10", At("fuse options"))
    check(a, "fail")
    a.syscall(Call.FORK)
    check(a, "fail")
    a.jump("mounted", "e")
    a.syscall(Call.EXIT, 0)
    a.label("mounted")
    a.syscall(Call.SETSID)
    set_signal(a, SIGPIPE, IGNORE)
    a.syscall(Call.FORK)
    a.compare("rax", 0)
    a.jump("pass replies", "e")

    a.label("pass requests")
    a.syscall(Call.READ, FUSE_FD, Local(IN), RELAY_LIMIT)
    for again in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # ENOENT: the request was withdrawn
        a.compare("rax", -again)
        a.jump("pass requests", "e")
    a.compare("rax", 0)
    a.jump("unmounted", "le")
    a.move("rdx", "rax")
    a.move("rsi", Local(IN))
    _write_all(a, "pass more", "unmounted")
    a.jump("pass requests")
    a.label("unmounted")
    a.syscall(Call.SHUTDOWN, "r13", 1)
    a.syscall(Call.EXIT, 0)

    a.label("pass replies")
    a.move("rsi", Local(IN))
    a.move("rdx", 16)
    a.call("read")
    a.move("rbx", Value(IN, 4))
    a.compare("rbx", RELAY_LIMIT)
    a.jump("bye", "g")
    a.move("rdx", "rbx")
    a.subtract("rdx", 16)
    a.compare("rdx", 0)
    a.jump("bye", "l")
    a.move("rsi", Local(IN + 16))
    a.call("read")
    a.syscall(Call.WRITE, FUSE_FD, Local(IN), "rbx")  # refused if its request was withdrawn
    a.jump("pass replies")


def _write_all(a: Assembler, again: str, lost: str) -> None:
    """Write rdx bytes at rsi to the connection, r13, in a loop from `again` on; jump to `lost` at its end."""
    a.label(again)
    a.syscall(Call.WRITE, "r13", "rsi", "rdx")
    a.compare("rax", 0)
    a.jump(lost, "le")
    a.add("rsi", "rax")
    a.subtract("rdx", "rax")
    a.compare("rdx", 0)
    a.jump(again, "ne")


def _routines(a: Assembler) -> None:
    a.label("send")  # a frame of kind r9 whose rdx bytes lie behind OUT's header
    a.store(OUT, "r9", 4)
    a.store(OUT + 4, "rdx", 4)
    a.add("rdx", 8)
    a.move("rsi", Local(OUT))
    _write_all(a, "send more", "hang up")
    a.back()

    a.label("read header")  # rbx: kind, rdx: length
    a.move("rsi", Local(HEADER))
    a.move("rdx", 8)
    a.call("read")
    a.move("rbx", Value(HEADER, 4))
    a.move("rdx", Value(HEADER + 4, 4))
    a.back()

    a.label("read")  # rdx bytes to rsi, all of them; the end hangs up. Keeps rbx
    a.compare("rdx", 0)
    a.jump("have read", "e")
    a.syscall(Call.READ, "r13", "rsi", "rdx")
    a.compare("rax", 0)
    a.jump("lost", "le")
    a.add("rsi", "rax")
    a.subtract("rdx", "rax")
    a.jump("read")
    a.label("have read")
    a.back()
    a.label("lost")  # before the command was started there is none to hang up
    a.compare("r12", 0)
    a.jump("bye", "le")
    a.jump("hang up")

    a.label("number")  # rbx: the decimal number at rdi
    a.move("rbx", 0)
    a.label("digit")
    a.load("rcx", "rdi", 0, 1)
    a.subtract("rcx", ord("0"))
    a.compare("rcx", 0)
    a.jump("no digit", "l")
    a.compare("rcx", 9)
    a.jump("no digit", "g")
    a.move("rax", "rbx")
    a.shift_left("rbx", 3)
    a.add("rbx", "rax")
    a.add("rbx", "rax")
    a.add("rbx", "rcx")
    a.add("rdi", 1)
    a.jump("digit")
    a.label("no digit")
    a.back()

    a.data("ptmx", b"/dev/ptmx\0")
    a.data("dev fuse", b"/dev/fuse\0")
    a.data("source", b"pyvmm\0")
    a.data("fuse type", b"fuse\0")
    options = f"fd={FUSE_FD},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    a.data("fuse options", options.encode() + b"\0")
