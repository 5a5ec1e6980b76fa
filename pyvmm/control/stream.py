"""What one client watches: pieces sent to it alone, as they come, for as long as it likes.

command --client.watch(WHAT, make)--> Stream --send--> the client      at the machine's end: finish(), then close()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Ready = Callable[[], bool]
"""Whether the client has read enough to be sent more."""

Send = Callable[[bytes], None]
"""Takes a whole message, and leaves no trace event: a client that follows those would never come to an end."""


class Timing(Protocol):
    """The part of the loop that is needed."""

    def every(self, period: float, callback: Callable[[], Any], /) -> Any: ...


class Stream(Protocol):
    """Something watched by one client."""

    def finish(self) -> None:
        """Send what waits: the machine ends, and this is what people look for."""

    def close(self) -> None:
        """Forget what waits, and send no more."""


class Subscriber(Protocol):
    """The client a command came from."""

    def watch(self, what: str, make: Callable[[Timing, Ready, Send], Stream] | None) -> None:
        """Begin a stream in place of the one it had of `what`; None for none."""
