"""Runs an example of the book and keeps what its guest did: exits, memory slots, trace events."""

from __future__ import annotations

import contextlib
import importlib
import io
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pyvmm import trace
from pyvmm.kvm import Exit, Vcpu, Vm
from tests.support.book.chapters import EXAMPLES


@dataclass
class Recording:
    """What happened, in order."""

    exits: list[Exit] = field(default_factory=list)
    slots: list[tuple[int, int, int]] = field(default_factory=list)  # slot, gpa, size
    records: list[trace.Record] = field(default_factory=list)
    log: list[tuple[str, Any]] = field(default_factory=list)  # ("exit", exit), ("trace", record), in order
    output: str = ""
    names: dict[str, Any] = field(default_factory=dict)  # the example's own globals


@contextlib.contextmanager
def _patched(recording: Recording) -> Iterator[None]:
    run, set_memory = Vcpu.run, Vm._set_memory

    def recorded_run(self: Vcpu) -> Exit:
        exit = run(self)
        recording.exits.append(exit)
        recording.log.append(("exit", exit))
        return exit

    def recorded_memory(self: Vm, slot: int, gpa: int, size: int, host_address: int, **how: Any) -> None:
        set_memory(self, slot, gpa, size, host_address, **how)
        recording.slots.append((slot, gpa, size))

    def sink(record: trace.Record) -> None:
        recording.records.append(record)
        recording.log.append(("trace", record))

    own = list(trace._subscriptions)
    Vcpu.run, Vm._set_memory = recorded_run, recorded_memory  # type: ignore[method-assign]
    trace.subscribe("*", sink)
    try:
        yield
    finally:
        Vcpu.run, Vm._set_memory = run, set_memory  # type: ignore[method-assign]
        for _, each in list(trace._subscriptions):  # the example's, too
            if not any(each is other for _, other in own):
                trace.unsubscribe(each)


def record(example: str) -> Recording:
    """Run an example in this process and return what it did."""
    recording = Recording()
    sys.path.insert(0, str(EXAMPLES))  # as a program that is started has its own folder first
    try:
        with _patched(recording), contextlib.redirect_stdout(io.StringIO()) as output:
            recording.names = runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    finally:
        sys.path.remove(str(EXAMPLES))
    recording.output = output.getvalue()
    return recording


def imported(example: str) -> Any:
    """Return an example as a module, without running it."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(example)
    finally:
        sys.path.remove(str(EXAMPLES))
