"""Sequence diagrams in text."""

from __future__ import annotations

from pathlib import Path

from pyvmm import trace
from pyvmm.analysis.diagram import WIDTH, as_entries, diagram
from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import read_trace
from pyvmm.machine.devices import load_devices

CAPTURE = Path(__file__).parent / "captures/resize.jsonl"
CHANNEL = {"chan_id": 3, "flags": 0, "transaction_id": 1}


def drawn(*entries: Entry) -> list[str]:
    """The rows of a diagram, without times and lines."""
    text = diagram(list(entries), channels={3: "hv-balloon"})
    return [line.partition("|")[2].rstrip("|").strip() for line in text.splitlines()[1:]]


def test_a_resize_reads_as_its_messages() -> None:
    load_devices()
    text = diagram(read_trace(CAPTURE).entries, rows=1000)
    rows = [line.partition("|")[2].strip("|<> -") for line in text.splitlines() if "heartbeat" not in line]
    place = rows.index("hv-balloon UNBALLOON_REQUEST 212 MiB")
    assert rows[place - 1 : place + 3] == [
        "target 512 MiB",
        "hv-balloon UNBALLOON_REQUEST 212 MiB",
        "hv-balloon UNBALLOON_RESPONSE",
        "at 512 MiB",
    ]


def test_arrows_point_to_who_receives_and_all_rows_are_as_wide() -> None:
    load_devices()
    lines = diagram(read_trace(CAPTURE).entries).splitlines()
    assert {len(line) for line in lines[1:]} == {10 + 5 + WIDTH}
    assert all("|<---" in line for line in lines if "_RESPONSE" in line and "VERSION" not in line)
    assert all("->|" in line for line in lines if "BALLOON_REQUEST" in line)


def test_a_packet_that_no_device_described_stands_for_itself() -> None:
    packet = Entry(2.0, "vmbus.packet_sent", "MainThread", CHANNEL | {"type": 6, "size": 40})
    assert drawn(packet) == ["---- hv-balloon packet type 6, 40 bytes ".ljust(WIDTH - 1, "-") + ">"]


def test_trouble_and_commands_are_notes() -> None:
    refused = Entry(1.0, "vmbus.hypercall_refused", "vcpu0", {"connection_id": 1, "status": 5, "reason": "why"})
    command = Entry(2.0, "agent.command", "MainThread", {"id": 1, "command": "true\x1b[31m"})
    found = drawn(refused, command)
    assert found[0].startswith("vmbus.hypercall_refused connection 0x1")
    assert found[1].startswith("agent.command #1 true")
    assert "\x1b" not in found[1]


def test_long_texts_are_cut_and_no_events_are_no_diagram() -> None:
    assert len(drawn(Entry(1.0, "agent.command", "m", {"id": 1, "command": "x" * 500}))[0]) < WIDTH
    assert diagram([]) == ""
    assert diagram([Entry(1.0, "hyperv.eom", "vcpu0", {"vp": 0})]) == ""


def test_messages_and_commands_that_come_all_the_time_are_counted_only() -> None:
    def command(time: float, number: int, text: str) -> list[Entry]:
        fields = {"id": number, "command": text}
        return [
            Entry(time, "agent.command", "m", fields),
            Entry(time + 0.1, "agent.exited", "m", {"id": number, "status": 0}),
        ]

    beats = [Entry(float(n), "vmbus.packet_sent", "m", CHANNEL | {"type": 6, "size": 40}) for n in range(10)]
    entries = [*beats, *command(4.5, 1, "true"), *command(5.5, 2, ": oracle\ngrep x"), *command(6.5, 3, ": oracle\n")]
    entries.sort(key=lambda entry: entry.time)
    channels = {3: "heartbeat"}
    lines = diagram(entries, channels=channels, quiet={"heartbeat"}, quiet_commands=": oracle").splitlines()
    assert [line.split()[2] for line in lines[1:3]] == ["agent.command", "agent.exited"]
    assert lines[3:] == ["left out: 2 commands of the oracles, 5 messages of heartbeat"]
    assert "left out" not in diagram(entries, channels=channels)
    assert "left out" not in diagram(command(1, 1, "true"), quiet={"heartbeat"})


def test_records_become_entries() -> None:
    event = trace.find("trace.started")
    assert event is not None
    (entry,) = as_entries([trace.Record(1.5, event, "MainThread", ("vm", "noon"))])
    assert (entry.time, entry.name, entry.fields) == (1.5, "trace.started", {"machine": "vm", "wall_clock": "noon"})
