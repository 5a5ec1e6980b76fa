"""Streams of a monitor client: data sent to that client alone until it unsubscribes.

command --client.set_stream(WHAT, make)--> Stream --send--> the client     at the end: finish(), then close()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Ready = Callable[[], bool]
"""Returns whether the client has read enough of its output to be sent more."""

Send = Callable[[bytes], None]
"""Sends one whole message without a trace event: a client that follows these would cause them without end."""


class Timing(Protocol):
    """The part of the loop that streams use."""

    def every(self, period: float, callback: Callable[[], Any], /) -> Any: ...


class Stream(Protocol):
    """A stream of data to one client."""

    def finish(self) -> None:
        """Send all queued data at the machine's end: the last output is often the one of interest."""

    def close(self) -> None:
        """Drop the queued data and send no more."""


class Subscriber(Protocol):
    """The client that sent a command."""

    def set_stream(self, what: str, make: Callable[[Timing, Ready, Send], Stream] | None) -> None:
        """Replace the client's stream of `what`; None ends it."""
