"""Reports the outcome of each resize to the monitor: X_BALLOON_FINISHED."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm import qapi
from pyvmm.loop import Pending, Poster
from pyvmm.qapi import Emit

if TYPE_CHECKING:
    from pyvmm.devices.balloon.device import BalloonDevice


class ResizeEvents:
    """Emits the newest outcome in a later turn of the loop, unless another target was set meanwhile.

    So the event follows the reply to the command that set its target, and a guest that ends attempts over and over
    costs one event a turn.
    """

    def __init__(self, balloon: BalloonDevice, emit: Emit, loop: Poster) -> None:
        self._emit = emit
        self._balloon = balloon
        pending = Pending(loop, self._emit_outcome)
        balloon.on_finish.append(lambda outcome: pending.ask())

    def _emit_outcome(self) -> None:
        outcome = self._balloon.last_outcome  # None if a target was set since
        if outcome is not None:
            self._emit(
                qapi.X_BALLOON_FINISHED(
                    {
                        "target": outcome.target,
                        "actual": outcome.actual,
                        "reason": outcome.reason,
                        "final": outcome.final,
                    }
                )
            )
