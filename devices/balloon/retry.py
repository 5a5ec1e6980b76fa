"""The retry schedule for a guest that gave less than requested: back-off, and when the result is reported.

Source: Linux drivers/hv/hv_balloon.c, balloon_up(), for when it stops; mm/page_reporting.c for temporary reasons.

A guest stops above the target permanently or temporarily:

* Linux computes its floor once per request, from its memory before the request. The floor falls as pages go out (by a
  quarter of them in a guest of 128 to 512 MiB), so the next request finds a lower one. Seen with 6.1 and 6.12: 122 of
  128 MiB came, and the rest with the next request.
* While Linux reports free pages, up to 64 MiB of them at a time are isolated and not available: just after much
  memory was freed. Seen with 7.2.

The answer does not say which, so:

    short --1 s--> retry: short, reported --2 s--> retry --4 s--> retry --8 s--> retry: short, reported, the end

The first result is reported after one back-off. From then on the device counts as idle; later retries run in the
background, and their result is reported separately. A request that the guest fulfils restarts the schedule.
"""

from __future__ import annotations

REPORTED_AFTER = 2
"""Number of tries after which the result is reported."""


class RetrySchedule:
    """A retry schedule. `pauses`: seconds before each retry. `in_background`: whether to go on after the report."""

    def __init__(self, pauses: tuple[float, ...]) -> None:
        self.pauses = pauses
        self.in_background = True

    def pause_after(self, tries: int) -> float | None:
        """Return the seconds until the next try; None if there is none."""
        pauses = self.pauses if self.in_background else self.pauses[: REPORTED_AFTER - 1]
        return pauses[tries - 1] if tries <= len(pauses) else None

    def is_reported_after(self, tries: int) -> bool:
        """Return whether the result is reported after so many incomplete tries."""
        return tries == REPORTED_AFTER or self.pause_after(tries) is None
