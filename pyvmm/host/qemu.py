"""The emulated host's QEMU: its command line, its process, and the few QMP commands for saving its state.

Source: qemu-system-x86_64(1); QEMU docs/interop/qmp-spec and docs/devel/migration.

QEMU inherits one end of two socket pairs (the port of the agent, and QMP), so there are no socket files to leave
behind, and each side gets an end of file as soon as the other ends. PR_SET_PDEATHSIG kills QEMU when the process
that started it ends, even by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyvmm.client.qmp import Client, Disconnected, Refused, TimedOut
from pyvmm.errors import HostError
from pyvmm.host.boot_image import BootImage
from pyvmm.process import kill_with_parent

PROGRAM = "qemu-system-x86_64"
# mitigations=off, nokaslr: only the user's own commands run in this host, and both cost time under emulation.
# panic=-1 with -no-reboot: a panic ends QEMU. Without tsc=reliable the host has no TSC clocksource and KVM no Hyper-V
# reference TSC page.
# Making a VM waits for a grace period of RCU: 11 ms, 2 if it is expedited, which costs one CPU nothing.
KERNEL_OPTIONS = "tsc=reliable quiet panic=-1 console=ttyS0 mitigations=off nokaslr rcupdate.rcu_expedited=1"
# One CPU, however many the guest has. With two, a guest with two vCPUs crashed about once in a hundred seconds of
# serial output (QEMU 7.2 and 10.0 alike): a triple fault, or no more interrupts. With one, no guest crashed in all
# our runs, which take half as long again for such guests; the host's hangs needed client.NUDGE_EVERY as well.
# See docs/emulated-host.md.
CPUS = 1

LACKING = "-erms,-fsrm,-xsave,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq,-pku,-la57"
"""What the emulated host's CPU lacks of QEMU's `max`, each for a reason told in `command_line`."""

QMP_TIMEOUT = 20.0
"""Timeout, in seconds, of the QMP greeting and of each command."""

SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
"""QEMU's own seccomp filter: no programs or processes, no change of user, no system calls that QEMU does not need."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The parameters of QEMU that differ between emulated hosts."""

    memory_mib: int


def find_qemu() -> str:
    """Return the path of QEMU. Raises HostError if there is none."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise HostError(f"{PROGRAM}: not found (the emulated host runs in it): apt-get install qemu-system-x86")
    return found


def version(program: str) -> str:
    """Return the first line of QEMU's `--version`."""
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{program} --version: {error}") from error
    return text.splitlines()[0] if text else "unknown"


def has_sandbox(program: str) -> bool:
    """Return whether this QEMU was built with its seccomp filter, and the kernel accepts it."""
    orders = '{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n'
    argv = [program, *SANDBOX, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"]
    try:
        done = subprocess.run(argv, input=orders, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def command_line(program: str, image: BootImage, hardware: Hardware, agent: int, qmp: int, log: int) -> list[str]:
    """Return QEMU's arguments. A saved state can be restored only with the same ones."""
    return [
        program,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-M", "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off"),
        # On the first Opteron's CPU model, without ERMS and FSRM, Linux clears and copies memory in loops, in the
        # host and its guests, not with REP, which TCG runs step by step. Clearing takes less than half as long.
        # And without XSAVE and all that needs it: TCG runs a guest's XSETBV on the host's vCPU with no exit to KVM.
        # Linux 6.1 and 6.12 detect inconsistent sizes and disable XSAVE; 5.10 hangs, 7.2 panics. 7.3 warns of VAES
        # without AVX.
        # And without LA57: each exit empties TCG's TLB, and a walk of 4 by 4 levels is faster than of 5 by 5.
        *("-accel", "tcg,thread=multi,tb-size=512"),
        *("-cpu", f"max,family=15,model=5,stepping=1,+svm,+npt,{LACKING}"),
        *("-smp", str(CPUS), "-m", f"{hardware.memory_mib}M"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", KERNEL_OPTIONS),
        *("-chardev", f"file,id=console,path=/proc/self/fd/{log}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=agent,fd={agent}", "-device", "virtio-serial-pci,max_ports=2"),
        *("-device", "virtserialport,chardev=agent,name=pyvmm.agent,nr=1"),
        *("-fsdev", "local,id=root,path=/,security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", "local,id=usr,path=/usr,security_model=none,multidevs=remap,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=usr,mount_tag=usr"),
    ]


class Qemu:
    """A running QEMU: its process, its QMP connection, and the agent's port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, qmp: socket.socket, logs: list[int]) -> None:
        self.process = process
        self.port = port  # this process's end of the agent's port
        self._socket = qmp
        self._client: Client | None = None  # after `greet`
        self._logs = logs  # output of QEMU and of its kernel; in memory, so no file is left behind

    @classmethod
    def launch(cls, image: BootImage, hardware: Hardware, more: Sequence[str] = (), fds: Sequence[int] = ()) -> Qemu:
        """Start QEMU with `more` arguments and the descriptors `fds`. Call it from a thread that outlives QEMU:
        PR_SET_PDEATHSIG kills it when the thread ends.
        """
        program = find_qemu()
        agent_ours, agent_theirs = socket.socketpair()
        qmp_ours, qmp_theirs = socket.socketpair()
        errors, console = os.memfd_create("qemu-errors"), os.memfd_create("host-console")
        argv = command_line(program, image, hardware, agent_theirs.fileno(), qmp_theirs.fileno(), console)
        bound = kill_with_parent()

        def before_exec() -> None:
            bound()
            os.setpgid(0, 0)  # Ctrl-C in the terminal signals this process, which forwards it

        try:
            process = subprocess.Popen(
                [*argv, *more],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[agent_theirs.fileno(), qmp_theirs.fileno(), console, *fds],
                preexec_fn=before_exec,
                umask=0o077,  # for its memory and state files; files of commands inside get the mode they request
            )
        except OSError as error:
            for end in (agent_ours, qmp_ours):
                end.close()
            for log in (errors, console):
                os.close(log)
            raise HostError(f"{program}: {error.strerror}") from error
        finally:
            agent_theirs.close()
            qmp_theirs.close()
        return cls(process, agent_ours.detach(), qmp_ours, [errors, console])

    def said(self) -> str:
        """Return the output of QEMU and of the kernel in it so far."""
        texts = [os.pread(log, 1 << 20, 0).decode(errors="replace") for log in self._logs]
        return "".join(texts)

    def why_ended(self) -> str:
        """Return one line about why QEMU or the kernel in it ended."""
        lines = [re.sub(r"\s+", " ", line.strip()) for line in self.said().splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"panic - |pyvmm-host: |qemu-system", line)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(0.2)
            if status == -signal.SIGBUS:
                return "no space left for its memory; free some, or set PYVMM_CACHE to a folder elsewhere"
            if status < 0:
                lines.append(f"killed by {signal.Signals(-status).name}")
        return (telling or lines or ["no output"])[-1][:300]

    def kill(self) -> None:
        """End QEMU now and reap it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.port)
        self._socket.close()
        while self._logs:
            os.close(self._logs.pop())

    # QMP

    def greet(self) -> None:
        """Start the QMP session. Raises HostError if QEMU ended instead."""
        with self._explained("qmp_capabilities"):
            self._client = Client("QEMU", QMP_TIMEOUT, self._socket)

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command and return its answer. Raises HostError if QEMU refuses."""
        assert self._client is not None, "greet() comes first"
        with self._explained(command):
            return self._client.execute(command, arguments)

    @contextlib.contextmanager
    def _explained(self, command: str) -> Iterator[None]:
        """Convert the QMP client's errors into HostError with a line about QEMU."""
        try:
            yield
        except Disconnected as error:
            raise HostError(f"QEMU ended: {self.why_ended()}") from error
        except TimedOut as error:
            raise HostError("QEMU does not answer") from error
        except Refused as error:
            raise HostError(f"QEMU {command}: {error}") from error

    def save(self, target: str, timeout: float = 60) -> None:
        """Stop the machine and write its state to `target`, a migration URI."""
        until = time.monotonic() + timeout
        self.execute("stop")
        # The default limit of 128 MiB/s is meant for networks.
        self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.execute("migrate", uri=target)
        self.wait_migrated(until)

    def wait_migrated(self, until: float) -> None:
        """Wait until a migration, outgoing or incoming, has completed."""
        while True:
            answer = self.execute("query-migrate")
            match answer.get("status"):
                case "completed":
                    return
                case "failed" | "cancelled":
                    raise HostError(f"QEMU: saving or restoring its state failed: {answer.get('error-desc', '')}")
            if time.monotonic() > until:
                raise HostError("QEMU: saving or restoring its state takes too long")
            time.sleep(0.02)
