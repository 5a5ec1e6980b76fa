"""What the report must not tell."""

from __future__ import annotations

import pytest

from pyvmm.selftest.scrub import Scrubber


@pytest.fixture
def scrubber() -> Scrubber:
    return Scrubber(
        names=["alice", "al", "thinkpad.example.org", "thinkpad", "root", "x"], folders=["/srv/alice/vm", "/root/"]
    )


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("kernel /srv/alice/vm/cache/kernels/6.1/vmlinux, 12 ms", "kernel PATH, 12 ms"),
        ("cannot open /home/bob/x.img: denied", "cannot open PATH: denied"),
        ("'/home/bob'", "'PATH'"),
        ("6.9.0-alice+", "6.9.0-NAME+"),
        ("thinkpad.example.org said so", "NAME said so"),
        ("Alice's ThinkPad", "NAME's NAME"),
        ("alicelike alignment total", "alicelike alignment total"),
        ("/root/x and /rootfs", "PATH and /rootfs"),
        ("root=/dev/sda x", "root=/dev/sda x"),
    ],
)
def test_names_and_paths_are_replaced(scrubber: Scrubber, text: str, scrubbed: str) -> None:
    assert scrubber.text(text) == scrubbed


def test_values_are_scrubbed_at_any_depth(scrubber: Scrubber) -> None:
    assert scrubber.value({"alice": [{"a": ("on thinkpad", 5)}], "n": None}) == {
        "NAME": [{"a": ["on NAME", 5]}],
        "n": None,
    }


def test_without_names_nothing_changes() -> None:
    assert Scrubber(names=[], folders=[]).text("a b /c") == "a b /c"
