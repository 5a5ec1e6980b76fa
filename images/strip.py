"""Removes debugging information from kernel modules: a tree built with CONFIG_DEBUG_INFO has ten times as much of it
as of code, and the guest would read and drop it at each boot.

Source: ELF-64 object file format; Linux kernel/module/main.c (elf_validity_cache_copy), which skips SHT_NULL.

Sections keep their numbers, to which symbols and relocations refer: one that is removed becomes SHT_NULL, with no
contents.
"""

from __future__ import annotations

from struct import error as StructError
from struct import pack_into, unpack_from

SIGNED = b"~Module signature appended~\n"
_SHT_NULL, _SHT_NOBITS = 0, 8
_HEADER = 64
_SECTION = 64
_REMOVED = (b".debug", b".rela.debug", b".gdb_index")


def strip_debug(module: bytes) -> bytes:
    """Return a module without its debugging information. Signed and damaged ones stay as they are."""
    if module.endswith(SIGNED):
        return module
    try:
        return _strip(module)
    except (StructError, ValueError, OverflowError):
        return module


def _strip(module: bytes) -> bytes:
    (table,) = unpack_from("<Q", module, 40)
    size, count, names_index = unpack_from("<HHH", module, 58)
    if size != _SECTION:
        raise ValueError("sections of another size")
    headers = bytearray(module[table : table + count * _SECTION])
    (names,) = unpack_from("<Q", headers, names_index * _SECTION + 24)
    made = bytearray(module[:_HEADER])
    removed = False
    for at in range(0, count * _SECTION, _SECTION):
        (label, kind) = unpack_from("<II", headers, at)
        if kind in (_SHT_NULL, _SHT_NOBITS):
            continue
        start = names + label
        if module[start : start + 16].startswith(_REMOVED):
            removed = True
            pack_into("<I4Q2I2Q", headers, at + 4, _SHT_NULL, 0, 0, 0, 0, 0, 0, 0, 0)
            continue
        offset, length = unpack_from("<QQ", headers, at + 24)
        (align,) = unpack_from("<Q", headers, at + 48)
        contents = module[offset : offset + length]
        made += bytes(-len(made) % max(1, min(align, len(module))))
        if len(contents) != length or len(made) + length > len(module):
            raise ValueError("sections reach past the end, or overlap")
        pack_into("<Q", headers, at + 24, len(made))
        made += contents
    if not removed:
        return module
    made += bytes(-len(made) % 8)
    pack_into("<Q", made, 40, len(made))
    return bytes(made + headers) if len(made) + len(headers) <= len(module) else module
