"""The guest without Linux (pyvmm.images.tiny) in a machine: it opens the balloon, gives memory, takes it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import trace
from pyvmm.analysis.read import read_trace
from pyvmm.analysis.report.page import page
from pyvmm.analysis.report.summary import summarise
from pyvmm.images.tiny import data
from pyvmm.images.tiny.kernel import MEMORY, write_kernel
from pyvmm.kvm import Kvm
from pyvmm.loop import Loop
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.qapi import PageMap
from pyvmm.trace.writer import FileSink

pytestmark = pytest.mark.kvm

LIMIT = 20.0
SMALL = MEMORY - (16 << 20)


@pytest.fixture
def machine(kvm: Kvm, tmp_path: Path) -> Iterator[Machine]:
    loop = Loop()
    kernel = write_kernel(tmp_path / "tiny")
    with Machine(MachineConfig(kernel=kernel, memory=MEMORY, engine="user"), loop) as made:
        yield made
    loop.close()


def test_it_gives_memory_away_takes_it_back_and_powers_off(machine: Machine) -> None:
    states: list[str] = []

    def note(record: trace.Record) -> None:
        states.append(str(record.values[0]))

    trace.subscribe("hv_balloon_state_change", note)
    try:
        machine.start()
        balloon = machine.balloon
        assert balloon is not None
        sizes: list[int] = []

        def finished(_outcome: object) -> None:
            sizes.append(balloon.actual)
            if len(sizes) == 1:
                machine.monitor.balloon_set(MEMORY)

        balloon.on_finish.append(finished)
        machine.monitor.balloon_set(SMALL)
        machine.loop.after(LIMIT, machine.quit)
        outcome = machine.run()
    finally:
        trace.unsubscribe(note)
    assert outcome.kind == "poweroff"
    assert sizes == [SMALL, MEMORY]
    assert {"S_BALLOON_REPLY_WAIT", "S_UNBALLOON_REPLY_WAIT"} <= set(states)


def test_a_trace_ends_with_the_map_which_the_report_draws(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    sink = FileSink(file)
    trace.subscribe("machine.*,trace.*", sink)
    try:
        machine.start()
        machine.loop.after(0.3, machine.quit)
        machine.run()
    finally:
        trace.unsubscribe(sink)
        sink.close()
    summary = summarise(read_trace(file))
    assert summary.page_map is not None
    assert sum(each["size"] for each in summary.page_map["spans"]) == MEMORY
    text = page(summary, [], file)
    assert "Memory map at the end" in text
    assert '<svg xmlns="http://www.w3.org/2000/svg" class="pm"' in text


def test_the_map_shows_the_balloon_the_rings_and_the_pages_of_hyperv(machine: Machine) -> None:
    found: list[PageMap] = []

    def finished(_outcome: object) -> None:
        found.append(machine.monitor.page_map())
        machine.quit()

    machine.start()
    assert machine.balloon is not None
    machine.balloon.on_finish.append(finished)
    machine.monitor.balloon_set(SMALL)
    machine.loop.after(LIMIT, machine.quit)
    machine.run()
    (shown,) = found
    spans = shown["spans"]
    assert sum(each["size"] for each in spans) == MEMORY
    assert [(each["start"], each["size"]) for each in spans if each["owner"] == "out"] == [
        (data.SPARE_FRAME * 4096, MEMORY - SMALL)
    ]
    assert {each["owner"]: each["start"] - data.DATA for each in shown["special"]} == {
        "hypercall": data.HYPERCALL_PAGE,
        "synic-messages": data.SIMP,
        "synic-events": data.SIEFP,
        "ring": data.IN_RING,
    }
    rings = [(each["start"] - data.DATA, each["size"]) for each in shown["special"] if each["owner"] == "ring"]
    size = data.RING_PAGES * 4096
    assert rings == [(data.OUT_RING, size), (data.IN_RING, size)]
