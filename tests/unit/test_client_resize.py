"""A resize followed by the monitor's events."""

from __future__ import annotations

from typing import Any

from pyvmm.client.resize import REPLACED, ResizeProgress

MIB = 1 << 20


def progress(size: int = 256 * MIB, *, reach: int = 0, reason: str = "", actual: int = 512) -> ResizeProgress:
    reply = {"target": size, "will-reach": reach or size, "reason": reason}
    return ResizeProgress(size, reply, actual * MIB)


def finished(target: int, actual: int, reason: str = "", *, final: bool = True) -> dict[str, Any]:
    return {"target": target * MIB, "actual": actual * MIB, "reason": reason, "final": final}


def test_the_size_is_reached_when_the_machine_says_so() -> None:
    resize = progress()
    resize.update("BALLOON_CHANGE", {"actual": 256 * MIB})
    assert not resize.result
    resize.update("X_BALLOON_FINISHED", finished(256, 256))
    assert (resize.result, resize.actual, resize.asked_again) == ("reached", 256 * MIB, False)


def test_a_guest_that_stays_elsewhere_gives_the_reason() -> None:
    resize = progress()
    resize.update("X_BALLOON_FINISHED", finished(256, 300, "its floor", final=False))
    assert (resize.result, resize.actual, resize.asked_again) == ("its floor", 300 * MIB, True)


def test_the_forecast_explains_why_another_size_was_reached() -> None:
    resize = progress(1 * MIB, reach=64 * MIB, reason="it keeps 64 MiB")
    resize.update("X_BALLOON_FINISHED", finished(1, 64, "gave less"))
    assert resize.result == "it keeps 64 MiB"


def test_the_end_of_an_earlier_resize_is_not_this_ones() -> None:
    resize = progress()
    resize.update("X_BALLOON_FINISHED", finished(300, 300))
    assert not resize.result


def test_another_target_ends_it() -> None:
    resize = progress()
    resize.update("X_BALLOON_TARGET", {"target": 256 * MIB})
    assert not resize.result
    resize.update("X_BALLOON_TARGET", {"target": 300 * MIB})
    assert resize.result == REPLACED


def test_a_guest_that_is_there_already_needs_no_event() -> None:
    assert progress(512 * MIB).result == "reached"


def test_a_part_of_a_page_does_not_count() -> None:
    resize = progress(256 * MIB + 17, reach=256 * MIB)
    resize.update("X_BALLOON_FINISHED", finished(256, 256))
    assert (resize.result, resize.size) == ("reached", 256 * MIB)
