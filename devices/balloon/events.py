"""Trace events of the balloon. `hv_balloon_*` are QEMU's (names, arguments, formats), `balloon.*` are ours.

Source: QEMU hw/hyperv/trace-events (10.0). One difference: an unballoon message of ours carries many ranges, so its
`count` is the sum and its `start` the first.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.trace import event
from pyvmm.trace.sequences import Entry, Sequence
from pyvmm.trace.views import DeviceView, Pair, device_view

# QEMU's
state_change = event("hv_balloon_state_change", "-> {tostr}")
incoming_version = event("hv_balloon_incoming_version", "incoming proto version {major}.{minor}")
incoming_caps = event("hv_balloon_incoming_caps", "incoming caps 0x{caps:x}")
outgoing_unballoon = event(
    "hv_balloon_outgoing_unballoon", "posting unballoon {trans_id} for {count} @ 0x{start:x}, remaining {rempages}"
)
incoming_unballoon = event("hv_balloon_incoming_unballoon", "incoming unballoon response {trans_id}")
outgoing_balloon = event(
    "hv_balloon_outgoing_balloon", "posting balloon {trans_id} for {count}, remaining {rempages}"
)
incoming_balloon = event(
    "hv_balloon_incoming_balloon", "incoming balloon response {trans_id}, ranges {range_count}, more {more_pages}"
)
outgoing_hot_add = event("hv_balloon_outgoing_hot_add", "posting hot add {trans_id} for {count} @ 0x{start:x}")
incoming_hot_add = event(
    "hv_balloon_incoming_hot_add", "incoming hot add response {trans_id}, result {result}, count {count}"
)
our_range_add = event("hv_balloon_our_range_add", "adding our range {count} @ 0x{start:x}")
remove_response = event(
    "hv_balloon_remove_response", "processing remove response range {count} @ 0x{start:x}, both {both}"
)
remove_response_remainder = event(
    "hv_balloon_remove_response_remainder", "remove response remaining range {count} @ 0x{start:x}, both {both}"
)
remove_response_hole = event(
    "hv_balloon_remove_response_hole",
    "response range hole {counthole} @ 0x{starthole:x} from range {countrange} @ 0x{startrange:x},"
    " before our start 0x{starthpr:x}, both {both}",
)
remove_response_common = event(
    "hv_balloon_remove_response_common",
    "response common range {countcommon} @ 0x{startcommon:x} from range {countrange} @ 0x{startrange:x}"
    " with our {counthpr} @ 0x{starthpr:x}, removed {removed}, both {both}",
)

# Ours
status_report = event("balloon.status_report", "available {available} committed {committed} pages")
target_set = event("balloon.target_set", "{target} pages, now {current}: {reason}")
finished = event("balloon.finished", "target {target} pages, at {current}: {reason}")
pages_refused = event("balloon.pages_refused", "{outside} outside RAM, {known} already out, {repeated} repeated")
discard_failed = event("balloon.discard_failed", "{count} pages @ 0x{start:x}: {reason}")
late_answer = event("balloon.late_answer", "type {type}")
too_many_pages = event("balloon.too_many_pages", "asked {asked}, got {got}")
asks_again = event("balloon.asks_again", "{pages} pages short, try {tries} in {seconds} s")
timed_out = event("balloon.timed_out", "in {state}")
info_sent = event("balloon.info_sent", "maximum {pages} pages")
forgotten = event("balloon.forgotten", "{pages} pages: {reason}")
hot_add_short = event("balloon.hot_add_short", "asked {asked}, got {got}, result {result}")
hot_add_offline = event("balloon.hot_add_offline", "{pages} pages, {seconds} s for the answer")
map_failed = event("balloon.map_failed", "{count} pages @ 0x{start:x}: {reason}")


def _sequences(entries: Iterable[Entry], start: float) -> list[Sequence]:
    from pyvmm.devices.balloon.message_sequences import MessageSequences

    return MessageSequences(entries, start).sequences


VIEW = device_view(
    DeviceView(
        packages=("hv_balloon", "balloon"),
        track="hv-balloon",
        states={"hv_balloon_state_change": "tostr"},
        pairs=(
            Pair(
                "balloon request to last response",
                "hv_balloon_outgoing_balloon",
                "hv_balloon_incoming_balloon",
                when=("more_pages", 0),
                single=True,
                span="balloon request",
            ),
            Pair(
                "unballoon request to response",
                "hv_balloon_outgoing_unballoon",
                "hv_balloon_incoming_unballoon",
                single=True,
                span="unballoon request",
            ),
            Pair(
                "hot-add request to response",
                "hv_balloon_outgoing_hot_add",
                "hv_balloon_incoming_hot_add",
                single=True,
                span="hot-add request",
            ),
            Pair("resize: target set to finished", "balloon.target_set", "balloon.finished", newest=True),
        ),
        # A later answer would be late, or from another driver of the guest. Transaction ids do not identify the
        # request of an answer: Linux counts its own.
        given_up=(("balloon.timed_out", {}), ("hv_balloon_state_change", {"tostr": "S_VERSION"})),
        sequences=_sequences,
    )
)
