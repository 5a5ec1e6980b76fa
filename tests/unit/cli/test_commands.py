from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, get_args

import pytest

from pyvmm.cli import output
from pyvmm.cli.commands import doctor, ps
from pyvmm.cli.commands import status as status_command
from pyvmm.client import registry
from pyvmm.devices.balloon import states
from pyvmm.errors import HostError
from pyvmm.images.kernel_config import FRAGMENT, missing_options
from tests.support.command_line import Run
from tests.support.fake_machine import MIB, FakeMachine, serving


def test_balloon_shows_the_memory(machine: FakeMachine, pyvmm: Run) -> None:
    assert pyvmm("balloon").out == "web: 512 MiB of 512 MiB; 200 MiB resident on the host\n"


@pytest.mark.parametrize("words", [["256M"], ["256"], ["web", "256M"], ["--name", "web", "0.25G"]])
def test_balloon_sets_the_size(machine: FakeMachine, pyvmm: Run, words: list[str]) -> None:
    assert pyvmm("balloon", *words).out == "web: target 256 MiB\n"
    assert machine.actual == 256 * MIB


def test_balloon_takes_a_socket(machine: FakeMachine, pyvmm: Run) -> None:
    assert pyvmm("balloon", "--socket", str(registry.find("web").socket), "256M").status == 0


def test_balloon_says_what_will_be_reached(machine: FakeMachine, pyvmm: Run) -> None:
    assert pyvmm("balloon", "1M").out == "web: target 1 MiB, will reach 64 MiB: the guest keeps 64 MiB\n"


def test_balloon_wait_reaches_the_size(machine: FakeMachine, pyvmm: Run) -> None:
    assert pyvmm("balloon", "256M", "--wait") == (0, "reached 256 MiB\n", "")


def test_balloon_wait_fails_where_the_guest_stays_elsewhere(machine: FakeMachine, pyvmm: Run) -> None:
    found = pyvmm("balloon", "1M", "--wait")
    assert (found.status, found.out) == (1, "stays at 64 MiB, target 1 MiB: the guest keeps 64 MiB\n")


def test_balloon_wait_ends_when_the_balloon_does_nothing_more(
    machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stays(size: int) -> dict[str, Any]:
        machine.finish_resize(size, 512 * MIB, "the guest has no more to give")
        return {"target": size, "will-reach": size, "reason": ""}

    monkeypatch.setattr(machine, "balloon_set", stays)
    found = pyvmm("balloon", "256M", "--wait")
    assert (found.status, found.out) == (1, "stays at 512 MiB, target 256 MiB: the guest has no more to give\n")


def test_balloon_wait_ends_with_the_result_and_says_that_the_guest_is_asked_again(
    machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stays(size: int) -> dict[str, Any]:
        machine.finish_resize(size, 512 * MIB, "its floor", final=False)
        return {"target": size, "will-reach": size, "reason": ""}

    monkeypatch.setattr(machine, "balloon_set", stays)
    found = pyvmm("balloon", "256M", "--wait")
    assert found.out == "stays at 512 MiB, target 256 MiB: its floor; the request is repeated for some seconds\n"
    assert found.status == 1
    assert json.loads(pyvmm("balloon", "256M", "--wait", "--json").out)["asked-again"]


def test_balloon_wait_gives_up(machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "balloon_set", lambda size: {"target": size, "will-reach": size, "reason": ""})
    found = pyvmm("balloon", "256M", "--wait", "--timeout", "0.1", "--json")
    assert found.status == 124
    assert json.loads(found.out)["result"] == "timeout"


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["balloon", "5X"], 1, "pyvmm: size '5X' has an unknown unit 'X': use k, M, G or T"),
        (["balloon", "0"], 1, "pyvmm: 0 bytes is too small for a guest: the minimum is a page, 4 KiB"),
        (["balloon", "-w"], 2, "pyvmm: --wait needs a SIZE"),
        (["balloon", "1T"], 1, "pyvmm: the guest has 512 MiB at most"),
        (["balloon", "nope", "1M"], 1, "pyvmm: no VM named 'nope' (running: web)"),
        (["balloon", "a", "b", "c"], 2, "pyvmm: at most a NAME and a SIZE (`pyvmm balloon --help` tells how)"),
        (["status", "nope"], 1, "pyvmm: no VM named 'nope' (running: web)"),
        (["status", "web", "--name", "web"], 2, "pyvmm: name the machine once"),
        (["status", "--socket", "/nowhere.sock"], 1, "pyvmm: no VM listens at /nowhere.sock"),
        (["stop", "--timeout", "x"], 2, "pyvmm: Invalid value for '--timeout': 'x' is not a valid float range"),
        (["stop", "--forze"], 2, "pyvmm: No such option"),
        (["stat"], 2, "pyvmm: no command is named 'stat', did you mean 'status'?"),
        (["image", "show", "nope"], 1, "pyvmm: no image is named 'nope'"),
        (["image", "build", "nope"], 1, "pyvmm: no image is named 'nope'"),
        (["image", "nope"], 2, "pyvmm: No such command 'nope'"),
        (["completion", "csh"], 2, "pyvmm: Invalid value for"),
        (["run", "--cpus", "x"], 2, "pyvmm: Invalid value for '--cpus'"),
        (["run", "--memory", "x"], 2, "pyvmm: Invalid value for '--memory'"),
    ],
)
def test_errors_are_one_line(machine: FakeMachine, pyvmm: Run, arguments: list[str], status: int, line: str) -> None:
    found = pyvmm(*arguments)
    assert (found.status, found.out) == (status, "")
    assert found.err.startswith(line), found.err
    assert found.err.count("\n") == 1


def test_no_machine_is_reported_in_one_line(pyvmm: Run) -> None:
    for command in ("balloon", "status", "stop"):
        assert pyvmm(command) == (1, "", "pyvmm: no VM is running: `pyvmm run` starts one\n")


def test_two_machines_need_a_name(machine: FakeMachine, pyvmm: Run) -> None:
    with registry.claim("db"):
        assert "2 VMs are running" in pyvmm("balloon", "256M").err


def test_debug_shows_the_traceback(pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_DEBUG", "1")
    with pytest.raises(Exception, match="no VM is running"):
        pyvmm("status")


def test_status_shows_memory_and_channels(machine: FakeMachine, pyvmm: Run) -> None:
    out = pyvmm("status").out
    assert out.startswith("web: running for 12 s\n")
    for part in ("512 MiB of 512 MiB; 200 MiB resident on the host", "#1 heartbeat: open", "engine", "idle"):
        assert part in out


def test_status_and_balloon_say_the_same_of_memory(
    machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = machine.describe() | {"balloon": {"state": "BalloonWaiting", "max": 1024 * MIB}}
    monkeypatch.setattr(machine, "describe", lambda: about)
    words = "512 MiB of 1 GiB; 200 MiB resident on the host"
    assert pyvmm("balloon").out == f"web: {words}\n"
    out = pyvmm("status").out
    assert words in out
    assert "taking memory out" in out


def test_status_of_a_paused_machine_does_not_count_the_pause(machine: FakeMachine, pyvmm: Run) -> None:
    machine.pause()
    assert pyvmm("status").out.startswith("web: paused, started 12 s ago\n")


def test_every_state_of_the_balloon_has_words() -> None:
    for state in get_args(states.State):
        assert output.balloon_state(state.__name__) != state.__name__


def test_status_json_is_what_the_machine_says(machine: FakeMachine, pyvmm: Run) -> None:
    assert json.loads(pyvmm("status", "--json").out)["vmbus"] == machine.info_vmbus()


def test_ps_lists_machines_even_those_that_do_not_answer(machine: FakeMachine, pyvmm: Run) -> None:
    with registry.claim("mute") as mute:
        lines = pyvmm("ps").out.splitlines()
        assert [line.split()[0] for line in lines] == ["NAME", "web", "mute"]
        assert "starting" in lines[2]
        mute.socket.touch()
        assert "not answering" in pyvmm("ps").out.splitlines()[2]
        assert [each["name"] for each in json.loads(pyvmm("ps", "--json").out)] == ["web", "mute"]


def test_a_machine_that_starts_is_waited_for(pyvmm: Run) -> None:
    made = FakeMachine("web")
    with registry.claim("web") as registration, ExitStack() as stack:
        timer = threading.Timer(0.3, lambda: stack.enter_context(serving(made, registration.socket)))
        timer.start()
        assert pyvmm("balloon").status == 0
        timer.join()


def test_a_machine_that_ends_while_it_starts_is_no_longer_waited_for(pyvmm: Run) -> None:
    registration = registry.claim("web")
    threading.Timer(0.3, registration.release).start()
    assert "no VM listens" in pyvmm("balloon").err


def test_status_of_a_machine_that_starts_says_so(pyvmm: Run) -> None:
    with registry.claim("web", ["pyvmm", "run"]):
        found = pyvmm("status")
        assert found.out.splitlines()[0].startswith("web: starting")
        assert "pyvmm run" in found.out
        about = json.loads(pyvmm("status", "--json").out)
        assert (about["status"], about["pid"]) == ("starting", os.getpid())


def test_a_silent_socket_is_a_machine_that_starts_until_it_has_settled(
    pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ps, "ANSWER_TIMEOUT", 0.1)
    with registry.claim("mute") as mute, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(mute.socket))
        silent.listen(8)
        assert "starting" in pyvmm("ps").out
        monkeypatch.setattr(registry, "SETTLING", 0.0)
        assert "not answering" in pyvmm("ps").out


def test_a_machine_that_does_not_answer_is_one_line(pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_command, "ANSWER_TIMEOUT", 0.1)
    monkeypatch.setattr(registry, "SETTLING", 0.0)
    with registry.claim("hung") as hung, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(hung.socket))
        silent.listen(1)
        with ExitStack() as stack:
            for _ in range(4):  # the last find no more room to wait in
                found = pyvmm("status", "hung")
                assert found == (1, "", "pyvmm: hung does not answer: `pyvmm kill hung` ends it\n")
                other = stack.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)
                with suppress(BlockingIOError):
                    other.connect(str(hung.socket))


def test_a_machine_with_a_blocked_loop_is_reported_with_its_place(
    pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_command, "ANSWER_TIMEOUT", 0.1)
    monkeypatch.setattr(registry, "SETTLING", 0.0)
    with registry.claim("hung") as hung, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(hung.socket))
        silent.listen(1)
        registry.stall_note(hung.socket).write_text("reset (machine.py:300) < run (loop.py:240)")
        found = pyvmm("status", "hung")
    assert "its event loop is stalled in reset (machine.py:300) < run (loop.py:240); `pyvmm kill hung`" in found.err
    assert not registry.stall_note(hung.socket).exists()


def test_ps_cuts_commands_on_a_terminal_only(pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.claim("mute", ["pyvmm", "run", "x" * 100]):
        assert pyvmm("ps").out.endswith(f"pyvmm run {'x' * 100}\n")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        assert pyvmm("ps").out.endswith("xxx…\n")


def test_ps_of_nothing(pyvmm: Run) -> None:
    assert pyvmm("ps").out == "no VM is running\n"
    assert json.loads(pyvmm("ps", "--json").out) == []


def test_stop_asks_the_guest_and_waits(machine: FakeMachine, pyvmm: Run) -> None:
    found = pyvmm("stop", "--timeout", "0.1")
    assert (found.status, machine.calls) == (124, ["powerdown"])
    assert "--force" in found.out


@pytest.mark.parametrize("state", ["paused", "prelaunch"])
def test_stop_lets_a_paused_machine_run_on_first(
    machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(machine, "powerdown", lambda: machine.ended())
    machine.state = state
    found = pyvmm("stop", "--json")
    assert (json.loads(found.out)["resumed"], machine.calls) == (True, ["resume"])
    assert found.err == "pyvmm: web was paused: resumed, so that it can shut down\n"


def test_stop_of_a_guest_that_panicked_says_what_ends_it(machine: FakeMachine, pyvmm: Run) -> None:
    machine.state = "guest-panicked"
    line = "pyvmm: web is guest-panicked and cannot shut down: `pyvmm stop web --force` ends it\n"
    assert pyvmm("stop") == (1, "", line)


def test_stop_of_a_guest_that_a_debugger_holds_says_what_to_do(machine: FakeMachine, pyvmm: Run) -> None:
    machine.state = "debug"
    line = "pyvmm: a debugger holds web: continue or detach there, or `pyvmm stop web --force`\n"
    assert pyvmm("stop") == (1, "", line)


def test_stop_notices_the_end(machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "powerdown", lambda: machine.ended())
    assert pyvmm("stop").status == 0


def test_stop_force_quits(machine: FakeMachine, pyvmm: Run) -> None:
    found = pyvmm("stop", "web", "--force", "--json")
    assert json.loads(found.out)["ended"] is True
    assert machine.calls == ["quit"]


def test_image_list_names_all_recipes(pyvmm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    assert "debian-6.1 (default)  not built" in pyvmm("image", "list").out
    found = json.loads(pyvmm("image", "list", "--json").out)
    assert {"name": "debian-6.1", "built": False, "default": True}.items() <= next(
        each for each in found if each["default"]
    ).items()


def test_image_show_of_one_not_built_names_the_next_step(
    pyvmm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    found = pyvmm("image", "show")
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert "pyvmm image build" in found.err


def test_image_config_prints_the_fragment_for_merge_config(pyvmm: Run) -> None:
    printed = pyvmm("image", "config").out
    assert printed == FRAGMENT.read_text()
    assert missing_options(printed) == []


def finding(group: str, ok: bool, needed: bool = True) -> doctor.Finding:
    return doctor.Finding(group, "x", ok, "", needed=needed)


@pytest.mark.parametrize(
    ("kvm", "emulated", "where"),
    [(True, True, "local"), (True, False, "local"), (False, True, "emulated"), (False, False, "nowhere")],
)
def test_doctor_says_where_guests_run(kvm: bool, emulated: bool, where: str) -> None:
    found = [finding("Software", True), finding("KVM", kvm), finding("KVM", False, needed=False)]
    assert doctor._where([*found, finding("Emulated host", emulated)]) == where


def test_doctor_without_anything_shows_how_to_get_it(
    pyvmm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyvmm.host import qemu
    from pyvmm.launch import probe

    def no_qemu() -> str:
        raise HostError("qemu-system-x86_64: not found")

    nothing: Any = probe.Probe([probe.Finding("/dev/kvm", False, "does not exist", "modprobe kvm")])
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "probe", lambda **_: nothing)
    monkeypatch.setattr(qemu, "find_qemu", no_qemu)
    found = pyvmm("doctor")
    assert found.status == 1
    assert "-> apt-get install qemu-system-x86" in found.out
    assert "Guests cannot run here yet" in found.out
    assert json.loads(pyvmm("doctor", "--json").out)["guests"] == "nowhere"


def test_host_local_on_a_kvm_that_cannot_says_so_before_an_image_is_built(
    pyvmm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyvmm.launch import probe

    nothing: Any = probe.Probe([probe.Finding("/dev/kvm", False, "does not exist", "modprobe kvm")])
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "probe", lambda **_: nothing)
    for command in ("run", "tour"):
        found = pyvmm(command, "--host", "local")
        assert (found.status, found.err.count("\n")) == (1, 1)
        assert "does not exist" in found.err
    assert not (tmp_path / "cache").exists()


def test_durations_are_short() -> None:
    assert [output.duration(s) for s in (5.9, 65, 3700, 90000)] == ["5 s", "1 min 5 s", "1 h 1 min", "1 days 1 h"]


def test_a_machine_that_ends_meanwhile_is_one_line(
    runtime: Path, pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FakeMachine("dying")
    with registry.claim("dying") as registration, serving(made, registration.socket):
        monkeypatch.setattr(made, "describe", lambda: made.ended() or {})
        found = pyvmm("balloon")
        assert found.err in ("pyvmm: the VM ended\n", "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-m", "0"], "0 KiB of memory"),
        (["--cpus", "0"], "0 CPUs"),
        (["--trace", "no_such_thing"], "no trace event matches"),
    ],
)
def test_what_no_machine_can_be_is_said_before_anything_is_made(
    pyvmm: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    def made(*unused: object, **options: object) -> None:
        raise AssertionError("an image or a host was made for it")

    monkeypatch.setattr("pyvmm.images.catalog.find_image", made)
    monkeypatch.setattr("pyvmm.host.commands.run_in_host", made)
    found = pyvmm("run", *words)
    assert found.status in (1, 2)
    assert text in found.err


@pytest.mark.parametrize("command", ["run", "tour"])
def test_the_name_is_taken_before_an_image_is_built(
    pyvmm: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    seen: list[str] = []

    def build(*_: object, **__: object) -> None:
        seen.append(pyvmm("ps").out.splitlines()[1])
        seen.append(pyvmm("run", "--name", "web").err)
        raise HostError("cannot build it")

    monkeypatch.setattr("pyvmm.images.catalog.find_image", build)
    assert pyvmm(command, "--name", "web") == (1, "", "pyvmm: cannot build it\n")
    row, second = seen
    assert row.split()[::2][:2] == ["web", "starting"]
    assert second == (
        f"pyvmm: a VM named 'web' runs already (pid {os.getpid()}): choose another --name, or `pyvmm stop web`\n"
    )
    assert registry.running() == []
