"""The interface of a link: the host's end of a network card's cable.

    device                        link
    start(frames, room, end)  ->  reads from now on
      <- frames()                 frames came: `read` them, again and again until there are none
      <- room()                   after a `write` that did not take all: try again
      <- end(reason)              nothing comes any more
    hold(), go_on()           ->  back pressure: no `frames` in between

On the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pyvmm.loop import Callback
from pyvmm.wire import Buffer

FRAME_LIMIT = 65535 + 18
"""Bytes of the longest frame: an IP packet, Ethernet's header and a tag."""

Frames = list[memoryview]


class Poller(Protocol):
    """The part of the loop that links use."""

    def add_reader(self, fd: int, callback: Callback) -> None: ...

    def add_writer(self, fd: int, callback: Callback) -> None: ...

    def remove_reader(self, fd: int) -> None: ...

    def remove_writer(self, fd: int) -> None: ...


class Link:
    """Base of links, and the link that is connected to nothing: it takes all frames and gives none.

    `kind` and `place` name it for people. `vnet`: frames to it have a virtio header, and its peer does the work that
    the header says; else the peer ignores checksums. `checked`: those of frames from it are right. `alive`: whether
    anything may come.
    """

    kind = "none"
    place = ""
    vnet = False
    checked = True
    alive = False

    def start(
        self, frames: Callable[[], object], room: Callable[[], object], end: Callable[[str], object]
    ) -> None: ...

    def hold(self) -> None: ...

    def go_on(self) -> None: ...

    def read(self) -> Frames:
        """Return some of the frames that came, valid until the next call; none if there are no more now."""
        return []

    def write(self, frames: Sequence[list[Buffer]]) -> int:
        """Send frames, each in parts. Return how many were taken; the rest has to wait for `room`."""
        return len(frames)

    def close(self) -> None:
        """End the link. Idempotent."""


class FdLink(Link):
    """Base of links with a descriptor."""

    def __init__(self, loop: Poller, fd: int) -> None:
        self._loop = loop
        self.fd = fd
        self.alive = True
        self._frames: Callable[[], object] = lambda: None
        self._room: Callable[[], object] = lambda: None
        self._end: Callable[[str], object] = lambda reason: None
        self._reading = False

    def start(self, frames: Callable[[], object], room: Callable[[], object], end: Callable[[str], object]) -> None:
        self._frames, self._room, self._end = frames, room, end
        self.go_on()

    def hold(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.fd)

    def go_on(self) -> None:
        if self.alive and not self._reading:
            self._reading = True
            self._loop.add_reader(self.fd, lambda: self._frames())

    def await_room(self) -> None:
        """Call `room` once the descriptor can be written."""
        self._loop.add_writer(self.fd, self.has_room)

    def has_room(self) -> None:
        """Handle that the descriptor can be written."""
        self._loop.remove_writer(self.fd)
        self._room()

    def ended(self, reason: str) -> None:
        """Report that the peer is gone."""
        if self.alive:
            self.close()
            self._end(reason)

    def close(self) -> None:
        if self.alive:
            self.hold()
            self._loop.remove_writer(self.fd)
            self.alive = False
            self.close_fd()

    def close_fd(self) -> None:
        raise NotImplementedError
