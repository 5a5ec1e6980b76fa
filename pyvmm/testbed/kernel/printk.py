"""The kernel's log, read from its ring buffer.

Source: Linux kernel/printk/printk_ringbuffer.h and printk_ringbuffer.c, since 5.10.

    descriptor  state and id in one word; begin and next of its text in the data ring, ever growing positions
    info        time, level, length of the text, of the descriptor with the same index
    data block  8 bytes with the descriptor's id, then the text; one that does not fit at the end lies at the start
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyvmm.testbed.kernel.view import KernelView
from pyvmm.testbed.oracles.log_lines import Line

_STATE_SHIFT: Final = 62
_COMMITTED, _FINALIZED = 1, 2
_ID_MASK: Final = (1 << _STATE_SHIFT) - 1
_ID_SIZE: Final = 8
_DESC_BITS_LIMIT: Final = 18
_TEXT_BITS_LIMIT: Final = 26
_TEXT_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class _Ring:
    bits: int
    descs: int
    infos: int
    head: int
    tail: int
    text_bits: int
    text: int


class LogReader:
    """Reads the log of one kernel; each record once."""

    def __init__(self, view: KernelView) -> None:
        self.view = view
        self._next: int | None = None  # id of the first record not read yet
        layout = view.image.layout
        self._rb, self._desc_ring, self._data_ring = (
            layout("printk_ringbuffer"), layout("prb_desc_ring"), layout("prb_data_ring")
        )  # fmt: skip
        self._desc, self._info, self._lpos = layout("prb_desc"), layout("printk_info"), layout("prb_data_blk_lpos")
        self._prb = view.image.symbol("prb")  # a pointer: early boot has another ring

    def read(self) -> list[Line]:
        """Return the lines that were logged since the last call. Raises NoKernelError."""
        ring = self._ring()
        mask = (1 << ring.bits) - 1
        at = ring.tail if self._next is None else self._next
        if self._next != ring.head + 1 & _ID_MASK and ring.head - at & _ID_MASK > mask:
            at = ring.head - mask & _ID_MASK  # older ones are overwritten; or the ring is damaged
        lines: list[Line] = []
        while ring.head + 1 - at & _ID_MASK:
            record = self._record(ring, at & mask, at)
            if record is None:
                break
            lines += record
            at = at + 1 & _ID_MASK
        self._next = at
        return lines

    def _ring(self) -> _Ring:
        view = self.view
        rb = view.u64(self._prb)
        desc = rb + self._rb.at("desc_ring")
        data = rb + self._rb.at("text_data_ring")
        ring = _Ring(
            view.u32(desc + self._desc_ring.at("count_bits")),
            view.u64(desc + self._desc_ring.at("descs")),
            view.u64(desc + self._desc_ring.at("infos")),
            view.u64(desc + self._desc_ring.at("head_id")) & _ID_MASK,
            view.u64(desc + self._desc_ring.at("tail_id")) & _ID_MASK,
            view.u32(data + self._data_ring.at("size_bits")),
            view.u64(data + self._data_ring.at("data")),
        )
        limited = ring.bits <= _DESC_BITS_LIMIT and ring.text_bits <= _TEXT_BITS_LIMIT
        return ring if limited else _Ring(0, 0, 0, 0, 1, 0, 0)  # a guest that overwrote it: no log

    def _record(self, ring: _Ring, index: int, id: int) -> list[Line] | None:
        """Return a record's lines; None if it is being written."""
        view = self.view
        desc = view.read(ring.descs + index * self._desc.size, self._desc.size)
        at = self._desc.at("state_var")
        state = int.from_bytes(desc[at : at + 8], "little")
        if state & _ID_MASK != id:
            return []  # overwritten meanwhile, or never used
        if state >> _STATE_SHIFT not in (_COMMITTED, _FINALIZED):
            return None if state >> _STATE_SHIFT == 0 else []
        at = self._desc.at("text_blk_lpos")
        begin, end = (
            int.from_bytes(desc[at + offset : at + offset + 8], "little")
            for offset in (self._lpos.at("begin"), self._lpos.at("next"))
        )
        info = view.read(ring.infos + index * self._info.size, self._info.size)
        length = min(int.from_bytes(info[(n := self._info.at("text_len")) : n + 2], "little"), _TEXT_LIMIT)
        time = int.from_bytes(info[(n := self._info.at("ts_nsec")) : n + 8], "little") / 1e9
        level = self._info.members["level"]
        severity = info[level.offset] >> level.shift & 7
        if begin & 1:
            return []  # a record without text
        size = 1 << ring.text_bits
        start = begin % size if begin >> ring.text_bits == (end - 1) >> ring.text_bits else 0
        text = view.read(ring.text + start + _ID_SIZE, min(length, size - start - _ID_SIZE)).decode(
            "utf-8", "replace"
        )
        return [Line(severity, round(time, 6), each) for each in text.split("\n")]
