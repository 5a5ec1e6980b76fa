"""`pyvmm explain X`: whatever is typed is explained, or refused in one line."""

from __future__ import annotations

from pyvmm.errors import ConfigError
from pyvmm.explain import lookup
from tests.fuzz.feed import Feed

PIECES = (
    "0x",
    "4000",
    "0083",
    "=",
    "SINT",
    "-",
    "_",
    "HV_X64_MSR_",
    "{",
    "facb-11e6-bd58-64006a7986d3",
    " ",
    "15",
    "\0",
)


def _explain(word: str) -> None:
    try:
        found = lookup.with_value(word) if "=" in word else lookup.find(word)
    except ConfigError as error:
        assert len(str(error)) < 1000
        return
    assert found
    assert all(each.text for each in found)


def word(data: bytes) -> None:
    """A word as typed: any text, and text of pieces that occur in names and numbers."""
    _explain(data.decode("utf-8", "replace")[:300])
    feed = Feed(data)
    _explain("".join(feed.choice(PIECES) for _ in range(feed.below(8))))


TARGETS = {"file_explain": word}
