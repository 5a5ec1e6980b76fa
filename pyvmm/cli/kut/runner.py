"""Runs one test: a machine in a child process, whose end, output and time make the result.

The child is confined like `pyvmm run`, and is killed if it still runs after the time limit.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyvmm.cli.kut.plan import NOW
from pyvmm.errors import ConfigError, PyvmmError
from pyvmm.process import kill_with_parent

if TYPE_CHECKING:
    from pyvmm.cli.kut.plan import Plan
    from pyvmm.machine.config import EngineChoice

Verdict = Literal["PASS", "FAIL", "SKIP", "TIMEOUT"]

OUTPUT_LIMIT = 1 << 20
"""Bytes of a test's output that are kept; what comes before the last of them is dropped."""

GRACE = 10.0
"""Seconds after the time limit until a child that has not ended is killed."""

SKIPPED = 77  # exit status of a test that found nothing to do: it writes 38 to the exit port
_FAILURE = re.compile(r"^(FAIL|ABORT|Unhandled|unhandled|Assert|assert)", re.MULTILINE)
_SUMMARY = re.compile(r"^SUMMARY: (.*)$", re.MULTILINE)
_SKIP = re.compile(r"^SKIP: (.*)$", re.MULTILINE)
_SHOWN_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Result:
    """How a test ended. `why`: the test's own summary, or the reason; `engine`: who implemented Hyper-V."""

    name: str
    verdict: Verdict
    seconds: float
    why: str
    engine: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self) | {"seconds": round(self.seconds, 2)}


@dataclass(slots=True)
class End:
    """The end of a child: how its machine ended, in the words of `machine.Outcome`, or `killed`."""

    kind: str
    text: str = ""
    status: int = 0
    engine: str = ""


def run_test(plan: Plan, engine: EngineChoice, show: Callable[[bytes], None]) -> Result:
    """Run the test and return its result. `show` gets its output as it comes."""
    started = time.monotonic()
    kept = bytearray()

    def take(data: bytes) -> None:
        show(data)
        kept.extend(data)
        if len(kept) > 2 * OUTPUT_LIMIT:
            del kept[:-OUTPUT_LIMIT]

    end = _run_child(plan, engine, take)
    output = kept.decode("utf-8", "replace").replace("\r", "")
    verdict, why = judge(end, output, plan.timeout)
    return Result(plan.name, verdict, time.monotonic() - started, why, end.engine)


def judge(end: End, output: str, timeout: float) -> tuple[Verdict, str]:
    """Return the verdict, and what there is to say about it."""
    summaries = _SUMMARY.findall(output)
    summary = summaries[-1] if summaries else ""
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    match end.kind:
        case "exit" if end.status == 1:
            return "PASS", summary
        case "exit" if end.status == SKIPPED:
            lines = [line for line in output.splitlines() if line.strip() and not _SUMMARY.match(line)]
            return "SKIP", "; ".join(_SKIP.findall(output)[:_SHOWN_FAILURES]) or (lines[-1] if lines else summary)
        case "exit":
            failures = [line for line in output.splitlines() if _FAILURE.match(line)]
            more = f" and {len(failures) - _SHOWN_FAILURES} more" if len(failures) > _SHOWN_FAILURES else ""
            said = "; ".join(failures[:_SHOWN_FAILURES]) + more if failures else f"exit({end.status >> 1}): {last}"
            return "FAIL", f"{summary}: {said}" if summary else said
        case "quit" | "killed":
            return "TIMEOUT", f"no end after {timeout:g} s; its last line: {last}"
        case "reset":
            return "FAIL", f"the guest reset ({end.text}); its last line: {last}"
        case "poweroff":
            return "FAIL", f"the guest powered off without a result; its last line: {last}"
    return "FAIL", end.text if end.text else f"pyvmm's process failed: {last}"


def _run_child(plan: Plan, engine: EngineChoice, take: Callable[[bytes], None]) -> End:
    """Fork, pass on the child's output until it ends, and return its end."""
    # Here, so that not each child imports them anew.
    import pyvmm.launch.session
    import pyvmm.machine.services  # noqa: F401
    from pyvmm.machine.devices import load_devices

    load_devices()
    sys.stdout.flush()
    sys.stderr.flush()
    output, output_end = os.pipe()
    report, report_end = os.pipe()
    die_with_parent = kill_with_parent()
    child = os.fork()
    if not child:
        _in_child(plan, engine, output_end, report_end, die_with_parent)
    os.close(output_end)
    os.close(report_end)
    try:
        in_time = _pump(output, take, plan.timeout + GRACE)
        said = _pump_report(report) if in_time else b""
    finally:
        os.kill(child, signal.SIGKILL)  # it has ended, does not end, or Ctrl-C ends us
        _, status = os.waitpid(child, 0)
        os.close(output)
        os.close(report)
    if not in_time:
        return End("killed")
    try:
        return End(**json.loads(said))
    except ValueError:
        code = os.waitstatus_to_exitcode(status)
        return End("error", f"pyvmm's process was ended by signal {-code}" if code < 0 else "")


def _pump(fd: int, take: Callable[[bytes], None], seconds: float) -> bool:
    """Pass on what comes until its end. Return False if that did not come in `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        data = os.read(fd, 65536)
        if not data:
            return True
        take(data)


def _pump_report(fd: int) -> bytes:
    data = bytearray()
    _pump(fd, data.extend, GRACE)
    return bytes(data)


def _in_child(
    plan: Plan, engine: EngineChoice, output: int, report: int, die_with_parent: Callable[[], None]
) -> None:
    """Run the machine, report its end as JSON, and end the process."""
    status = 1
    try:
        die_with_parent()
        null = os.open(os.devnull, os.O_RDWR)
        for fd, new in ((null, 0), (output, 1), (output, 2)):
            os.dup2(fd, new)
        os.close(output)
        end = _run_machine(plan, engine)
        os.write(report, json.dumps(asdict(end)).encode())
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        os.write(2, traceback.format_exc().encode())  # into the test's output
    finally:
        os._exit(status)


def _run_machine(plan: Plan, engine: EngineChoice) -> End:
    from pyvmm.launch.consoles import CallbackConsole
    from pyvmm.launch.session import Session
    from pyvmm.machine import MachineConfig

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(1, data) :]

    config = MachineConfig(
        kernel=plan.kernel,
        cmdline=f"{plan.kernel.name} {plan.arguments.replace(NOW, str(int(time.time())))}".rstrip(),
        memory=plan.memory,
        cpus=plan.cpus,
        engine=engine,
        test_devices=True,
        kvm_leaves=not plan.hyperv,
        cpu_vendor=plan.vendor,
        hidden_features=plan.hidden,
        enlightenments=("+all",) if plan.hyperv else (),
        reboot=False,
    )
    try:
        with Session(config, console=lambda: CallbackConsole(write), sandbox="on") as session:
            machine = session.machine
            session.start()
            machine.loop.after(plan.timeout, machine.quit)
            outcome = machine.run()
            machine.halt()
            return End(outcome.kind, outcome.text, outcome.status, machine.engine.name)
    except PyvmmError as error:
        return End("error", str(error))


@contextmanager
def log_to(folder: Path | None, name: str) -> Iterator[Callable[[bytes], None]]:
    """Return a function that writes a test's output to NAME.log in `folder`; it does nothing without a folder."""
    if folder is None:
        yield lambda data: None
        return
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.log"
    try:
        file = open(path, "wb", buffering=0)
    except OSError as error:
        raise ConfigError(f"--logs: {path}: {error.strerror}") from error
    with file:

        def write(data: bytes) -> None:
            file.write(data)

        yield write
