"""A stand-in for `pyvmm.testbed.vm.VM`, for tests of the pytest plugin where no guest can run.

`use()` in a conftest.py puts it in the guest's place, in the outer and the inner pytest of a sample project.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from pyvmm import trace
from pyvmm.client import registry
from pyvmm.testbed.console import Console
from pyvmm.testbed.plugin import outer, templates, where
from pyvmm.testbed.plugin.keep import Offer
from pyvmm.testbed.template import Template

BOOTS = "PYVMM_STANDIN_BOOTS"
"""A file, named in the environment, that gets a line for each boot: process, options."""


class StandInGuest:
    """A guest that is booted at once and answers each command with the command."""

    def __init__(self, *, cover: Sequence[str] = (), **options: Any) -> None:
        self.options = options
        self.covered = cover
        self.trace = trace.TailSink(10)
        self.console = Console(self)
        self.console.received(b"Linux version 0.0\n\x1b[31mguest console's last line\n")
        self.balloon = SimpleNamespace(actual=512 << 20)
        self.vmbus = SimpleNamespace(version=(5, 3), devices=lambda: [{"relid": 1, "name": "hv-balloon"}])
        self.guest = SimpleNamespace(sh=lambda command: command)
        self.machine = SimpleNamespace(taps=SimpleNamespace(rules=None))
        self.host = SimpleNamespace(used=set())
        self.oracles = SimpleNamespace(begin=lambda: None, findings=[])
        self.ended = False

    def __enter__(self) -> StandInGuest:
        return self.boot()

    def __exit__(self, *_: object) -> None:
        self.close()

    def boot(self) -> StandInGuest:
        if self.options.get("append") == "never-boots":
            raise AssertionError("no guest's agent within 1 s")
        if BOOTS in os.environ:
            with open(os.environ[BOOTS], "a") as file:
                file.write(f"{os.getpid()} {self.options}\n")
        return self

    def seconds(self, moment: float) -> float:
        return moment

    def close(self) -> None:
        self.ended = True

    def until(self, happened: Any, seconds: float, what: str) -> None:
        limit = time.monotonic() + seconds
        while not happened() and time.monotonic() < limit:
            time.sleep(0.01)


class StandInTemplate(Template):
    """A template of a stand-in, which needs no freezing."""

    def __init__(self, vm: StandInGuest) -> None:
        self._vm = vm
        self._frozen = SimpleNamespace(resume=lambda: None)


def stand_in_serve(guest: StandInGuest, offer: Offer, kept: Callable[[], None]) -> None:
    """Keep a stand-in until there is a file `stop`."""
    with registry.claim(offer[0]):
        kept()
        guest.until(lambda: os.path.exists("stop"), 60, "the file")


def use() -> None:
    """Put it in the guest's place, on a KVM that is said to be usable."""
    vars(templates).update(VM=StandInGuest, Template=StandInTemplate, serve=stand_in_serve)
    outer.Outer._image_trouble = lambda self, configuration: ""
    where._find = lambda asked: where.Where(emulated=False)
