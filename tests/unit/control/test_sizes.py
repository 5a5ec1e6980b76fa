from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.sizes import format_size, is_size, parse_size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("1.5G", 1536 * MIB),
        (".5G", 512 * MIB),
        ("1.3G", 1395864371),
        ("4096k", 4 * MIB),
        ("1T", 1 << 40),
        ("4096b", 4096),
        ("0x20000000", 512 * MIB),
        ("0", 0),
        ("7E", 7 << 60),
    ],
)
def test_sizes_mean_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("M", "'M' is not a size"),
        ("-1M", "negative"),
        ("512MB", "did you mean 512M"),
        ("5X", "unknown unit 'X'"),
        ("1e9", "not a size"),
        ("8E", "too large"),
        ("9" * 39, "too large"),
        ("9" * 100000, "too long"),
        ("1.2.3M", "not a size"),
        ("٣M", "not a size"),
        ("nan", "not a size"),
    ],
)
def test_what_is_no_size_says_why(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_size(text)
    assert len(str(caught.value)) < 120
    assert not is_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1000, "1000 bytes"),
        (512 * MIB, "512 MiB"),
        (1234 * MIB, "1234 MiB"),
        (1536 * MIB, "1.5 GiB"),
        (3 << 30, "3 GiB"),
        (1 << 40, "1 TiB"),
        (-MIB, "-1 MiB"),
    ],
)
def test_sizes_are_shown_short(size: int, text: str) -> None:
    assert format_size(size) == text
