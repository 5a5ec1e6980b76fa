from __future__ import annotations

from typing import Any

import pytest

from pyvmm.control import hmp
from pyvmm.control.commands import COMMANDS, dispatch
from pyvmm.control.errors import CommandNotFound, ControlError, DeviceNotActive, DeviceNotFound
from pyvmm.control.schema import schema
from pyvmm.control.throttle import Throttle
from pyvmm.loop import Timers
from pyvmm.qapi import BALLOON_CHANGE, EVENTS
from tests.support.fake_machine import MIB, FakeMachine


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("balloon", {}, "Parameter 'value' is missing"),
        ("balloon", {"value": "1"}, "Invalid parameter type for 'value', expected: integer"),
        ("balloon", {"value": True}, "Invalid parameter type for 'value', expected: integer"),
        ("balloon", {"value": 1.0}, "Invalid parameter type for 'value', expected: integer"),
        ("balloon", {"value": 1 << 63}, "Invalid parameter type for 'value', expected: integer"),
        ("balloon", {"value": 0}, "Parameter 'value' expects a size"),
        ("balloon", {"value": 1, "x": 1}, "Parameter 'x' is unexpected"),
        ("balloon", {"value": 1 << 40}, "the guest has 512 MiB at most"),
        ("stop", {"now": True}, "Parameter 'now' is unexpected"),
        ("human-monitor-command", {}, "Parameter 'command-line' is missing"),
        ("device_add", {}, "Parameter 'driver' is missing"),
        ("device_add", {"driver": "e1000"}, "'e1000' is not a valid device model name"),
        ("device_add", {"driver": "heartbeat", "bus": "pci.0"}, "Bus 'pci.0' not found"),
        ("device_add", {"driver": "heartbeat", "mac": "1"}, "Property 'heartbeat.mac' not found"),
        ("device_add", {"driver": 1}, "Parameter 'driver' is missing"),
        ("device_del", {"id": ""}, " is not a device"),
        ("device_del", {"id": "/machine"}, "/machine is not a device"),
        (
            "human-monitor-command",
            {"command-line": "info status", "cpu-index": 2},
            "Parameter 'cpu-index' expects a CPU number",
        ),
        ("device_del", {"id": 1}, "Invalid parameter type for 'id', expected: string"),
        ("x-execute", {"command": ""}, "Parameter 'command' expects a shell command"),
        ("x-execute", {"command": "x", "timeout": 0}, "Parameter 'timeout' expects 1 to 86400 seconds"),
    ],
)
def test_wrong_arguments_are_refused_in_qemus_words(
    machine: FakeMachine, name: str, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(ControlError) as caught:
        dispatch(machine, name, arguments)
    assert str(caught.value) == text
    assert caught.value.qmp_class == "GenericError"


def test_an_unknown_command_is_not_found(machine: FakeMachine) -> None:
    with pytest.raises(CommandNotFound, match="The command nope has not been found"):
        dispatch(machine, "nope", {})


def test_query_commands_lists_what_there_is(machine: FakeMachine) -> None:
    assert {each["name"] for each in dispatch(machine, "query-commands", {})} == set(COMMANDS)


def test_balloon_replies_as_qemu_and_x_balloon_and_an_event_say_what_will_be_reached_and_why(
    machine: FakeMachine,
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    machine.on_event(lambda name, data: events.append((name, data)))
    assert dispatch(machine, "balloon", {"value": 10 * MIB}) == {}
    told = {"target": 10 * MIB, "will-reach": 64 * MIB, "reason": "the guest keeps 64 MiB"}
    assert dispatch(machine, "x-balloon", {"value": 10 * MIB}) == told
    assert [data for name, data in events if name == "X_BALLOON_TARGET"] == [told, told]


@pytest.mark.parametrize("id", ["9 lives", "a/b", 9])
def test_device_add_takes_any_id_as_qemu_does(machine: FakeMachine, id: Any) -> None:
    assert dispatch(machine, "device_add", {"driver": "heartbeat", "id": id, "bus": 1}) == {}


def test_the_monitor_command_ends_its_lines_as_qemu_does(machine: FakeMachine) -> None:
    reply = dispatch(machine, "human-monitor-command", {"command-line": "info memory_size_summary"})
    assert reply == "base memory: 536870912\r\nplugged memory: 134217728\r\n"


def test_a_device_that_is_not_there_is_not_found(machine: FakeMachine) -> None:
    with pytest.raises(DeviceNotFound, match="Device 'nope' not found"):
        dispatch(machine, "device_del", {"id": "nope"})


def test_processors_and_memory_are_listed_as_qemu_does(machine: FakeMachine) -> None:
    cpus = dispatch(machine, "query-cpus-fast", {})
    assert [(each["cpu-index"], each["thread-id"], each["target"]) for each in cpus] == [
        (0, 101, "x86_64"),
        (1, 102, "x86_64"),
    ]
    assert dispatch(machine, "query-memory-size-summary", {}) == {
        "base-memory": 512 * MIB,
        "plugged-memory": 128 * MIB,
    }
    [device] = dispatch(machine, "query-memory-devices", {})
    assert device["type"] == "hv-balloon" and device["data"]["max-size"] == 256 * MIB


def test_query_events_is_gone_as_in_qemu(machine: FakeMachine) -> None:
    with pytest.raises(CommandNotFound):
        dispatch(machine, "query-events", {})


def test_the_schema_is_closed_and_names_every_command() -> None:
    found = schema()
    by_name = {each["name"]: each for each in found}
    assert len(by_name) == len(found)
    assert {name for name, each in by_name.items() if each["meta-type"] == "command"} == set(COMMANDS)
    for each in found:
        for used in [each.get("arg-type"), each.get("ret-type"), each.get("element-type")]:
            assert used is None or used in by_name, each
        for member in each["members"] if each["meta-type"] in ("object", "alternate") else []:
            assert member["type"] in by_name, (each, member)


def test_the_schema_is_derived_from_the_types_of_replies_and_events() -> None:
    by_name = {each["name"]: each for each in schema()}
    assert by_name["x-balloon"]["ret-type"] == "BalloonReply"
    assert by_name["query-cpus-fast"]["ret-type"] == "[CpuInfoFast]"
    assert by_name["x-execute"]["ret-type"] == "ExecuteReply", "what comes later"
    assert by_name["stop"]["ret-type"] == "q_empty"
    assert by_name["x-status"]["ret-type"] == "MachineInfo"
    assert by_name["x-query-vmbus"]["ret-type"] == "[VmbusChannelInfo]"
    assert by_name["x-query-map"]["ret-type"] == "PageMap"
    assert by_name["x-query-pressure"]["ret-type"] == "PressureInfo"
    demand = next(each for each in by_name["PressureInfo"]["members"] if each["name"] == "demand")
    assert by_name[demand["type"]]["members"] == [{"type": "int"}, {"type": "null"}]
    finished = by_name[by_name["X_BALLOON_FINISHED"]["arg-type"]]["members"]
    assert [(each["name"], each["type"]) for each in finished] == [
        ("target", "int"),
        ("actual", "int"),
        ("reason", "str"),
        ("final", "bool"),
    ]
    assert {each["name"] for each in schema() if each["meta-type"] == "event"} == set(EVENTS)


def test_the_schema_marks_optional_arguments(machine: FakeMachine) -> None:
    by_name = {each["name"]: each for each in dispatch(machine, "query-qmp-schema", {})}
    members = by_name[by_name["device_add"]["arg-type"]]["members"]
    assert members == [
        {"name": "driver", "type": "str"},
        {"name": "bus", "type": "str", "default": None},
        {"name": "id", "type": "str", "default": None},
    ]
    assert by_name[by_name["qmp_capabilities"]["arg-type"]]["members"][0]["name"] == "enable"
    assert by_name["RESET"]["meta-type"] == "event"


def test_the_tree_names_each_device(machine: FakeMachine) -> None:
    tree = hmp.execute(machine, "info qtree")
    assert 'dev: heartbeat, id "heartbeat"\n        relid = 1\n' in tree


def test_a_machine_without_balloon_driver_is_not_active(machine: FakeMachine) -> None:
    machine.actual = None
    for name, arguments in (("balloon", {"value": MIB}), ("query-balloon", {})):
        with pytest.raises(DeviceNotActive, match="No balloon device has been activated"):
            dispatch(machine, name, arguments)


def test_no_status_report_yet_is_an_error(machine: FakeMachine) -> None:
    machine.report = None
    with pytest.raises(ControlError, match="no guest memory status report received yet"):
        dispatch(machine, "query-hv-balloon-status-report", {})


def test_stop_and_cont_do_nothing_twice(machine: FakeMachine) -> None:
    for name in ("stop", "stop", "cont", "cont"):
        assert dispatch(machine, name, {}) == {}
    assert machine.calls == ["pause", "resume"]


@pytest.mark.parametrize("state", ["shutdown", "internal-error", "guest-panicked"])
def test_cont_of_a_machine_that_ended_asks_for_a_reset(machine: FakeMachine, state: str) -> None:
    machine.state = state
    with pytest.raises(ControlError, match="Resetting the Virtual Machine is required"):
        dispatch(machine, "cont", {})


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("", ""),
        ("balloon 256", ""),
        ("balloon 256M", ""),
        ("balloon 0.25G", ""),
        ("balloon 1M", "balloon: will reach 64 MiB: the guest keeps 64 MiB\n"),
        ("balloon", "usage: balloon size\n"),
        ("balloon x", "Error: 'x' is not a size: write a number and a unit, like 512M or 1.5G\n"),
        ("balloon 0", "Error: Parameter 'value' expects a size\n"),
        ("info balloon", "balloon: actual=512\n"),
        ("info status", "VM status: running\n"),
        ("info name", "vm\n"),
        (
            "info memory-devices",
            'Memory device [hv-balloon]: "hv-balloon"\n  memaddr: 0x100000000\n  max-size: 268435456\n'
            "  memdev: /objects/hot-add\n",
        ),
        ("info memory_size_summary", "base memory: 536870912\nplugged memory: 134217728\n"),
        ("info cpus", "* CPU #0: thread_id=101\n  CPU #1: thread_id=102\n"),
        ("info chardev", "serial0: filename=stdio\nserial1: filename=agent\n"),
        ("info kvm", "kvm support: enabled\n"),
        ("device_del heartbeat", ""),
        ("device_del nope", "Error: Device 'nope' not found\n"),
        ("device_add heartbeat,id=again", ""),
        ("device_add heartbeat,mac=1", "Error: Property 'heartbeat.mac' not found\n"),
        ("device_add heartbeat,id=9", "Error: Parameter 'id' expects an identifier\n"),
        ("device_add", "usage: device_add driver[,id=name]\n"),
        ("info nope", "unknown command: 'info nope'\n"),
        ("nope", "unknown command: 'nope'\n"),
        ("help nope", "unknown command: 'nope'\n"),
    ],
)
def test_the_human_monitor_prints(machine: FakeMachine, line: str, output: str) -> None:
    assert hmp.execute(machine, line) == output


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("stop", "pause"),
        ("system_reset", "reset"),
        ("system_powerdown", "powerdown"),
        ("q", "quit"),
        ("quit", "quit"),
    ],
)
def test_the_human_monitor_acts(machine: FakeMachine, line: str, call: str) -> None:
    assert hmp.execute(machine, line) == ""
    assert machine.calls == [call]


def test_a_guest_that_panicked_shows_in_info_status(machine: FakeMachine) -> None:
    machine.state = "guest-panicked"
    assert hmp.execute(machine, "info status") == "VM status: paused (guest-panicked)\n"


@pytest.mark.parametrize("line", ["help", "help info", "info", "help balloon", "info version"])
def test_help_is_lines_of_text(machine: FakeMachine, line: str) -> None:
    assert hmp.execute(machine, line).endswith("\n")


def test_info_vmbus_and_qtree_show_each_channel(machine: FakeMachine) -> None:
    assert (
        hmp.execute(machine, "info vmbus")
        == "#1 heartbeat: open\n  path: /machine/peripheral/heartbeat\n  rings: 4096 4096\n"
    )
    assert "heartbeat" in hmp.execute(machine, "info qtree")


def test_info_vmbus_begins_with_what_device_del_takes(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"relid": 1, "name": "heartbeat", "state": "open", "type": "t", "id": "beat", "path": "/p/beat"}
    monkeypatch.setattr(machine, "info_vmbus", lambda: [row])
    assert hmp.execute(machine, "info vmbus") == "#1 heartbeat: open\n  id: beat\n  path: /p/beat\n  type: t\n"
    assert " id = " not in hmp.execute(machine, "info qtree")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_of_balloon_changes_sends_the_first_and_the_last() -> None:
    clock, sent = Clock(), []
    timers = Timers(clock)
    throttle = Throttle(timers, lambda name, data: sent.append(data["actual"]))
    for actual in range(5):
        throttle("BALLOON_CHANGE", {"actual": actual})
    assert sent == [0]
    clock.now += BALLOON_CHANGE.at_most_every
    timers.run_due()
    assert sent == [0, 4]


def test_events_without_a_period_are_never_held() -> None:
    sent: list[str] = []
    throttle = Throttle(Timers(Clock()), lambda name, data: sent.append(name))
    for _ in range(3):
        throttle("STOP", {})
    assert sent == ["STOP"] * 3


def test_a_throttled_event_survives_the_end() -> None:
    sent: list[int] = []
    throttle = Throttle(Timers(Clock()), lambda name, data: sent.append(data["actual"]))
    throttle("BALLOON_CHANGE", {"actual": 1})
    throttle("BALLOON_CHANGE", {"actual": 2})
    throttle.flush()
    assert sent == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ({"panic": "none"}, "set_action keep None"),
        ({"panic": "shutdown"}, "set_action stop None"),
        ({"panic": "x-auto", "reboot": "shutdown"}, "set_action auto False"),
        ({"reboot": "reset"}, "set_action None True"),
    ],
)
def test_set_action_has_qemus_words(machine: FakeMachine, arguments: dict[str, str], call: str) -> None:
    assert dispatch(machine, "set-action", arguments) == {}
    assert machine.calls == [call]


@pytest.mark.parametrize("arguments", [{"panic": "pause"}, {"reboot": "never"}, {"panic": 1}])
def test_set_action_refuses_what_there_is_not(machine: FakeMachine, arguments: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        dispatch(machine, "set-action", arguments)
    assert machine.calls == []


def test_a_resizes_outcome_is_not_sent_once_another_target_is_set() -> None:
    timers, sent = Timers(Clock()), []
    throttle = Throttle(timers, lambda name, data: sent.append((name, data["target"])))
    for name, target in (
        ("X_BALLOON_FINISHED", 1),
        ("X_BALLOON_FINISHED", 2),  # held back
        ("X_BALLOON_TARGET", 3),
    ):
        throttle(name, {"target": target})
    throttle.flush()
    assert sent == [("X_BALLOON_FINISHED", 1), ("X_BALLOON_TARGET", 3)]
