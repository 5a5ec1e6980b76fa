"""The words of `pyvmm step`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import ConfigError
from pyvmm.step.commands import COUNT_LIMIT, LOOKS, STEPS, help_lines, parse
from pyvmm.step.stepper import Kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m", [("m", 1)]),
        ("m m p", [("m", 1), ("m", 1), ("p", 1)]),
        ("3m", [("m", 3)]),
        ("m 3", [("m", 3)]),
        ("m 3 2p; e\nn", [("m", 3), ("p", 2), ("e", 1), ("n", 1)]),
        ("  ;; ", []),
    ],
)
def test_steps_are_letters_with_counts(text: str, expected: list[tuple[str, int]]) -> None:
    assert [(each.letter, each.wanted.count if each.wanted else 0) for each in parse(text)] == expected


def test_a_trace_step_takes_a_pattern() -> None:
    (first, second) = parse("t vmbus.channel_*; m")
    assert first.wanted is not None
    assert (first.wanted.kind, first.wanted.pattern) == (Kind.TRACE, "vmbus.channel_*")
    assert second.letter == "m"


def test_a_dump_takes_an_address_and_perhaps_a_length() -> None:
    assert [(each.address, each.length) for each in parse("d 0x1000; d 4096 16")] == [(0x1000, 64), (4096, 16)]


@pytest.mark.parametrize(
    "text",
    [
        "z",
        "mm",
        "-1m",
        "0m",
        f"{COUNT_LIMIT + 1}m",
        "9" * 20 + "m",
        "3w",
        "d",
        "d x",
        "d 0 0",
        "d 0 5000",
        "\x1b",
        "é",
    ],
)
def test_what_is_no_command_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 120


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse(text)
    except ConfigError:
        pass


def test_help_names_every_command() -> None:
    text = "\n".join(help_lines())
    assert all(f"  {letter}   " in text for letter in (*STEPS, *LOOKS))
