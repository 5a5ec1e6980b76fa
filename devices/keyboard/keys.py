"""Make codes of keys (PC scan code set 1) by their names in QEMU's QKeyCode.

Source: QEMU qapi/ui.json, QKeyCode; Linux drivers/input/keyboard/atkbd.c, atkbd_set2_keycode and its translation.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.errors import ConfigError


class Key(NamedTuple):
    """A make code, and whether the prefix E0 goes before it."""

    code: int
    extended: bool = False


_ROWS = (
    (0x01, "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace"),
    (0x0F, "tab q w e r t y u i o p bracket_left bracket_right ret"),
    (0x1D, "ctrl a s d f g h j k l semicolon apostrophe grave_accent"),
    (0x2A, "shift backslash z x c v b n m comma dot slash shift_r"),
    (0x37, "kp_multiply alt spc caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num_lock scroll_lock"),
    (0x47, "kp_7 kp_8 kp_9 kp_subtract kp_4 kp_5 kp_6 kp_add kp_1 kp_2 kp_3 kp_0 kp_decimal sysrq"),
    (0x56, "less f11 f12"),
)
"""Keys whose codes follow each other."""

_EXTENDED = {
    "kp_enter": 0x1C, "ctrl_r": 0x1D, "kp_divide": 0x35, "print": 0x37, "alt_r": 0x38, "home": 0x47, "up": 0x48,
    "pgup": 0x49, "left": 0x4B, "right": 0x4D, "end": 0x4F, "down": 0x50, "pgdn": 0x51, "insert": 0x52,
    "delete": 0x53, "meta_l": 0x5B, "meta_r": 0x5C, "menu": 0x5D, "compose": 0x5D,
}  # fmt: skip

KEYS: dict[str, Key] = {
    name: Key(first + number) for first, names in _ROWS for number, name in enumerate(names.split())
} | {name: Key(code, True) for name, code in _EXTENDED.items()}


def key_named(name: str) -> Key:
    """Return the key with this name. Raises ConfigError with those that are close."""
    key = KEYS.get(name)
    if key is None:
        import difflib

        close = difflib.get_close_matches(name, KEYS, 3)
        hint = f", did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"no key is named {name[:40]!r}{hint}")
    return key
