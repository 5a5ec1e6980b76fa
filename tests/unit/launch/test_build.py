"""What a guest's kernel is told."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.launch.build import BASE_CMDLINE, CONSOLE, NO_SHELL, build_config, command_line
from pyvmm.launch.options import read_keywords


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"initrd": "x"}, "--initrd needs --kernel or --kdir"),
        ({"modules": "x"}, "--modules needs --kernel or --kdir"),
        ({"module": "x"}, "--module needs --kernel or --kdir"),
        ({"image": "debian-6.1", "kdir": "x"}, "--image brings its own kernel"),
        ({"kdir": "/nowhere"}, "not a folder"),
    ],
)
def test_options_of_an_own_kernel_are_refused_without_one(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config(read_keywords(options, {}))


def test_the_console_comes_after_what_says_how_much_is_printed() -> None:
    assert command_line("loglevel=7", agent_only=True) == f"{BASE_CMDLINE} {NO_SHELL} loglevel=7 {CONSOLE}"
    assert command_line() == f"{BASE_CMDLINE} {CONSOLE}"


def test_a_console_of_the_users_is_the_last() -> None:
    assert command_line("console=tty0 debug") == f"{CONSOLE} {BASE_CMDLINE} console=tty0 debug"


def test_words_of_ours_come_before_those_of_init() -> None:
    words = command_line("loglevel=7 -- single console=tty0", agent_only=True)
    assert words == f"{BASE_CMDLINE} {NO_SHELL} loglevel=7 {CONSOLE} -- single console=tty0"
    assert command_line("console=tty0 -- single") == f"{CONSOLE} {BASE_CMDLINE} console=tty0 -- single"


def test_quotes_neither_hide_our_words_nor_make_a_separator() -> None:
    assert command_line('dyndbg="file -- +p"').endswith(f'dyndbg="file -- +p" {CONSOLE}')
    assert command_line('x="open').endswith(f'x="open" {CONSOLE}')
    assert command_line('x="console=tty0"').endswith(CONSOLE), "no console is named there"


def test_the_early_console_is_named_before_the_later_one() -> None:
    """The other way round Linux would take the later one's address for the early one, and find half a port there."""
    early, late = CONSOLE.split()
    assert early.startswith("earlycon=uart8250,mmio,0x")
    assert late.startswith("console=uart8250,mmio,0x")


def test_a_terminals_size_precedes_the_users_words_for_init() -> None:
    words = command_line("loglevel=7 -- single", window=(50, 132)).split()
    assert words.index("pyvmm.size=50x132") < words.index("--")
