"""Runs boot tests where Linux can run: in this process, or by inner pytests of the plugin in emulated hosts.

Starting Python and importing pytest takes seconds under emulation, so tests share an inner pytest, in chunks, each in
a host of its own, so that what tests do to it ends with them. A host has one CPU: as many run side by side as this
machine has, ahead of the tests that pytest asks for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest

from pyvmm.errors import PyvmmError
from pyvmm.host.inside import inside
from pyvmm.host.qemu import PROGRAM
from pyvmm.testbed.plugin.inner_process import InnerProcess, Stalled
from pyvmm.testbed.plugin.passed_on import job_for
from pyvmm.testbed.plugin.where import required

TEST_LIMIT = 240.0  # seconds for one test; its own waits are shorter and say more
DUMP_AFTER = 200  # seconds after which a test's stacks go to the log
CHUNK = 20  # tests of one file that share an emulated host, more or less: starting one takes some seconds
MIXED = 12  # tests of several files that do: at the end no host should work for long while others have nothing to do
STALLS = 4
"""Emulated hosts that may stand still in one run of the tests."""

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
    """Tests in their order. A file is cut after CHUNK tests, where the parameters change; whole files share one
    of MIXED tests at most.

    Tests of one file with the same parameters share a guest, which a cut would boot twice.
    """
    result: list[list[str]] = []
    for _, of_file in groupby(nodeids, key=_file):
        tests = list(of_file)
        if result and len(result[-1]) + len(tests) <= MIXED:
            result[-1] += tests
            continue
        result.append([])
        for _, sharing in groupby(tests, key=_parameters):
            run = list(sharing)
            if result[-1] and len(result[-1]) + len(run) > CHUNK:
                result.append([])
            result[-1] += run
    return result


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _parameters(nodeid: str) -> str:
    return nodeid.partition("[")[2]


class BootHosts:
    """The emulated hosts of a session's boot tests. Ends with `close`."""

    def __init__(self, items: Sequence[pytest.Item], launcher: Sequence[str] = IN_HOST) -> None:
        self.stalls: list[str] = []
        self._items = {item.nodeid: item for item in items}
        self._chunks = chunks(list(self._items))
        self._launcher = launcher
        self._hosts: dict[int, InnerProcess] = {}  # by chunk
        self._ready: set[int] = set()

    def messages(self, nodeid: str) -> list[dict[str, Any]]:
        """Return what the inner pytest says of a test, which is begun again in another host if this one stands still.

        Raises Died: the inner pytest ended, the test found no end, or hosts stall again and again.
        """
        number = next(n for n, chunk in enumerate(self._chunks) if nodeid in chunk)
        for past in [n for n in self._hosts if n < number]:
            self._end(past)
        for n in range(number, min(number + (os.cpu_count() or 1), len(self._chunks))):
            if n not in self._hosts:
                self._start(n, self._chunks[n])
        while True:
            host = self._hosts[number]
            try:
                if number not in self._ready:
                    host.wait_ready()
                    self._ready.add(number)
                found = list(host.answers(TEST_LIMIT))
                if found[-1]["kind"] == "died":
                    found[-1]["text"] += f"\nits output ends:\n{host.log_part(0)}"
                return found
            except Stalled as error:
                self.stalls.append(f"{nodeid}: {str(error).splitlines()[0]}")
                if len(self.stalls) > STALLS:
                    raise
                self._end(number)
                chunk = self._chunks[number]
                self._start(number, chunk[chunk.index(nodeid) :])

    def _start(self, number: int, chunk: Sequence[str]) -> None:
        tests = [self._items[nodeid] for nodeid in chunk]
        job = job_for(tests[0].config, tests)
        job.arguments += ["-o", f"faulthandler_timeout={DUMP_AFTER}"]
        self._hosts[number] = host = InnerProcess(job, self._launcher)
        for nodeid, following in zip(chunk, [*chunk[1:], None], strict=True):
            host.ask(nodeid, following=following)

    def _end(self, number: int) -> None:
        self._ready.discard(number)
        self._hosts.pop(number).close()

    def close(self) -> None:
        """End all hosts."""
        for number in list(self._hosts):
            self._end(number)
