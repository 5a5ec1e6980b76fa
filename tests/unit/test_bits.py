"""Named bit fields."""

from __future__ import annotations

import pytest

from pyvmm.bits import Bits, bit, bits


class Sint(Bits):
    vector = bits(0, 8)
    masked = bit(16)


def test_fields_read_as_plain_ints() -> None:
    value = Sint(0x100F3)
    assert (value.vector, value.masked) == (0xF3, 1)


def test_replace_changes_only_the_named_fields() -> None:
    assert Sint(0xFFF000F3).replace(vector=0x20, masked=0) == 0xFFF00020 & ~(1 << 16)
    assert isinstance(Sint(0).replace(masked=1), Sint)


def test_a_value_wider_than_its_field_is_refused() -> None:
    with pytest.raises(ValueError, match="vector: 0x100 is wider"):
        Sint(0).replace(vector=0x100)


def test_a_register_is_the_int_it_is() -> None:
    assert Sint(5) == 5
    assert Sint(5) | 0x100 == 0x105


def test_repr_names_the_fields() -> None:
    assert repr(Sint(0x100F3)) == "Sint(0x100f3: vector=0xf3, masked=0x1)"


def test_the_class_gives_the_field_itself() -> None:
    assert Sint.vector.mask == 0xFF
