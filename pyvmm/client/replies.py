"""What a machine's reply to x-status means, in words."""

from __future__ import annotations

from typing import Any

from pyvmm.sizes import format_size

RESIDENT_SLACK = 256 << 20
"""Bytes resident beyond the guest's size that mean nothing: pyvmm itself, and memory on its way out."""


def memory_text(memory: dict[str, Any], balloon: dict[str, Any]) -> str:
    """`256 MiB of 1 GiB, target 128 MiB; 300 MiB resident on the host`, from what is known. `of` is the most that the
    guest may get.
    """
    boot, target = memory.get("boot"), memory.get("target")
    actual = boot if memory.get("actual") is None else memory["actual"]
    if actual is None:
        return ""
    text = format_size(actual)
    most = balloon.get("max") or boot
    if most:
        text += f" of {format_size(most)}"
    if target not in (None, actual):
        text += f", target {format_size(target)}"
    if memory.get("resident"):
        text += f"; {format_size(memory['resident'])} resident on the host"
        if memory["resident"] > actual + RESIDENT_SLACK:
            text += " (more than it should have: it uses pages that it gave back)"
    return text
