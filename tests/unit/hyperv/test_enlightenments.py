"""The choice of enlightenments: names in, CPUID bits out, and what contradicts itself refused."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.hyperv.cpuid import Offer
from pyvmm.hyperv.enlightenments import ALL, BOTH, DEFAULT, TABLE, chosen, describe, parse_words
from pyvmm.hyperv.tlfs import Access, Feature, Hint, Privilege


def test_the_default_offer_is_what_boots_quickest() -> None:
    """docs/hyperv.md has the times."""
    offer = Offer.of(DEFAULT)
    assert offer.access == (
        Access.TIME_REF_COUNT
        | Access.SYNIC
        | Access.HYPERCALL
        | Access.VP_INDEX
        | Access.RESET
        | Access.REFERENCE_TSC
        | Access.FREQUENCY
    )
    assert offer.features == Feature.FREQUENCY_MSRS | Feature.CRASH_MSRS
    assert offer.hints == Hint.AUTO_EOI_DEPRECATED
    assert offer.privileges == Privilege.POST_MESSAGES | Privilege.SIGNAL_EVENTS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stimer", ("+stimer",)),
        ("+stimer,-crash", ("+stimer", "-crash")),
        (" hv-stimer , hv_stimer_direct", ("+stimer", "+stimer-direct")),
        ("-hv-crash", ("-crash",)),
        ("all", ("+all",)),
    ],
)
def test_lists_are_read_with_and_without_signs_and_qemu_s_prefix(text: str, words: tuple[str, ...]) -> None:
    assert parse_words(text) == words


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "an empty name"),
        ("stimer,", "an empty name"),
        ("stimmer", "did you mean 'stimer'"),
        ("-all", "there are vpindex, synic"),
        ("+-stimer", "is no enlightenment"),
        ("x" * 4000, "is no enlightenment"),
        ("stimer=on", "did you mean 'stimer'"),
    ],
)
def test_names_that_do_not_exist_are_refused_in_one_line(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as refused:
        parse_words(text)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("stimer,-time", "enlightenment stimer needs time: .*; add time, or remove stimer"),
        ("stimer-direct", "stimer-direct needs stimer"),
        ("-synic", "synic cannot be switched off: VMBus"),
        ("-vpindex", "vpindex cannot be switched off"),
        ("all,-time", "stimer needs time"),
    ],
)
def test_combinations_that_cannot_work_name_what_is_missing(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        chosen(parse_words(text))


def test_the_last_word_about_a_name_counts() -> None:
    assert chosen(parse_words("stimer,-stimer,-crash,crash")) == DEFAULT


def test_an_engine_refuses_by_name_what_it_lacks_and_leaves_it_out_of_all() -> None:
    with pytest.raises(ConfigError, match=r"the user engine has no enlightenment tlbflush: .*--hyperv kernel"):
        chosen(parse_words("tlbflush"), "user")
    assert chosen(parse_words("all"), "kernel") == set(TABLE)
    assert chosen(parse_words("all"), "user") == set(TABLE) - {"tlbflush"}
    assert "tlbflush" not in chosen(parse_words("tlbflush,-tlbflush"), "user")


def test_each_name_sets_bits_that_no_other_sets_alone() -> None:
    for name, each in TABLE.items():
        assert each.access or each.features or each.hints
        assert all(needed in TABLE for needed in each.needs)
        assert set(each.engines) <= set(BOTH)
        assert (each.engines == BOTH) == (not each.refused)
        assert name != ALL


def test_the_help_names_every_one_and_fits_a_terminal() -> None:
    text = describe()
    assert all(name in text for name in TABLE)
    assert max(map(len, text.splitlines())) <= 118
