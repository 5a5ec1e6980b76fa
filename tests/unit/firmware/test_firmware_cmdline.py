"""The kernel's command line, taken apart as Linux does."""

from __future__ import annotations

import pytest

from pyvmm.firmware import cmdline


@pytest.mark.parametrize(
    ("text", "kernel", "init"),
    [
        ("loglevel=7 -- single", "loglevel=7", "-- single"),
        ("--", "", "--"),
        ("a\t--\nb -- c", "a", "--\nb -- c"),
        ('dyndbg="a -- b" x', 'dyndbg="a -- b" x', ""),
        ('dyndbg="a -- b" -- x', 'dyndbg="a -- b"', "-- x"),
        ('a"b -- c" d', 'a"b -- c" d', ""),
        ("--verbose a--b -- c", "--verbose a--b", "-- c"),
        ("--=x y", "--=x y", ""),
        ('"--" x', "", '"--" x'),
        ('x="open -- y', 'x="open -- y"', ""),
        ("", "", ""),
    ],
)
def test_what_is_the_kernels_and_what_is_inits(text: str, kernel: str, init: str) -> None:
    assert cmdline.split(text) == (kernel, init)


def test_names_of_parameters_end_where_inits_words_begin() -> None:
    found = cmdline.names('quiet a.b="console=x y" "c=d e" console=tty0 -- console=tty1')
    assert found == ["quiet", "a.b", "c", "console"]
