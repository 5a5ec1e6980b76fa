from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyvmm
from pyvmm.api import backend as backends
from pyvmm.api.backend import ProcessBackend
from pyvmm.client import registry
from pyvmm.client.qmp import Disconnected, Refused, TimedOut
from pyvmm.client.replies import memory_text
from pyvmm.errors import ConfigError, HostError
from tests.support.fake_machine import MIB, FakeMachine


def test_importing_pyvmm_imports_no_machine() -> None:
    code = "import sys, pyvmm; print(sorted(m for m in sys.modules if m.startswith('pyvmm')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout == "['pyvmm']\n"


def test_pyvmm_has_what_it_says_and_nothing_else() -> None:
    assert all(hasattr(pyvmm, name) for name in pyvmm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Macine'"):
        _ = pyvmm.Macine  # type: ignore[attr-defined]


def test_a_command_in_the_guest_gives_output_and_status(vm: pyvmm.Machine, inner: FakeMachine) -> None:
    assert vm.run("uname -r") == pyvmm.Completed(3, "uname -r", "\ufffd")
    assert vm.run(["echo", "a b"]).stdout == "echo 'a b'"
    assert inner.calls == ["execute uname -r", "execute echo 'a b'"]


def test_a_failed_command_raises_if_asked_to(vm: pyvmm.Machine) -> None:
    with pytest.raises(pyvmm.CommandFailed, match="'false' ended with status 3") as caught:
        vm.run("false", check=True)
    assert caught.value.completed.status == 3


def test_a_command_that_is_lost_raises(vm: pyvmm.Machine) -> None:
    with pytest.raises(Refused, match="the guest restarted"):
        vm.run("fail")


def test_the_balloon_is_waited_for_and_says_where_it_is(vm: pyvmm.Machine) -> None:
    assert vm.balloon("256M").actual == 256 * MIB
    assert vm.balloon(1 * MIB).actual == 64 * MIB
    with pytest.raises(Refused, match="512 MiB at most"):
        vm.balloon("1T")
    with pytest.raises(ConfigError):
        vm.balloon("5X")


def test_memory_reads_well(vm: pyvmm.Machine) -> None:
    memory = vm.memory
    assert (memory.boot, memory.plugged, memory.resident) == (512 * MIB, 128 * MIB, 200 * MIB)
    assert str(memory) == "512 MiB of 512 MiB"


def test_memory_is_shown_in_the_units_of_the_command_line(
    vm: pyvmm.Machine, inner: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"boot": 512 * MIB, "actual": 300 * MIB, "target": 256 * MIB, "resident": 200 * MIB}
    about = inner.describe() | {"memory": memory, "balloon": {"state": "Idle", "max": 1024 * MIB}}
    monkeypatch.setattr(inner, "describe", lambda: about)
    assert str(vm.memory) == "300 MiB of 1 GiB, target 256 MiB"
    assert memory_text(memory, about["balloon"]).startswith(f"{vm.memory};")


def test_events_are_kept_until_they_are_read(vm: pyvmm.Machine) -> None:
    vm.pause()
    assert vm.status == "paused"
    vm.resume()
    assert [event.name for event in vm.events()] == ["STOP", "RESUME"]
    assert list(vm.events()) == []


def test_an_event_can_be_waited_for(vm: pyvmm.Machine) -> None:
    vm.qmp("device_del", {"id": "heartbeat"})
    assert vm.wait_event("DEVICE_DELETED").data["device"] == "heartbeat"
    with pytest.raises(TimedOut, match=r"no STOP or RESET within 0\.1 s"):
        vm.wait_event("STOP", "RESET", timeout=0.1)


def test_waiting_for_an_event_leaves_the_others_to_be_read(vm: pyvmm.Machine) -> None:
    vm.pause()
    vm.balloon("256M")
    vm.resume()
    assert vm.wait_event("RESUME").name == "RESUME"
    vm.reset()
    assert vm.wait_event("RESET").name == "RESET"
    assert vm.wait_event("STOP").name == "STOP"
    assert [event.name for event in vm.events()] == ["BALLOON_CHANGE", "X_BALLOON_TARGET", "X_BALLOON_FINISHED"]


def test_a_paused_machine_is_resumed_to_shut_down(vm: pyvmm.Machine, inner: FakeMachine) -> None:
    vm.pause()
    with pytest.raises(TimedOut):
        vm.shutdown(0.1)
    assert inner.calls == ["pause", "resume", "powerdown"]


def test_a_machine_that_has_not_begun_is_resumed_to_shut_down(vm: pyvmm.Machine, inner: FakeMachine) -> None:
    inner.state = "prelaunch"
    with pytest.raises(TimedOut):
        vm.shutdown(0.1)
    assert inner.calls == ["resume", "powerdown"]


def test_the_end_is_reported_with_its_kind(vm: pyvmm.Machine) -> None:
    assert vm.quit() == pyvmm.End("quit")
    assert not vm.running
    assert vm.wait() == pyvmm.End("quit")
    with pytest.raises(Disconnected, match="has ended"):
        vm.run("true")


def test_a_panic_is_reported_with_its_text(vm: pyvmm.Machine, inner: FakeMachine, backend: Any) -> None:
    inner.emit("GUEST_PANICKED", action="poweroff", info={}, **{"x-text": "Kernel panic - not syncing"})
    inner.emit("SHUTDOWN", guest=True, reason="guest-panic")
    inner.ended()
    assert vm.wait(10) == pyvmm.End("panic", "Kernel panic - not syncing")


def test_the_exit_ports_status_is_reported(vm: pyvmm.Machine, inner: FakeMachine, backend: Any) -> None:
    inner.emit("SHUTDOWN", guest=True, reason="guest-shutdown", **{"x-status": 3})
    inner.ended()
    assert vm.wait(10) == pyvmm.End("poweroff", "", 3)


def test_a_machine_that_just_disappears_is_an_error_with_its_words(
    vm: pyvmm.Machine, inner: FakeMachine, backend: Any
) -> None:
    backend.why = "vcpu 0: KVM internal error"
    inner.ended()
    assert vm.wait(10) == pyvmm.End("error", "vcpu 0: KVM internal error")


def test_waiting_has_a_limit(vm: pyvmm.Machine) -> None:
    with pytest.raises(TimedOut, match=r"still runs after 0\.1 s"):
        vm.wait(0.1)


def test_a_guest_that_boots_is_waited_for_as_long_as_asked(vm: pyvmm.Machine, inner: FakeMachine) -> None:
    inner.ready = False
    with pytest.raises(TimedOut, match=r"takes no commands after 0\.1 s"):
        vm.wait_ready(0.1)
    inner.ready = True
    vm.wait_ready(0.1)


def test_a_late_answer_is_not_taken_for_anothers(vm: pyvmm.Machine, inner: FakeMachine) -> None:
    with pytest.raises(TimedOut):
        vm.qmp("x-execute", {"command": "later"}, timeout=0.2)
    inner.finish()
    assert vm.status == "running"


def test_the_console_is_text_to_read_and_to_type(vm: pyvmm.Machine, backend: Any) -> None:
    backend.console(b"login: \xff")
    assert vm.console == "login: \ufffd"
    vm.send("root\n")
    assert backend.sent == b"root\n"


def test_the_monitor_prints(vm: pyvmm.Machine) -> None:
    assert vm.monitor("info name") == "vm\n"


def test_what_needs_a_started_machine_says_so() -> None:
    vm = pyvmm.Machine()
    assert repr(vm) == "<pyvmm.Machine not started>"
    for call in (lambda: vm.run("true"), lambda: vm.memory, lambda: vm.console, lambda: vm.machine):
        with pytest.raises(ConfigError, match="call start"):
            call()
    vm.close()


def test_a_machine_is_started_once(vm: pyvmm.Machine) -> None:
    with pytest.raises(ConfigError, match="started already"):
        vm.start()


def test_one_elsewhere_has_no_inside(vm: pyvmm.Machine) -> None:
    with pytest.raises(ConfigError, match="a process of its own"):
        _ = vm.machine


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"memory": "5X"}, "unknown unit"),
        ({"cpus": "x"}, "not a valid int"),
        ({"memry": "1G"}, "no option of a machine is named 'memry', did you mean 'memory'?"),
        ({"hyperv": "xen"}, "'xen' is not one of"),
        ({"command": ["x"]}, "no option of a machine is named 'command'"),
        ({"console": "none"}, "no option of a machine is named 'console'"),
        ({"config": "/nowhere.toml"}, "configuration /nowhere.toml: No such file"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        pyvmm.Machine(**options)


def test_wrong_files_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        pyvmm.Machine(kernel=tmp_path / "vmlinux").start()


def test_keywords_are_the_options_of_run(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('cpus = 2\nmemory = "1G"\nname = "web"\n')
    vm = pyvmm.Machine(config=file, memory=768 * MIB, no_reboot=True, keep_target=False, trace=["a", "b"])
    options = vm._options
    assert (options.cpus, options.memory.boot, options.no_reboot) == (2, 768 * MIB, True)
    assert (options.keep_target, options.trace, vm.name) == (False, ("a", "b"), "web")


def test_a_process_that_ends_at_once_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    backend = ProcessBackend(["--kernel", "/nowhere"], "gone")
    assert backend.join(30)
    assert "/nowhere" in backend.trouble()
    with pytest.raises(HostError, match="has ended"):
        backend.send(b"x" * 100_000)
    backend.close()
    backend.close()


def test_a_process_inside_an_emulated_host_serves_its_monitor_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(backends, "inside", lambda: True)
    monkeypatch.setattr(backends, "socket_path", lambda path: f"{path}.inner")
    backend = ProcessBackend(["--kernel", "/nowhere"], "gone")
    assert backend.join(30)
    backend.close()
    place = f"{tmp_path}/pyvmm/gone.sock"
    assert backend.socket == Path(f"{place}.inner")
    words = list(backend._process.args)  # type: ignore[arg-type,call-overload]
    assert words[words.index("--control-socket") + 1] == place


def test_a_process_does_not_take_anothers_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with registry.claim("web"), pytest.raises(ConfigError, match="a VM named 'web' runs already"):
        ProcessBackend([], "web")


def test_a_process_runs_this_pyvmm_wherever_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyvmm").mkdir()
    (tmp_path / "pyvmm/__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    backend = ProcessBackend(["--kernel", "/nowhere"], "here")
    assert backend.join(30)
    assert "/nowhere" in backend.trouble()
    backend.close()
