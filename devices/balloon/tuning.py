"""Configurable limits and timeouts of the balloon."""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.devices.balloon.protocol import RANGES_LIMIT, VERSIONS, Version


@dataclass(frozen=True, slots=True)
class Tuning:
    """Limits and timeouts that a user or a test may set. Pages are 4 KiB, times seconds.

    Small pieces limit the zeroed pages that use host memory until they are discarded, make the size change smoothly,
    and let a new target take effect soon; each costs one round trip.
    """

    balloon_piece: int = 128 << 8  # 128 MiB
    unballoon_piece: int = 1024 << 8  # 1 GiB
    unballoon_ranges: int = 16 * RANGES_LIMIT  # gives fragmented memory back in bounded pieces, too
    balloon_pauses: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # before each retry after a guest stopped short
    hot_add_piece: int = 128 << 8  # 128 MiB, or a block of the guest if that is larger
    hot_add_whole_blocks: bool = False  # never grant part of a block; for guests that cannot accept one
    hot_add_tries: int = 3  # for a guest that answers "not now"
    hot_add_pause: float = 1.0  # before each further try
    request_timeout: float = 30.0
    newest_version: Version = VERSIONS[0]
    send_info: bool = True
    wants_status: bool = True
