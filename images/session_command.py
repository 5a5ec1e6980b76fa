"""The part of the guest's program that runs one session: one command on one connection.

r13: the connection; r12: the command's process, or 0; r14: the environment.
"""

from __future__ import annotations

import errno

from pyvmm.images.assembler import Assembler, At, Call, Local, Value
from pyvmm.images.session_layout import (
    ARGV,
    CLOEXEC,
    DEFAULT,
    DRAIN_ROUNDS,
    ENDED,
    EVENTS,
    F_SETFL,
    FD,
    FLAGS,
    IGNORE,
    IN,
    INPUT_FD,
    LEFT,
    NEXT,
    NOCTTY,
    NONBLOCK,
    OUT,
    PIPES,
    POLL,
    POLLIN,
    POLLOUT,
    RDWR,
    READY,
    SIGCHLD,
    SIGCONT,
    SIGHUP,
    SIGPIPE,
    SLAVE,
    SMALL,
    STATUS,
    TIOCGPTPEER,
    TIOCSCTTY,
    TIOCSPTLCK,
    TIOCSWINSZ,
    WINDOW,
    check,
    set_signal,
)
from pyvmm.session_protocol import INPUT_LIMIT, START_LIMIT, TTY, WORDS_LIMIT, Kind


def command_session(a: Assembler) -> None:
    """Add all parts, from the label "session" on."""
    for part in (
        _read_start,
        _start_on_pipes,
        _start_on_terminal,
        _serve,
        _frames_of_the_host,
        _feed,
        _pump,
        _endings,
    ):
        part(a)


def _read_start(a: Assembler) -> None:
    """Read START; argv is in ARGV then."""
    a.label("session")
    a.move("r12", 0)
    set_signal(a, SIGCHLD, DEFAULT)
    set_signal(a, SIGPIPE, IGNORE)
    a.call("read header")
    a.compare("rbx", Kind.START)
    a.jump("bye", "ne")
    a.compare("rdx", START_LIMIT)
    a.jump("bye", "g")
    a.compare("rdx", 16)
    a.jump("bye", "l")
    a.move("rbx", "rdx")
    a.move("rsi", Local(IN))
    a.call("read")
    a.move("rdx", Local(IN))
    a.add("rdx", "rbx")
    a.store(0, 0, 1, base="rdx")  # ends the last word, whatever came
    a.move("rax", Value(IN, 4))
    a.store(FLAGS, "rax")
    a.move("rax", Value(IN + 4))
    a.store(WINDOW, "rax")
    a.move("rcx", Value(IN + 12, 4))
    a.compare("rcx", 1)
    a.jump("bye", "l")
    a.compare("rcx", WORDS_LIMIT)
    a.jump("bye", "g")
    a.move("rsi", Local(IN + 16))
    a.move("rdi", Local(ARGV))
    a.label("word")
    a.compare("rsi", "rdx")
    a.jump("bye", "ge")
    a.store(0, "rsi", base="rdi")
    a.add("rdi", 8)
    a.label("letter")
    a.load("rax", "rsi", 0, 1)
    a.add("rsi", 1)
    a.compare("rax", 0)
    a.jump("letter", "ne")
    a.subtract("rcx", 1)
    a.compare("rcx", 0)
    a.jump("word", "ne")
    a.store(0, 0, base="rdi")
    for slot in FD.values():
        a.store(slot, -1, 4)
        a.store(slot + EVENTS, POLLIN, 4)
    a.store(FD["input"] + EVENTS, POLLOUT, 4)
    for place in (ENDED, LEFT, STATUS):
        a.store(place, 0)
    a.move("rax", Value(FLAGS))
    a.both("rax", TTY)
    a.compare("rax", 0)
    a.jump("terminal", "ne")


def _start_on_pipes(a: Assembler) -> None:
    for pair in range(3):
        a.syscall(Call.PIPE2, Local(PIPES + 8 * pair), CLOEXEC)
        check(a, "failed")
    ends = [Value(PIPES + 4 * each, 4) for each in range(6)]
    a.syscall(Call.FORK)
    check(a, "failed")
    a.jump("parent of pipes", "ne")
    a.syscall(Call.SETSID)
    for descriptor, end in enumerate((ends[0], ends[3], ends[5])):
        a.syscall(Call.DUP2, end, descriptor)
    a.label("execute")
    set_signal(a, SIGPIPE, DEFAULT)
    a.syscall(Call.EXECVE, Value(ARGV), Local(ARGV), "r14")
    a.syscall(Call.EXIT, 127)
    a.label("parent of pipes")
    a.move("r12", "rax")
    for end in (ends[0], ends[3], ends[5]):
        a.syscall(Call.CLOSE, end)
    a.syscall(Call.FCNTL, ends[1], F_SETFL, NONBLOCK)
    for place, end in ((FD["output"], ends[2]), (FD["errors"], ends[4])):
        a.move("rax", end)
        a.store(place, "rax", 4)
    a.move("rax", ends[1])
    a.store(INPUT_FD, "rax")
    a.jump("started")


def _start_on_terminal(a: Assembler) -> None:
    a.label("terminal")
    a.syscall(Call.OPEN, At("ptmx"), RDWR | NOCTTY | CLOEXEC, 0)
    check(a, "failed")
    a.move("rbx", "rax")
    a.store(SMALL, 0)
    a.syscall(Call.IOCTL, "rbx", TIOCSPTLCK, Local(SMALL))
    check(a, "failed")
    a.syscall(Call.IOCTL, "rbx", TIOCGPTPEER, RDWR | NOCTTY | CLOEXEC)
    check(a, "failed")
    a.store(SLAVE, "rax")
    a.syscall(Call.IOCTL, "rbx", TIOCSWINSZ, Local(WINDOW))
    a.syscall(Call.FORK)
    check(a, "failed")
    a.jump("parent of terminal", "ne")
    a.syscall(Call.SETSID)
    a.syscall(Call.IOCTL, Value(SLAVE), TIOCSCTTY, 0)
    for descriptor in range(3):
        a.syscall(Call.DUP2, Value(SLAVE), descriptor)
    a.jump("execute")
    a.label("parent of terminal")
    a.move("r12", "rax")
    a.syscall(Call.CLOSE, Value(SLAVE))
    a.syscall(Call.FCNTL, "rbx", F_SETFL, RDWR | NONBLOCK)
    a.store(FD["output"], "rbx", 4)
    a.store(INPUT_FD, "rbx")


def _serve(a: Assembler) -> None:
    """r12: the command's process. Wait for frames, output and its end."""
    a.label("started")
    a.syscall(Call.PIDFD_OPEN, "r12", 0)
    check(a, "failed")
    a.store(FD["process"], "rax", 4)
    a.store(FD["connection"], "r13", 4)
    a.label("wait")
    a.move("rdx", -1)
    a.move("rax", Value(ENDED))
    a.compare("rax", 0)
    a.jump("poll", "e")
    a.move("rdx", 0)
    a.add("rax", 1)
    a.store(ENDED, "rax")
    a.compare("rax", DRAIN_ROUNDS)
    a.jump("report", "g")
    a.label("poll")
    a.syscall(Call.POLL, Local(POLL), len(FD), "rdx")
    a.compare("rax", 0)
    a.jump("report", "e")
    a.jump("hang up", "l")
    for name, routine in (("connection", "receive"), ("input", "feed")):
        a.move("rax", Value(FD[name] + READY, 2))
        a.compare("rax", 0)
        a.jump(f"no {name}", "e")
        a.call(routine)
        a.label(f"no {name}")
    for name, kind in (("output", Kind.OUTPUT), ("errors", Kind.ERRORS)):
        a.move("rax", Value(FD[name] + READY, 2))
        a.compare("rax", 0)
        a.jump(f"no {name}", "e")
        a.move("r8", Local(FD[name]))
        a.move("r9", int(kind))
        a.call("pump")
        a.label(f"no {name}")
    a.move("rax", Value(FD["process"] + READY, 2))
    a.compare("rax", 0)
    a.jump("wait", "e")
    a.syscall(Call.WAIT4, "r12", Local(STATUS), 0, 0)
    a.store(ENDED, 1)
    for name in ("process", "connection", "input"):
        a.store(FD[name], -1, 4)
    a.jump("wait")


def _frames_of_the_host(a: Assembler) -> None:
    """Receive one frame. Invalid ones hang up."""
    a.label("receive")
    a.call("read header")
    a.compare("rbx", Kind.INPUT)
    a.jump("receive input", "e")
    a.compare("rdx", 8)
    a.jump("hang up", "g")
    a.store(SMALL, 0)
    a.move("rsi", Local(SMALL))
    a.call("read")
    a.compare("rbx", Kind.SIGNAL)
    a.jump("receive signal", "e")
    a.compare("rbx", Kind.WINDOW)
    a.jump("hang up", "ne")
    a.syscall(Call.IOCTL, Value(INPUT_FD), TIOCSWINSZ, Local(SMALL))  # refused by a pipe
    a.back()
    a.label("receive signal")
    a.move("rdi", "r12")
    a.negate("rdi")
    a.syscall(Call.KILL, "rdi", Value(SMALL, 4))
    a.back()

    a.label("receive input")
    a.move("rax", Value(LEFT))
    a.compare("rax", 0)
    a.jump("hang up", "ne")  # only after TAKEN
    a.compare("rdx", INPUT_LIMIT)
    a.jump("hang up", "g")
    a.compare("rdx", 0)
    a.jump("input ends", "e")
    a.store(LEFT, "rdx")
    a.move("rsi", Local(IN))
    a.store(NEXT, "rsi")
    a.call("read")
    a.move("rax", Value(INPUT_FD))
    a.compare("rax", 0)
    a.jump("taken", "l")
    a.store(FD["input"], "rax", 4)
    a.back()
    a.label("input ends")  # a terminal's end of input is a character
    a.move("rax", Value(FLAGS))
    a.both("rax", TTY)
    a.compare("rax", 0)
    a.jump("input ended", "ne")
    a.syscall(Call.CLOSE, Value(INPUT_FD))
    a.store(INPUT_FD, -1)
    a.label("input ended")
    a.back()


def _feed(a: Assembler) -> None:
    """Write input to the command; what it does not take any more is dropped."""
    a.label("feed")
    a.syscall(Call.WRITE, Value(INPUT_FD), Value(NEXT), Value(LEFT))
    a.compare("rax", -errno.EAGAIN)
    a.jump("fed", "e")
    a.compare("rax", 0)
    a.jump("no reader", "l")
    a.move("rcx", Value(NEXT))
    a.add("rcx", "rax")
    a.store(NEXT, "rcx")
    a.move("rcx", Value(LEFT))
    a.subtract("rcx", "rax")
    a.store(LEFT, "rcx")
    a.compare("rcx", 0)
    a.jump("taken", "e")
    a.label("fed")
    a.back()
    a.label("no reader")
    a.move("rax", Value(FLAGS))
    a.both("rax", TTY)
    a.compare("rax", 0)
    a.jump("taken", "ne")  # the terminal's output may go on
    a.syscall(Call.CLOSE, Value(INPUT_FD))
    a.store(INPUT_FD, -1)
    a.label("taken")
    a.store(LEFT, 0)
    a.store(FD["input"], -1, 4)
    a.move("r9", Kind.TAKEN)
    a.move("rdx", 0)
    a.jump("send")


def _pump(a: Assembler) -> None:
    """Send output of the descriptor at r8 as frames of kind r9; -1 takes its place at its end."""
    a.label("pump")
    a.load("rdi", "r8", 0, 4)
    a.syscall(Call.READ, "rdi", Local(OUT + 8), IN - OUT - 8)
    a.compare("rax", -errno.EAGAIN)
    a.jump("pumped", "e")
    a.compare("rax", 0)
    a.jump("output ends", "le")
    a.move("rdx", "rax")
    a.jump("send")
    a.label("output ends")
    a.store(0, -1, 4, base="r8")
    a.label("pumped")
    a.back()


def _endings(a: Assembler) -> None:
    a.label("report")
    a.move("rax", Value(STATUS, 4))
    a.move("r9", Kind.EXIT)
    a.label("last word")
    a.store(OUT + 8, "rax", 4)
    a.move("rdx", 4)
    a.call("send")
    a.syscall(Call.EXIT, 0)
    a.label("failed")
    a.negate("rax")
    a.move("r9", Kind.FAILED)
    a.jump("last word")
    a.label("hang up")
    a.move("rbx", "r12")
    a.negate("rbx")
    a.syscall(Call.KILL, "rbx", SIGHUP)
    a.syscall(Call.KILL, "rbx", SIGCONT)
    a.label("bye")
    a.syscall(Call.EXIT, 1)
