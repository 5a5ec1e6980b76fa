"""One declaration of a guest's options: click, keywords and the words for another process mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.commands.run import run
from pyvmm.cli.guest_options import options_of
from pyvmm.errors import ConfigError
from pyvmm.images import debian_root
from pyvmm.launch.build import machine_config
from pyvmm.launch.options import GuestOptions, read_keywords


def parsed(words: list[str]) -> GuestOptions:
    """What `pyvmm run` makes of `words`."""
    return options_of(run.make_context("run", list(words)).params)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"memory": "512M,max=4G,min=256M,buffer=20%", "balloon_piece": "1025k", "hot_add": 0, "slots": 3},
        {"kernel": Path("/b z"), "append": "--debug -- single", "cpus": 4, "hyperv": "user", "max_vmbus": "4.1"},
        {"trace": ["vmbus_*", "-x"], "trace_file": "t.json", "trace_format": "chrome", "qmp": "/run/q"},
        {"enlightenments": ["stimer,stimer-direct", "-crash"], "hyperv": "kernel"},
        {"keep_target": False, "page_reporting": False, "status_report": True, "no_reboot": True},
        {"sandbox": "off", "on_panic": "keep", "entry": "pvh", "host": "emulated", "mem_backend": "memfd,numa=0"},
    ],
)
def test_the_words_for_another_process_mean_the_same(keywords: dict[str, Any]) -> None:
    options = read_keywords(keywords, {"command": ("echo", "--", "-m")})
    assert parsed(options.words()) == options


def test_lists_of_enlightenments_are_joined_in_their_order() -> None:
    for options in (
        parsed(["--enlightenments", "stimer,-crash", "--enlightenments=+crash"]),
        read_keywords({"enlightenments": ("stimer,-crash", "+crash")}, {}),
    ):
        assert machine_config(options).enlightenments == ("+stimer", "-crash", "+crash")
    assert machine_config(read_keywords({"enlightenments": "ipi"}, {})).enlightenments == ("+ipi",)
    assert machine_config(GuestOptions()).enlightenments == ()


@pytest.mark.parametrize("value", ["stimmer", "", "-all", "help,stimer", ["stimer", ""], 5])
def test_a_list_with_an_unknown_enlightenment_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^enlightenments: "):
        read_keywords({"enlightenments": value}, {})


def test_help_is_no_enlightenment_of_a_machine() -> None:
    with pytest.raises(ConfigError, match="'help' is no enlightenment"):
        machine_config(read_keywords({"enlightenments": "help"}, {}))


def test_fault_rules_come_from_a_file_and_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[[rule]]\nfault = 'eom-lost'\n")
    options = parsed(["--fault-file", str(file), "--fault", "packet-lost,after=1", "--fault=message.in:drop"])
    assert machine_config(options).faults == ("eom-lost", "packet-lost,after=1", "message.in:drop")
    assert machine_config(read_keywords({"fault": "eom-lost"}, {})).faults == ("eom-lost",)
    assert parsed(options.words()) == options


@pytest.mark.parametrize("value", ["nonsense", "", "help,once", ["eom-lost", "eom"], 5])
def test_an_unknown_fault_rule_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^fault: "):
        read_keywords({"fault": value}, {})


def test_help_is_no_fault_of_a_machine_and_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="'help' is no fault"):
        machine_config(read_keywords({"fault": "help"}, {}))
    with pytest.raises(ConfigError, match="fault rules: /absent"):
        machine_config(read_keywords({"fault_file": "/absent"}, {}))


def test_defaults_are_those_of_the_command_line() -> None:
    assert parsed([]) == GuestOptions() == read_keywords({"memory": None, "cpus": None}, {})


def test_a_keyword_goes_before_the_file_and_another_kernel_sets_its_image_aside() -> None:
    options = read_keywords({"kernel": "bzImage", "cpus": 2}, {"image": "debian-6.1", "cpus": 4, "append": "debug"})
    assert (options.kernel, options.image, options.cpus, options.append) == (Path("bzImage"), None, 2, "debug")


@pytest.mark.parametrize("keywords", [{"no_reboot": "yes"}, {"slots": "2.5"}, {"append": "a\0"}, {"memory": -1}])
def test_a_value_of_the_wrong_kind_names_its_keyword(keywords: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(keywords))}: "):
        read_keywords(keywords, {})


def test_a_guest_that_boots_the_system_of_a_disk() -> None:
    assert GuestOptions(image=debian_root.NAME).boots_a_disk
    assert GuestOptions(append="debug root=/dev/sda rw").boots_a_disk
    assert not GuestOptions(append="nfsroot=/dev/x").boots_a_disk
