"""MODE SENSE: the parameters of a disk. Of interest to Linux are write protection and the write cache.

Source: T10 SPC-5, 7.5, SBC-4, 6.5; Linux drivers/scsi/sd.c, sd_read_write_protect_flag(), sd_read_cache_type().
"""

from __future__ import annotations

from struct import pack

from pyvmm.devices.storvsc.scsi.sense import BAD_FIELD, CheckCondition

WRITE_PROTECT, DPO_FUA = 0x80, 0x10
CACHING, CONTROL, ALL_PAGES = 0x08, 0x0A, 0x3F
WRITE_CACHE = 0x04

CHANGEABLE, SAVED = 1, 3
"""Values of the page control besides the current and the default ones."""


def mode_sense(cdb: bytes, *, read_only: bool, ten: bool) -> bytes:
    """Return the answer to MODE SENSE(6), or (10) if `ten`. Raises CheckCondition for a page that there is not."""
    control, page, sub_page = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    if control == SAVED or (sub_page not in (0, 0xFF)):
        raise CheckCondition(BAD_FIELD)
    if page == ALL_PAGES:
        pages = b"".join(make(control) for make in _PAGES.values())
    elif page == 0 and not sub_page:  # Linux asks for page 0 if 3F fails
        pages = b""
    elif page in _PAGES:
        pages = _PAGES[page](control)
    else:
        raise CheckCondition(BAD_FIELD)
    flags = (WRITE_PROTECT if read_only else 0) | DPO_FUA
    if ten:
        return pack(">HBBxxH", 6 + len(pages), 0, flags, 0) + pages
    return pack(">BBBB", 3 + len(pages), 0, flags, 0) + pages


def _caching(control: int) -> bytes:
    """The cache may be written late: SYNCHRONIZE CACHE is what makes data durable."""
    return pack(">BBB17x", CACHING, 18, 0 if control == CHANGEABLE else WRITE_CACHE)


def _control(control: int) -> bytes:
    return pack(">BB10x", CONTROL, 10)


_PAGES = {CACHING: _caching, CONTROL: _control}
