"""`pyvmm explain X`: whatever is typed is explained, or refused in one line."""

from __future__ import annotations

from contextlib import suppress

from pyvmm.errors import ConfigError
from pyvmm.explain import lookup
from pyvmm.explain.hexdump import looks_like_bytes, parse
from pyvmm.explain.packets import forms, read_as, readings
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


def text(data: bytes) -> None:
    """Bytes as text: any, and digits with what stands between them in dumps."""
    feed = Feed(data)
    pieces = ("0f", "00", " ", "  ", ":", "|", "\n", "0x", ",", "\\x", "00000000: ", "g")
    for each in (data.decode("utf-8", "replace"), "".join(feed.choice(pieces) for _ in range(feed.below(60)))):
        looks_like_bytes(each)
        with suppress(ConfigError):
            read(parse(each))


def read(data: bytes) -> None:
    """Bytes: those that fit a form are decoded, and any are in each form that is asked for."""
    with suppress(ConfigError):
        assert readings(data)
    for form in forms():
        assert read_as(data, form).decoded.parts


TARGETS = {"file_explain": word, "file_explain_text": text, "file_explain_bytes": read}
