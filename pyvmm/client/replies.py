"""Formats a machine's reply to x-status as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyvmm.sizes import format_size

RESIDENT_SLACK = 256 << 20
"""Bytes of resident memory beyond the guest's size that are not shown: pyvmm's own, and pages not yet discarded."""


def memory_text(memory: dict[str, Any], balloon: dict[str, Any]) -> str:
    """Format `256 MiB of 1 GiB, target 128 MiB; 300 MiB resident on the host`, without unknown figures. `of` is the
    guest's maximum size.
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


def access_text(kind: str, number: int, name: str) -> str:
    """Format an entry: `port read 0x80 (POST code)`, `exit IoapicEoi`."""
    if kind == "exit":
        return f"exit {name}"
    return f"{kind} {number:#x}" + (f" ({name})" if name else "")


def net_text(net: Mapping[str, Any]) -> str:
    """`netvsc: user tcp::2222-:22, 52:54:00:12:34:56, link up, 12 frames in, 10 out, 1 dropped`."""
    place = f" {net['place']}" if net.get("place") else ""
    state = f"link {net.get('link', '?')}" + ("" if net.get("up") else ", interface down")
    text = f"{net.get('id', '?')}: {net.get('kind', '?')}{place}, {net.get('mac', '?')}, {state}"
    text += f", {net.get('received', 0)} frames in, {net.get('sent', 0)} out"
    return text + (f", {net['dropped']} dropped" if net.get("dropped") else "")
