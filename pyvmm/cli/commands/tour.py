"""`pyvmm tour`: a demonstration: boot, what Linux detects, inflate and deflate the balloon, a shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.guest_options import SizeType, complete_image
from pyvmm.cli.tour_show import JsonReporter, Measured, TextReporter, TourReporter
from pyvmm.cli.words import RepeatableCommand, command_words
from pyvmm.errors import ConfigError
from pyvmm.guest_text import one_line
from pyvmm.launch.options import GuestOptions
from pyvmm.launch.where import dispatch_run, print_message
from pyvmm.sizes import MemorySpec

if TYPE_CHECKING:
    from pyvmm.devices.balloon.plan import ResizeOutcome
    from pyvmm.machine import MachineConfig
    from pyvmm.machine.config import EngineChoice

MIB = 1 << 20
RESIZE_LIMIT = 30.0  # seconds for one resize
BOOT_LIMIT = 90.0
FILL_SHARE = 0.4  # of the guest's memory
NAMES = ("MemTotal:", "MemFree:")
READINGS = 3
"""Readings per measurement, of which the highest counts: free page reporting in Linux isolates up to 128 MiB for
milliseconds."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A step: run this command in the guest; its result is the command's output."""

    command: str


@dataclass(frozen=True, slots=True)
class Resize:
    """A step: set the balloon's target, in bytes; it ends with the resize."""

    size: int


Step = Guest | Resize
Script = Generator[Step, str, None]


@click.command(cls=RepeatableCommand)
@click.option("--image", shell_complete=complete_image, help="The guest's image; `pyvmm image list` shows them.")
@click.option("--memory", "-m", type=SizeType(), default="512M", show_default=True, help="RAM at boot.")
@click.option("--cpus", type=int, default=1, show_default=True, help="Virtual CPUs.")
@click.option("--hyperv", type=click.Choice(["auto", "kernel", "user"]), default="auto", show_default=True)
@click.option("--host", type=click.Choice(["auto", "local", "emulated"]), default="auto", show_default=True)
@click.option("--name", default=None, help="The machine's name, for `pyvmm status` and the others.")
@click.option("--control-socket", type=click.Path(path_type=Path), hidden=True)
@click.option("--shell/--no-shell", default=None, help="End in the guest's shell. Default: if there is a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line per step; no shell at the end.")
@click.pass_context
def tour(
    ctx: click.Context,
    image: str | None,
    memory: int,
    cpus: int,
    hyperv: EngineChoice,
    host: str,
    name: str | None,
    control_socket: Path | None,
    shell: bool | None,
    as_json: bool,
) -> None:
    """TourReporter the main job: Linux on Hyper-V, resized by hv-balloon.

    Boots the default guest, shows what it sees of Hyper-V, takes half of its memory out and gives it back with the
    guest's and the host's figures at each step, then hands you its shell (or powers it off where there is no
    terminal).

    \b
    pyvmm tour -m 1G
    pyvmm tour --json | jq 'select(.step == "resized") | {target, seconds, resident}'
    """
    if as_json and shell:
        raise click.UsageError("--json and --shell exclude each other")
    if memory < 256 * MIB:
        raise ConfigError("the tour needs 256 MiB of memory or more, to have some to show")

    options = GuestOptions(image=image, memory=MemorySpec(memory), cpus=cpus, hyperv=hyperv)

    def make_config() -> MachineConfig:
        from pyvmm.launch.build import build_config

        return build_config(options, progress=print_message)

    def run_local(config: MachineConfig, sockets: list[Path]) -> int:
        if as_json:
            return _run(config, sockets, JsonReporter(), False)
        wanted = shell if shell is not None else sys.stdin.isatty() and sys.stdout.isatty()
        return _run(config, sockets, TextReporter(), wanted)

    ctx.exit(
        dispatch_run(command_words(ctx), make_config, run_local, host=host, name=name, control_socket=control_socket)
    )


def _run(config: MachineConfig, sockets: list[Path], show: TourReporter, shell: bool) -> int:
    from pyvmm.launch.attended import report
    from pyvmm.launch.consoles import StdioConsole, SwitchableConsole
    from pyvmm.launch.exit_status import status_of
    from pyvmm.launch.outputs import (
        FLUSH_TIMEOUT,
        connect,
        disconnect,
        drain,
        final_status,
        report_ended,
        threaded_outputs,
    )
    from pyvmm.launch.session import Session
    from pyvmm.output import Output

    started = time.monotonic()
    console = SwitchableConsole()
    with threaded_outputs() as outputs, Session(config, sockets=sockets, console=lambda: console) as session:
        machine = session.machine
        guide = _Guide(machine, show, shell, started)

        def finished() -> None:
            if shell:
                console.switch_to(StdioConsole(outputs.out))
                console.attach(machine)
                machine.board.serials[0].receive(b"\n")  # makes the shell print its prompt again
            else:
                machine.powerdown()

        def failed(output: Output, error: OSError) -> None:
            if machine.outcome is None:
                report_ended(output, error)
                guide.interrupted(status_of(error))

        connect(machine, 0, outputs.out, failed)
        guide.finished = finished
        session.start(lambda number: guide.interrupted(128 + number))
        guide.start()
        outcome = machine.run()
        machine.halt()
        console.release()
        sys.stdout.flush()
        orderly = guide.status is None
        drain(machine, [outputs.out], lambda: machine.hurried, None if orderly else FLUSH_TIMEOUT)
        machine.close()
        console.close()
        status = final_status([outputs.out], guide.status if guide.status is not None else report(outcome))
        disconnect([outputs.out])
        return status


class _Guide:
    """Runs the steps of the tour: the result of each starts the next."""

    def __init__(self, machine: Any, show: TourReporter, shell: bool, started: float) -> None:
        self._machine = machine
        self._show = show
        self._shell = shell
        self._started = started
        self._script = self._steps()
        self._text = bytearray()
        self._timer: Any = None
        self.finished: Callable[[], None] = lambda: None
        self.status: int | None = None
        self._resizing = False
        self._outcome: ResizeOutcome | None = None

    def start(self) -> None:
        self._machine.balloon.on_finish.append(self._resized)
        self._show.booting(self._machine.config.cpus, self._machine.config.memory)
        self._limit(BOOT_LIMIT, "the guest did not boot in time")
        self._advance(None)

    def interrupted(self, status: int) -> None:
        self.status = status
        self._machine.quit()

    def _steps(self) -> Script:
        boot = yield Guest("uname -r; nproc")
        release, cpus = boot.split()[:2]
        self._show.booted(release, int(cpus), time.monotonic() - self._started, self._machine.engine.name)
        log = yield Guest(
            "dmesg | grep -E 'Hypervisor detected|Vmbus version|Using Dynamic Memory|Switched to clocks'"
        )
        self._show.seen(log.splitlines())
        self._show.devices(self._machine.monitor.info_vmbus())
        self._show.memory((yield from self._measure()))
        boot_size = self._machine.config.memory
        fill = int(boot_size * FILL_SHARE) // MIB
        yield Guest(f"dd if=/dev/zero of=/tmp/fill bs=1M count={fill} 2>/dev/null; rm /tmp/fill")
        self._show.memory((yield from self._measure()), fill * MIB)
        for size in (boot_size // 2, boot_size):
            before = time.monotonic()
            yield Resize(size)
            took = time.monotonic() - before
            outcome = self._outcome
            assert outcome is not None
            self._show.resized(size, outcome.actual, outcome.reason, took, (yield from self._measure()))
        self._show.over(self._shell)

    def _measure(self) -> Generator[Step, str, Measured]:
        resident = self._machine.monitor.resident()  # first: free page reporting may lower it during the readings
        text = yield Guest(
            f"for i in $(seq {READINGS}); do grep -E '^Mem(Total|Free):' /proc/meminfo; sleep 0.05; done"
        )
        lines = [line.split() for line in text.splitlines()]
        total, free = (max(int(size) << 10 for name, size, _ in lines if name == wanted) for wanted in NAMES)
        return Measured(total, free, resident)

    def _advance(self, answer: str | None) -> None:
        try:
            step = next(self._script) if answer is None else self._script.send(answer)
        except StopIteration:
            self._limit(None, "")
            self.finished()
            return
        match step:
            case Guest(command):
                self._text.clear()
                self._machine.agent.execute(command, self._output, self._command_done)
            case Resize(size):
                self._resizing = True
                self._machine.monitor.balloon_set(size)
        if answer is not None:
            self._limit(RESIZE_LIMIT, f"no answer to {step}")

    def _output(self, stream: str, data: bytes) -> None:
        self._text += data

    def _command_done(self, status: int | None) -> None:
        if status is None:
            self._fail("the guest restarted during the tour")
        else:
            self._advance(self._text.decode("utf-8", "replace"))

    def _resized(self, outcome: ResizeOutcome) -> None:
        if self._resizing:
            self._resizing = False
            self._outcome = outcome
            self._advance("")

    def _limit(self, seconds: float | None, text: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._machine.loop.after(seconds, lambda: self._fail(text))

    def _fail(self, text: str) -> None:
        print(f"pyvmm: {one_line(text)}", file=sys.stderr)
        self.status = 1
        self._machine.quit()
