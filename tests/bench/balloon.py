"""Memory out of a guest, back, and past its boot size: pyvmm beside QEMU's hv-balloon and virtio-balloon, in turns.

    python -m tests.bench.balloon [--runs N] [--image debian-6.1] [--only NAME ...]

The same kernel, one vCPU and 1536 MiB for all, each driven through QMP by the same calls, each the only thing that
runs at its time. A step ends when query-balloon tells the wanted size; but memory that hv-balloon gives back counts
there as soon as it is offered, so that step ends with the guest's last answer, by the trace event that both have
(hv_balloon_incoming_unballoon). Peaks are the process's VmHWM since the step began. Where the local KVM does not run
Linux all of it happens in the emulated host.

QEMU 10.0.2 ends itself now and then while it balloons (vmbus.c: gpadl_iter_seek: Assertion `iter->active'). A VMM
that dies is started again, TRIES times, and the report counts its deaths.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from pyvmm.analysis.read import parse_line
from pyvmm.client.qmp import Client, Disconnected
from pyvmm.errors import PyvmmError
from pyvmm.host.inside import socket_path
from pyvmm.machine.agent_protocol import AgentClient, Exited
from tests.bench import boot

T = TypeVar("T")
MIB = 1 << 20
BOOT = 1536 * MIB
MOVED = 1024 * MIB
FIRST = 16 * MIB  # what the first command takes out
FILL = 600  # MiB written and freed again on each of two tmpfs, which hold half of RAM at most
LIMIT = 150.0  # seconds for one step
HOST_MIB = 4608
POLL = 0.002
QUIET = 0.5  # seconds without another answer, after which the last was the last
SETTLE = 5.0  # seconds before what is left is looked at: free pages are reported at leisure
TRIES = 3
ANSWERED = "hv_balloon_incoming_unballoon"

TIMES = ("first", "out", "back", "out-dirty", "back-dirty", "add")
SIZES = ("peak-out", "left-dirty")
EXPLAINED = {
    "first": "s to the first command's effect, given when the guest takes commands",
    "out": "s, 1 GiB out that the guest never touched",
    "back": "s, and back",
    "out-dirty": "s, 1 GiB out after the guest has written it",
    "back-dirty": "s, and back",
    "add": "s, hot-add 1 GiB",
    "peak-out": "MiB resident at most while 1 GiB of untouched memory goes out",
    "left-dirty": f"MiB resident {SETTLE:.0f} s after 1 GiB of written memory went out",
}


class Guest(ABC):
    """A VMM process with a guest in it. `can_add`: whether memory can be added."""

    name = ""
    can_add = True

    def __init__(self, folder: Path, image: Any, facts: dict[str, Any]) -> None:
        self.folder, self.image, self.facts = folder, image, facts
        argv, environment = self.command()
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def begin(self) -> None:
        """Wait until it takes QMP commands."""
        self.qmp = self.connect(lambda: Client(self.address("qmp"), LIMIT), "monitor")

    @abstractmethod
    def command(self) -> tuple[Sequence[str], dict[str, str]]:
        """How it is started."""

    @abstractmethod
    def run(self, command: str) -> None:
        """Run a command in the guest; waits for a guest that still boots."""

    def address(self, name: str) -> str:
        """The path of one of its sockets."""
        return str(self.folder / name)

    def connect(self, attempt: Callable[[], T], what: str) -> T:
        """What `attempt` makes, once the other side is there."""

        def quietly() -> T | None:
            with contextlib.suppress(OSError, Disconnected):
                return attempt()
            return None

        made: T = self.until(quietly, what)
        return made

    def until(self, ready: Callable[[], Any], what: str) -> Any:
        limit = time.monotonic() + LIMIT
        while not (result := ready()):
            if time.monotonic() > limit or self.process.poll() is not None:
                raise RuntimeError(f"{self.name}: no {what}")
            time.sleep(POLL)
        return result

    def balloon(self, size: int) -> float:
        """Seconds until the guest has `size`."""
        begun = time.monotonic()
        self.qmp.execute("balloon", {"value": size})
        self.until(lambda: self.qmp.execute("query-balloon")["actual"] == size, f"{size >> 20} MiB")
        return time.monotonic() - begun

    def give_back(self) -> float:
        """Seconds until the guest has taken its whole boot memory back."""
        limit = time.time() + LIMIT
        begun, clock = len(self.answers()), self.answer_clock()
        self.balloon(BOOT)
        known = begun
        while known == begun or known != len(self.answers()):
            known = len(self.answers())
            time.sleep(QUIET)  # and looks seldom: it runs on the guest's processor
            if time.time() > limit:
                raise RuntimeError(f"{self.name}: no answer to unballoon")
        return self.answers()[-1] - clock

    def answers(self) -> list[float]:
        """When the guest answered to memory given back, by the trace and the clock that `answer_clock` tells."""
        path = self.folder / "events"
        found = (parse_line(line) for line in (path.read_text().splitlines() if path.exists() else []))
        return [entry.time for entry in found if entry is not None and entry.name == ANSWERED]

    @abstractmethod
    def answer_clock(self) -> float: ...

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def memory(self, field: str) -> float:
        """VmRSS or VmHWM, in MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"{self.name}: no {field}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Pyvmm(Guest):
    name = "pyvmm"

    def command(self) -> tuple[Sequence[str], dict[str, str]]:
        argv = [sys.executable, "-m", "pyvmm.cli.main", "run", "--host", "local", "--image", self.image.name]
        argv += ["-m", f"{BOOT >> 20}M,max={BOOT + MOVED >> 20}M", "--console", "none"]
        argv += ["--trace", ANSWERED, "--trace-file", str(self.folder / "events"), "--trace-format", "json"]
        return [*argv, "--qmp", str(self.folder / "qmp"), *self.more()], {}

    def answer_clock(self) -> float:
        return time.monotonic()

    def more(self) -> list[str]:
        return []

    def address(self, name: str) -> str:
        return socket_path(self.folder / name)  # in an emulated host it serves elsewhere than it was told

    def run(self, command: str) -> None:
        reply = self.qmp.execute("x-execute", {"command": command, "timeout": int(LIMIT)})
        if reply["status"]:
            raise RuntimeError(f"{self.name}: {command}: {base64.b64decode(reply['stderr'])!r}")


class PyvmmUser(Pyvmm):
    name = "pyvmm-user"

    def more(self) -> list[str]:
        return ["--hyperv", "user"]


class PyvmmSilent(Pyvmm):
    name = "pyvmm-no-reporting"

    def more(self) -> list[str]:
        return ["--no-page-reporting"]


class QemuHv(Guest):
    name = "qemu-hv-balloon"
    cpu = f"host,kvm=off,{boot.HV_FLAGS}"

    def devices(self) -> list[str]:
        backend = f"memory-backend-ram,id=more,size={MOVED >> 20}M"
        return ["-device", "vmbus-bridge", "-object", backend, "-device", "hv-balloon,memdev=more"]

    def initrd(self) -> str:
        return str(self.image.initrd)

    def command(self) -> tuple[Sequence[str], dict[str, str]]:
        argv = [self.facts["program"], *self.facts["options"], "-accel", "kvm", "-M", "pc", "-cpu", self.cpu]
        argv += ["-m", f"{BOOT >> 20}M,slots=2,maxmem=70G", "-smp", "1", "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", *self.devices(), "-kernel", str(self.image.kernel), "-initrd", self.initrd()]
        argv += ["-append", f"console=ttyS0 quiet {boot.GUEST_WORDS} memhp_default_state=online pyvmm.agent"]
        # Linux's hv_balloon ignores the host where the machine can hibernate.
        argv += ["-global", "PIIX4_PM.disable_s4=1", "-serial", "null"]
        for name, use in (("agent", ("-serial", "chardev:agent")), ("qmp", ("-mon", "chardev=qmp,mode=control"))):
            argv += ["-chardev", f"socket,id={name},path={self.folder / name},server=on,wait=off", *use]
        argv += ["-msg", "timestamp=on", "-d", f"trace:{ANSWERED}", "-D", str(self.folder / "events")]
        return argv, self.facts["environment"]

    def answer_clock(self) -> float:
        return time.time()

    def run(self, command: str) -> None:
        if not hasattr(self, "port"):
            self.port, self.agent = self.connect(self.agent_port, "agent"), AgentClient()
        while not self.agent.ready:
            self.agent.feed(self.port.recv(65536))
        number, request = self.agent.run(command)
        self.port.sendall(request)
        while True:
            for event in self.agent.feed(self.port.recv(65536)):
                if isinstance(event, Exited) and event.id == number:
                    if event.status:
                        raise RuntimeError(f"{self.name}: {command}: status {event.status}")
                    return

    def agent_port(self) -> socket.socket:
        """Raises OSError."""
        port = socket.socket(socket.AF_UNIX)
        try:
            port.connect(self.address("agent"))
        except OSError:
            port.close()
            raise
        port.settimeout(LIMIT)
        return port


class QemuVirtio(QemuHv):
    name = "qemu-virtio-balloon"
    cpu = "host"
    can_add = False

    def devices(self) -> list[str]:
        return ["-device", "virtio-balloon-pci"]

    def give_back(self) -> float:
        return self.balloon(BOOT)  # what it has is what the guest says

    def initrd(self) -> str:
        return str(self.facts["virtio-initrd"])


class QemuVirtioReporting(QemuVirtio):
    name = "qemu-virtio-reporting"

    def devices(self) -> list[str]:
        return ["-device", "virtio-balloon-pci,free-page-reporting=on"]


CONTENDERS = (Pyvmm, PyvmmUser, PyvmmSilent, QemuHv, QemuVirtio, QemuVirtioReporting)


class Steps(dict[str, float]):
    """Results, told as they come: a round takes minutes under emulation."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __setitem__(self, step: str, value: float) -> None:
        super().__setitem__(step, value)
        print(f"{self._name}: {step} {value:.3f}", flush=True)


def measure(guest: Guest) -> dict[str, float]:
    """All steps, in the order of EXPLAINED."""
    result = Steps(guest.name)
    guest.run("true")
    result["first"] = guest.balloon(BOOT - FIRST)
    guest.balloon(BOOT)
    guest.forget_peak()
    result["out"] = guest.balloon(BOOT - MOVED)
    result["peak-out"] = guest.memory("VmHWM")
    result["back"] = guest.give_back()
    for place in ("/tmp", "/run"):
        guest.run(f"dd if=/dev/zero of={place}/fill bs=1M count={FILL} 2>/dev/null")
    guest.run("rm /tmp/fill /run/fill")
    result["out-dirty"] = guest.balloon(BOOT - MOVED)
    time.sleep(SETTLE)
    result["left-dirty"] = guest.memory("VmRSS")
    result["back-dirty"] = guest.give_back()
    if guest.can_add:
        result["add"] = guest.balloon(BOOT + MOVED)
    return result


def virtio_initrd(image: Any) -> str:
    """The image's initramfs with virtio's modules instead of Hyper-V's."""
    from pyvmm.images.catalog import RECIPES, initrd_for
    from pyvmm.images.modules import ModuleTree
    from pyvmm.images.packages import download, find_package, unpack

    package = find_package(RECIPES[image.name].pattern, RECIPES[image.name].suites)
    with tempfile.TemporaryDirectory() as folder:
        unpack(download(package), Path(folder))
        (tree,) = Path(folder).glob("lib/modules/*")
        return str(initrd_for(f"virtio-{image.name}", ModuleTree(tree).load_order(["virtio_pci", "virtio_balloon"])))


def report(label: str, image: str, results: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and ratios to QEMU's: below 1 is better than QEMU."""
    print(f"\n{image}, 1 vCPU, {BOOT >> 20} MiB; {label}; medians, ratio to qemu-hv-balloon / qemu-virtio-balloon")
    names = [name for name, runs in results.items() if runs]

    def middle(name: str, step: str) -> float | None:
        values = [run[step] for run in results.get(name, []) if step in run]
        return median(values) if values else None

    for step in (*TIMES, *SIZES):
        print(f"\n{step}: {EXPLAINED[step]}")
        for name in names:
            value = middle(name, step)
            if value is None:
                continue
            others = (middle(QemuHv.name, step), middle(QemuVirtio.name, step))
            ratios = "".join(f"{value / other:10.2f}" if other else f"{'-':>10}" for other in others)
            print(f"  {name:22}{value:10.3f}{ratios}")


def main() -> int:
    """See the module."""
    from pyvmm.images.catalog import find_image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--image", default="debian-6.1")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", choices=[c.name for c in CONTENDERS])
    parser.add_argument("--qemu", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.qemu is None:
        facts = json.loads(boot.qemu_facts(options.image))
        facts["virtio-initrd"] = virtio_initrd(find_image(options.image))
        arguments = [*sys.argv[1:], "--qemu", json.dumps(facts)]
        return boot.run_where_linux_runs(arguments, __spec__.name, memory_mib=HOST_MIB)
    facts = json.loads(options.qemu)
    image = find_image(options.image, build=False)
    results: dict[str, list[dict[str, float]]] = {}
    deaths: Counter[str] = Counter()
    for _ in range(options.runs):
        for kind in CONTENDERS:
            if (options.only and kind.name not in options.only) or (kind is QemuHv and not facts["has_balloon"]):
                continue
            for _ in range(TRIES):
                if taken := attempt(kind, image, facts):
                    results.setdefault(kind.name, []).append(taken)
                    break
                deaths[kind.name] += 1
    report(facts["label"], options.image, results)
    for name, count in deaths.items():
        print(f"{name} did not get to the end {count} times")
    return int(any(name.startswith("pyvmm") for name in deaths))


def attempt(kind: type[Guest], image: Any, facts: dict[str, Any]) -> dict[str, float]:
    """What it measured; nothing if the VMM did not get to the end."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, contextlib.ExitStack() as stack:
        try:
            guest = kind(Path(folder), image, facts)
            stack.callback(guest.close)
            guest.begin()
            return measure(guest)
        except (RuntimeError, OSError, PyvmmError) as error:
            said = (Path(folder) / "log").read_text(errors="replace")[-500:].strip()
            print(f"{kind.name}: {error}; it said: {said}", file=sys.stderr, flush=True)
            return {}


if __name__ == "__main__":
    sys.exit(main())
