"""Tells the monitor how each resize ended: X_BALLOON_FINISHED."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvmm.loop import Pending, Poster

if TYPE_CHECKING:
    from pyvmm.devices.balloon.device import BalloonDevice


class ResizeEvents:
    """Emits the newest outcome in a later turn of the loop, unless another target was set meanwhile.

    So the event follows the reply to the command that set its target, and a guest that ends attempts over and over
    costs one event a turn.
    """

    def __init__(self, balloon: BalloonDevice, emit: Callable[[str, dict[str, Any]], None], loop: Poster) -> None:
        self._emit = emit
        self._balloon = balloon
        pending = Pending(loop, self._tell)
        balloon.on_finish.append(lambda outcome: pending.ask())

    def _tell(self) -> None:
        outcome = self._balloon.last_outcome  # none since a target was set
        if outcome is not None:
            told = {"target": outcome.target, "actual": outcome.actual, "reason": outcome.reason}
            self._emit("X_BALLOON_FINISHED", told | {"final": outcome.final})
