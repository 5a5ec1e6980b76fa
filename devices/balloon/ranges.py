"""Sets of guest pages, as used by the ledger: an interface of merged ranges over bitmaps.

A set is cut into chunks of CHUNK pages (16 MiB), each one integer with a bit a page; whole chunks share one integer.
So the ranges are disjoint, sorted and merged by construction, and a hostile guest's overlaps and repetitions cost an
OR. Union, difference, overlap and counting run at C speed on 4096 pages at a time.

Memory use grows with fragmentation up to a bound: 1 TiB in one piece takes some 5 MB, 1 TiB of which every second
4 KiB page is out (134 million ranges, 2 GiB as pairs of numbers) takes some 40 MB.

    page:   0 ........ 4095 | 4096 ........ 8191 | ...
    chunk:  0 -> 0b..00111  | 1 -> (all ones)    | absent: empty
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress
from typing import NamedTuple

CHUNK_BITS = 12
CHUNK = 1 << CHUNK_BITS
"""Pages per chunk. Small enough that setting one bit (a copy of the integer, 512 bytes) costs no more than the Python
around it; large enough that a TiB is few chunks. 12 measured best of 9 to 13 (tests/bench/balloon_ranges.py)."""

_LOW = CHUNK - 1
_FULL = (1 << CHUNK) - 1
_FLAGS = bytes(48) + b"\0\1" + bytes(206)  # translates the digits of bin() into false and true bytes
_FEW_RUNS = 24
"""Number of runs up to which it is quicker to search for each; above, to convert the whole integer to text."""


class PageRange(NamedTuple):
    """`pages` pages from page frame `start` on."""

    start: int
    pages: int

    @property
    def end(self) -> int:
        return self.start + self.pages

    def parts(self, limit: int) -> list[PageRange]:
        """Split into ranges of at most `limit` pages."""
        if self.pages <= limit:
            return [self]
        return [PageRange(start, min(limit, self.end - start)) for start in range(self.start, self.end, limit)]


class Absorbed(NamedTuple):
    """Result of `PageRanges.absorb`: the new pages, and the number of pages that were in `within`."""

    new: PageRanges
    inside: int


class PageRanges:
    """A set of pages. Iterates as merged `PageRange`s by rising address; `pages` is their number, kept up to date.

    Built from any ranges: overlapping, unsorted, of zero pages. Time and memory grow with the chunks that they cover:
    bound a guest's claim by `clipped` first.
    """

    __slots__ = ("_chunks", "_order", "pages")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._chunks: dict[int, int] = {}
        self._order: list[int] | None = None  # sorted keys, while they are known
        self.pages = 0
        self.insert(ranges)

    # One range after another

    def insert(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Add pages; return how many of them were not in the set before."""
        before = self.pages
        chunks = self._chunks
        current, mask = -1, 0  # bits collected for one chunk, as neighbours come in a row
        for start, count in ranges:
            low = start & _LOW
            if start >> CHUNK_BITS != current:
                if mask:
                    self._set(current, mask)
                current, mask = start >> CHUNK_BITS, 0
            if low + count <= CHUNK:
                mask |= (1 << count) - 1 << low
                continue
            mask |= _FULL >> low << low
            whole_end = start + count >> CHUNK_BITS
            for key in range(current + 1, whole_end):
                self.pages += CHUNK - (old.bit_count() if (old := chunks.get(key)) is not None else 0)
                chunks[key] = _FULL
            self._order = None
            self._set(current, mask)
            current, mask = whole_end, (1 << (start + count & _LOW)) - 1
        if mask:
            self._set(current, mask)
        return self.pages - before

    def _set(self, key: int, mask: int) -> None:
        old = self._chunks.get(key)
        if old is None:
            self._order = None
            self.pages += mask.bit_count()
        else:
            mask |= old
            self.pages += mask.bit_count() - old.bit_count()
        self._chunks[key] = _FULL if mask == _FULL else mask

    # Whole sets

    def update(self, other: PageRanges) -> int:
        """Add the pages of `other`; return how many were not in the set before."""
        before = self.pages
        for key, mask in other._chunks.items():
            self._set(key, mask)
        return self.pages - before

    def absorb(self, given: PageRanges, within: PageRanges, besides: PageRanges) -> Absorbed:
        """Add the pages of `given` that are in `within` and not in `besides`, in one pass.

        Equal to a few unions and differences, in a third of the time: each message is processed here.
        """
        new: dict[int, int] = {}
        inside = pages = 0
        for key, mask in given._chunks.items():
            bounds = within._chunks.get(key)
            if bounds is None:
                continue
            if bounds is not _FULL:
                mask &= bounds
            inside += mask.bit_count()
            old = self._chunks.get(key, 0)
            other = besides._chunks.get(key)
            if other is not None:
                mask &= ~(old | other)
            elif old:
                mask &= ~old
            if mask:
                pages += mask.bit_count()
                new[key] = mask
                if not old:
                    self._order = None
                mask |= old
                self._chunks[key] = _FULL if mask == _FULL else mask
        self.pages += pages
        result = PageRanges()
        result._chunks, result.pages = new, pages
        return Absorbed(result, inside)

    def subtract(self, other: PageRanges) -> int:
        """Remove the pages of `other`; return how many of them were in the set."""
        before = self.pages
        emptied = 0
        small, large = (other, self) if len(other._chunks) < len(self._chunks) else (self, other)
        for key in [key for key in small._chunks if key in large._chunks]:
            old = self._chunks[key]
            left = old & ~other._chunks[key]
            self.pages += left.bit_count() - old.bit_count()
            if left:
                self._chunks[key] = left
            else:
                del self._chunks[key]
                emptied += 1
        if emptied:
            self._trim_order(emptied)
        return before - self.pages

    def _trim_order(self, emptied: int) -> None:
        """Keep the order of keys if the removed ones were the highest, as is usual when memory is given back."""
        order = self._order
        while order and emptied and order[-1] not in self._chunks:
            order.pop()
            emptied -= 1
        if emptied:
            self._order = None

    def __and__(self, other: PageRanges) -> PageRanges:
        """Return the pages in both."""
        small, large = (self, other) if len(self._chunks) < len(other._chunks) else (other, self)
        return self._of({k: both for k, mask in small._chunks.items() if (both := mask & large._chunks.get(k, 0))})

    def __sub__(self, other: PageRanges) -> PageRanges:
        """Return the pages of this set that are not in `other`."""
        theirs = other._chunks
        return self._of({k: left for k, mask in self._chunks.items() if (left := mask & ~theirs.get(k, 0))})

    def __or__(self, other: PageRanges) -> PageRanges:
        """Return the pages in either."""
        result = self.copy()
        result.update(other)
        return result

    @classmethod
    def _of(cls, chunks: dict[int, int]) -> PageRanges:
        result = cls()
        result._chunks = chunks
        result.pages = sum(mask.bit_count() for mask in chunks.values())
        return result

    def copy(self) -> PageRanges:
        return self._of(dict(self._chunks))

    def clear(self) -> None:
        self._chunks = {}
        self._order = None
        self.pages = 0

    def isdisjoint(self, other: PageRanges) -> bool:
        """Whether no page is in both."""
        small, large = (self, other) if len(self._chunks) < len(other._chunks) else (other, self)
        return not any(mask & large._chunks.get(key, 0) for key, mask in small._chunks.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PageRanges) and self._chunks == other._chunks

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self.pages > 0

    def __contains__(self, page: int) -> bool:
        return bool(self._chunks.get(page >> CHUNK_BITS, 0) >> (page & _LOW) & 1)

    def __repr__(self) -> str:
        return f"PageRanges({[tuple(r) for r in self]})"

    # Ranges out

    def _keys(self) -> list[int]:
        if self._order is None:
            self._order = sorted(self._chunks)
        return self._order

    def __iter__(self) -> Iterator[PageRange]:
        start = end = -1
        for key in self._keys():
            base = key << CHUNK_BITS
            for low, high in _runs(self._chunks[key]):
                if base + low == end:
                    end = base + high
                    continue
                if end > start:
                    yield PageRange(start, end - start)
                start, end = base + low, base + high
        if end > start:
            yield PageRange(start, end - start)

    def top(self, pages: int, max_ranges: int | None = None) -> PageRanges:
        """Return the `pages` highest pages (all, if there are fewer), as a new set.

        With `max_ranges` it ends early, after the chunk in which it reaches so many.
        """
        taken: dict[int, int] = {}
        ranges = 0
        for key in reversed(self._keys()):
            if pages <= 0:
                break
            mask = self._chunks[key]
            count = mask.bit_count()
            taken[key] = mask if count <= pages else _top_bits(mask, pages)
            pages -= count
            if max_ranges is not None:
                ranges += 0 if mask == _FULL else (mask & ~(mask << 1)).bit_count()
                if ranges >= max_ranges:
                    break
        return self._of(taken)

    @property
    def size_bytes(self) -> int:
        """Return the approximate host memory of the set in bytes."""
        masks = sum(mask.__sizeof__() for mask in self._chunks.values() if mask is not _FULL)
        return self._chunks.__sizeof__() + 32 * len(self._chunks) + masks


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of each run of ones, from the lowest."""
    if mask == _FULL:
        return iter(((0, CHUNK),))
    firsts = mask & ~(mask << 1)
    count = firsts.bit_count()
    if count == 1:
        return iter(((firsts.bit_length() - 1, mask.bit_length()),))
    if count <= _FEW_RUNS:
        return _few_runs(mask)
    skip = (firsts & -firsts).bit_length() - 1
    ends = (mask & ~(mask >> 1)) >> skip
    top = skip + ends.bit_length()
    return zip(
        compress(range(skip, top), bin(firsts >> skip)[:1:-1].encode().translate(_FLAGS)),
        compress(range(skip + 1, top + 1), bin(ends)[:1:-1].encode().translate(_FLAGS)),
        strict=True,
    )


def _few_runs(mask: int) -> Iterator[tuple[int, int]]:
    base = 0
    while mask:
        skip = (mask & -mask).bit_length() - 1
        mask >>= skip
        length = (~mask & mask + 1).bit_length() - 1
        yield base + skip, base + skip + length
        base += skip + length
        mask >>= length


def _top_bits(mask: int, count: int) -> int:
    """Return the `count` highest ones of `mask`, by a binary search for the bit above which so many lie."""
    low, high = 0, CHUNK  # at least `count` above low, fewer above high
    while high - low > 1:
        middle = low + high >> 1
        if (mask >> middle).bit_count() >= count:
            low = middle
        else:
            high = middle
    return mask >> low << low


def clipped(ranges: Iterable[tuple[int, int]], bounds: Iterable[tuple[int, int]]) -> tuple[list[PageRange], int]:
    """Return the parts of `ranges` within `bounds`, sorted and merged, and the number of pages outside.

    For claims too large for a set: in a few bytes a guest may name 2^40 pages. `bounds` are few (ranges of RAM),
    disjoint and sorted.
    """
    merged: list[PageRange] = []
    for start, pages in sorted(ranges):
        if merged and start <= merged[-1].end:
            last = merged[-1]
            merged[-1] = PageRange(last.start, max(last.end, start + pages) - last.start)
        elif pages:
            merged.append(PageRange(start, pages))
    inside = []
    for low, pages in bounds:
        for each in merged:
            first, end = max(each.start, low), min(each.end, low + pages)
            if first < end:
                inside.append(PageRange(first, end - first))
    return inside, sum(r.pages for r in merged) - sum(r.pages for r in inside)
