"""Runs boot tests where Linux can run: on this host, or in one pytest inside the emulated host.

Starting Python and importing pytest takes seconds under emulation, so tests share an inner process, in chunks:

    outer pytest (tests/boot/conftest.py)            emulated host
    first test of a chunk: start  ----------------->  pytest -p tests.support.boot_reports NODEID...
    each test: wait for its reports  <--------------  a JSON line a report, in a file both sides see
    after its last test: end      ----------------->  (ends)

The reports are pytest's own, so that -k, -x, -q, failures and durations look as if the tests had run here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from pyvmm.errors import PyvmmError
from pyvmm.host.inside import inside
from pyvmm.host.qemu import PROGRAM
from pyvmm.process import kill_with_parent
from pyvmm.testbed.plugin.where import required

ROOT = Path(__file__).resolve().parents[2]
REPORTS_VARIABLE = "PYVMM_BOOT_REPORTS"
HEART_VARIABLE = "PYVMM_BOOT_HEART"
START_LIMIT = 180.0  # seconds: the host's kernel made, booted, pytest imported
TEST_LIMIT = 240.0  # seconds for one test; its own waits are shorter and say more
ALL_LIMIT = 2400.0  # seconds for all that share a host
DUMP_AFTER = 200  # seconds after which a test's stacks go to the log
STALL_LIMIT = 45.0  # seconds without a heartbeat, which comes every HEARTBEAT
HEARTBEAT = 2
LOG_TAIL = 60  # lines
CHUNK = 20  # tests that share an emulated host, more or less: starting one takes some seconds
POLL = 0.05

HOST_MIB = 2560  # for guests that grow to as much
IN_HOST = (sys.executable, "-m", "pyvmm.host", "exec", "--memory", str(HOST_MIB), "--")


def lacks_qemu() -> bool:
    """Return whether to skip a test that starts emulated hosts: QEMU is missing, and boot tests are not required."""
    return shutil.which(PROGRAM) is None and not required()


def runs_here() -> bool:
    """Whether Linux guests run on this process's own KVM."""
    if inside():
        return True
    from pyvmm.launch.probe import probe

    return probe().usable


def what_is_missing(*, emulated: bool) -> str:
    """Why no boot test can run; empty if they can. Builds the guest images if they are not there."""
    if emulated and shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not installed, and the local KVM does not run Linux (`pyvmm doctor`)"
    from pyvmm.images.catalog import find_image
    from tests.support.booted import NEEDED_IMAGES
    from tests.support.kexec import kexec_initrd
    from tests.support.uio_guest import uio_initrd

    for name in NEEDED_IMAGES:
        try:
            image = find_image(name)
        except PyvmmError as error:
            return f"guest image {name}: {error}"
        try:
            kexec_initrd(image)
        except PyvmmError as error:
            return f"kexec for {name}: {error}"
        with contextlib.suppress(PyvmmError):  # its test says what is missing
            uio_initrd(image)
    return ""


def chunks(nodeids: Sequence[str]) -> list[list[str]]:
    """Tests in their order, cut where the file ends, or after CHUNK of them where the parameters change.

    Tests of one file with the same parameters share a guest, which a cut would boot twice.
    """
    result: list[list[str]] = []
    for _, run in groupby(nodeids, key=_shares_guest):
        tests = list(run)
        last = result[-1] if result else []
        if last and _file(last[0]) == _file(tests[0]) and len(last) + len(tests) <= CHUNK:
            last += tests
        else:
            result.append(tests)
    return result


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _shares_guest(nodeid: str) -> tuple[str, str]:
    return _file(nodeid), nodeid.partition("[")[2]


class Died(Exception):
    """The inner pytest is gone; the text says how, with the end of its output."""


class Stalled(Died):
    """The emulated host itself stands still: not even its shell gets on. QEMU's TCG does that now and then with
    nested guests (seen with QEMU 7.2, cause unknown); no test's fault, and no test's business.
    """


class InnerPytest:
    """One pytest in an emulated host, for the given tests. Ends with `close`."""

    def __init__(self, nodeids: Sequence[str], launcher: Sequence[str] = IN_HOST) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pyvmm-boot-tests-"))
        self._reports_path = self.folder / "reports"
        self._reports_path.touch()
        self._reports: IO[str] = self._reports_path.open()
        self._partial = ""
        self._log_path = self.folder / "log"
        self._waiting: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._finished: set[str] = set()
        self._begun = False
        self._started = time.monotonic()
        self._dead: Died | None = None
        self._heart = self.folder / "heart"
        environment = os.environ | {REPORTS_VARIABLE: str(self._reports_path), HEART_VARIABLE: str(self._heart)}
        # pytest captures output in a file that is open and unlinked: over 9p such a file cannot be truncated.
        environment["TMPDIR"] = "/dev/shm"
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling takes seconds there, each time
        inner = [sys.executable, "-m", "pytest", "-p", "tests.support.boot_reports", "-p", "no:cacheprovider"]
        inner += ["-q", "--rootdir", str(ROOT), "-o", f"faulthandler_timeout={DUMP_AFTER}", *nodeids]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*launcher, *inner],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=kill_with_parent(signal.SIGTERM),
                start_new_session=True,  # Ctrl-C is this side's; it ends the host by `close`
            )

    def reports(self, nodeid: str) -> Iterator[dict[str, Any]]:
        """A test's reports as they come, until it is finished. Raises Died."""
        until = time.monotonic() + TEST_LIMIT
        while True:
            if self._dead:
                raise self._dead
            ended = self._process.poll() is not None  # before reading: what was written last is read then
            self._read()
            queue = self._waiting[nodeid]
            while queue:
                yield queue.pop(0)
            if nodeid in self._finished:
                return
            if ended:
                self._die(f"the pytest in the emulated host ended with status {self._process.returncode}")
            elif not self._begun and time.monotonic() > self._started + START_LIMIT:
                self._die(f"no test began within {START_LIMIT:.0f} s", Stalled)
            elif self._begun and self._silence() > STALL_LIMIT:
                self._die(f"the emulated host has stood still for {STALL_LIMIT:.0f} s", Stalled)
            elif time.monotonic() > self._started + ALL_LIMIT:
                self._die(f"the boot tests took more than {ALL_LIMIT:.0f} s together")
            elif self._begun and time.monotonic() > until:
                self._die(f"no end of the test within {TEST_LIMIT:.0f} s")
            else:
                if not self._begun:
                    until = time.monotonic() + TEST_LIMIT
                time.sleep(POLL)

    def _read(self) -> None:
        *lines, self._partial = (self._partial + self._reports.read()).split("\n")
        for line in lines:
            entry = json.loads(line)
            self._begun = True
            if entry["kind"] == "finished":
                self._finished.add(entry["nodeid"])
            elif entry["kind"] == "report":
                self._waiting[entry["nodeid"]].append(entry["report"])

    def _silence(self) -> float:
        """Seconds since the last heartbeat."""
        try:
            return time.time() - self._heart.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _die(self, why: str, kind: type[Died] = Died) -> None:
        self._stop()
        text = self._log_path.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        self._dead = kind("\n".join([why, "its output ends:", *text]))

    def _stop(self) -> None:
        """End the host's process group: pyvmm.host first by request, then whatever is left of it."""
        for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def close(self) -> None:
        """End the host, if it still runs, and remove the files."""
        self._stop()
        self._reports.close()
        shutil.rmtree(self.folder, ignore_errors=True)
