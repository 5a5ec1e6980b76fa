"""`pyvmm explain X`: what is found, and what is said of what is not."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.explain import lookup
from pyvmm.explain.declared import ROOT


@pytest.mark.parametrize(
    ("word", "kinds"),
    [
        ("0x40000000", {"msr", "cpuid"}),
        ("1073741824", {"msr", "cpuid"}),
        ("0x4000_0083", {"msr"}),
        ("15", {"message", "capability", "fuse"}),
        ("0xc000000d", {"status"}),
        ("-1073741811", {"status"}),
        ("HV_X64_MSR_SIMP", {"msr"}),
        ("simp", {"msr"}),
        ("HvCallPostMessage", {"hypercall"}),
        ("struct vmbus_channel_open_channel", {"message"}),
        ("VmbusOpenChannel", {"trace"}),
        ("{525074DC-8985-46E2-8057-A307DC18A502}", {"device"}),
        ("00000400-facb-11e6-bd58-64006a7986d3", {"guid"}),
        ("Dynamic memory", {"device"}),
        ("query-balloon", {"qmp-command"}),
        ("hv_netvsc", {"device"}),
        ("5.3", {"version"}),
        ("c000000d", {"status"}),
        ("5c", {"hypercall"}),
        ("IoIn", {"exit"}),
    ],
)
def test_a_word_is_found_in_each_of_its_forms(word: str, kinds: set[str]) -> None:
    assert {each.kind for each in lookup.find(word)} == kinds


def test_a_kind_narrows_the_meanings() -> None:
    assert [each.name for each in lookup.find("0x40000000", ["cpuid"])] == ["VENDOR"]


def test_a_value_is_taken_apart() -> None:
    (entry,) = lookup.with_value("0x40000092=0x100f3")
    assert [(row.name, row.meaning) for row in entry.fields[:2]] == [("vector", "0xf3"), ("masked", "0x1")]


def test_a_handler_is_the_function_that_dispatches_it() -> None:
    (entry,) = lookup.find("CHANNELMSG_OPENCHANNEL")
    first = entry.handlers()[0]
    assert first.place.symbol == "Server._receive"
    line = (ROOT / first.place.path).read_text().splitlines()[first.place.line - 1]
    assert "OpenChannel" in line


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("quary-baloon", "near are query-balloon"),
        ("HV_X64_MSR_SIPM", "near are HV_X64_MSR_SIMP"),
        ("0x40000005000", "near are"),
        ("", "nothing is called"),
        ("x" * 5000, "nothing is called"),
        ("\x1b]0;title\x07", "nothing is called"),
        ("0x", "nothing is called"),
        ("9" * 5000, "nothing is called"),
        ("deadbeef-0000-0000-0000-000000000000", "nothing is called"),
    ],
)
def test_an_unknown_word_names_what_is_near(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as failed:
        lookup.find(word)
    assert said in str(failed.value)
    assert "`pyvmm explain` lists the kinds" in str(failed.value)
    assert len(str(failed.value)) < 400


def test_a_word_of_another_kind_says_which() -> None:
    with pytest.raises(ConfigError, match="0x40000083 is no cpuid, but msr: leave out --kind"):
        lookup.find("0x40000083", ["cpuid"])


def test_a_status_of_a_signal_is_explained() -> None:
    (entry,) = lookup.find("137", ["exit-status"])
    assert "SIGKILL" in entry.text


@pytest.mark.parametrize(
    "word", ["SINT2=", "SINT2=x", "SINT2=-1", f"SINT2={1 << 64}", "OPEN_RESULT=5", "=5", "nothing=5"]
)
def test_a_bad_value_is_refused(word: str) -> None:
    with pytest.raises(ConfigError):
        lookup.with_value(word)


def test_decimal_digits_may_be_meant_as_hexadecimal_ones() -> None:
    assert [each.name for each in lookup.as_hexadecimal("15", ["hypercall"])] == ["SEND_IPI_EX"]
    assert lookup.as_hexadecimal("0x15") == []
