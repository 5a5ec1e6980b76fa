"""Named faults of the devices: Dynamic Memory (hv_balloon) and the integration services (hv_utils).

Source: Linux drivers/hv/hv_balloon.c, struct dm_*; drivers/hv/hv_util.c.
"""

from __future__ import annotations

_OUT = "packet.out:{},channel=hv-balloon,message={}"
_DM_ANSWER = "Dynamic Memory: each request of the host has its answer, and each of the guest"
_NEGOTIATION = "Dynamic Memory: the host answers each VERSION_REQUEST, then CAPABILITIES"
_RANGES = "Dynamic Memory: UNBALLOON_REQUEST gives back pages that the guest has released, each once"
_HOT_ADD = "Dynamic Memory: HOT_ADD_REQUEST names addresses that are no RAM of the guest yet"


def _balloon(action: str, message: str, *words: str) -> str:
    return ",".join([_OUT.format(action, message), *words])


GROUPS: dict[str, tuple[tuple[str, str | tuple[str, ...], str, str], ...]] = {
    "Balloon: negotiation": (
        (
            "dm-version-unanswered",
            _balloon("drop", "VERSION_RESPONSE"),
            "hv_balloon's VERSION_REQUEST has no answer: its probe gives up after 5 s",
            _NEGOTIATION,
        ),
        (
            "dm-versions-refused",
            _balloon("change", "VERSION_RESPONSE", "to.is_accepted=0"),
            "every version of Dynamic Memory is refused",
            "Dynamic Memory: none, a host may refuse",
        ),
        (
            "dm-version-answered-twice",
            _balloon("duplicate", "VERSION_RESPONSE", "once"),
            "VERSION_REQUEST is answered twice",
            _NEGOTIATION,
        ),
        (
            "dm-capabilities-unanswered",
            _balloon("drop", "CAPABILITIES_RESPONSE"),
            "hv_balloon's CAPABILITIES has no answer",
            _NEGOTIATION,
        ),
        (
            "dm-capabilities-refused",
            _balloon("change", "CAPABILITIES_RESPONSE", "to.flags=0"),
            "the guest's capabilities are refused",
            "Dynamic Memory: none, a host may refuse",
        ),
        (
            "dm-request-during-negotiation",
            _balloon("insert", "VERSION_RESPONSE", "to.type=BALLOON_REQUEST", "place=before", "once"),
            "a BALLOON_REQUEST comes before the version is agreed on",
            "Dynamic Memory: no request comes before CAPABILITIES_RESPONSE",
        ),
    ),
    "Balloon: requests": (
        (
            "balloon-request-lost",
            _balloon("drop", "BALLOON_REQUEST", "once"),
            "a BALLOON_REQUEST is lost",
            _DM_ANSWER,
        ),
        (
            "balloon-request-twice",
            _balloon("duplicate", "BALLOON_REQUEST", "once"),
            "a BALLOON_REQUEST comes twice, the second while the first is served",
            "Dynamic Memory: one request at a time",
        ),
        (
            "balloon-request-huge",
            _balloon("change", "BALLOON_REQUEST", "to.pages=0xffffffff", "once"),
            "the host asks for 16 TiB",
            "Dynamic Memory: none, the guest gives what it can spare",
        ),
        (
            "balloon-request-zero",
            _balloon("change", "BALLOON_REQUEST", "to.pages=0", "once"),
            "the host asks for no page",
            "Dynamic Memory: a request names pages",
        ),
        (
            "unballoon-lost",
            _balloon("drop", "UNBALLOON_REQUEST", "once"),
            "an UNBALLOON_REQUEST is lost: the host believes the pages returned",
            _DM_ANSWER,
        ),
        (
            "unballoon-twice",
            _balloon("duplicate", "UNBALLOON_REQUEST", "once"),
            "the same pages are given back twice: the guest frees them twice",
            _RANGES,
        ),
        (
            "unballoon-beyond-ram",
            _balloon("change", "UNBALLOON_REQUEST", "to.range=0x100fffff000", "once"),
            "a page at 16 TiB is given back",
            _RANGES,
        ),
        (
            "unballoon-used-page",
            _balloon("change", "UNBALLOON_REQUEST", "to.range=0x10000001000", "once"),
            "a page at 16 MiB is given back, which the guest never released",
            _RANGES,
        ),
        (
            "unballoon-count-too-large",
            _balloon("change", "UNBALLOON_REQUEST", "to.range_count=2000", "once"),
            "the message announces 2000 ranges, more than it has",
            "Dynamic Memory: range_count counts the ranges in the message",
        ),
        (
            "unballoon-never-ends",
            _balloon("change", "UNBALLOON_REQUEST", "to.more=1"),
            "more messages are announced that never come, so the guest does not answer",
            "Dynamic Memory: the last UNBALLOON_REQUEST has more = 0",
        ),
        (
            "hot-add-lost",
            _balloon("drop", "HOT_ADD_REQUEST", "once"),
            "a HOT_ADD_REQUEST is lost",
            _DM_ANSWER,
        ),
        (
            "hot-add-twice",
            _balloon("duplicate", "HOT_ADD_REQUEST", "once"),
            "the same memory is added twice",
            _HOT_ADD,
        ),
        (
            "hot-add-over-ram",
            _balloon("change", "HOT_ADD_REQUEST", "to.range=0x80000000008000", "once"),
            "memory is added at 128 MiB, where the guest has RAM",
            _HOT_ADD,
        ),
        (
            "hot-add-region-missing",
            _balloon("truncate", "HOT_ADD_REQUEST", "length=32", "once"),
            "a HOT_ADD_REQUEST ends before its region, and its packet before its length",
            "Dynamic Memory: a message is as long as its header says",
        ),
        (
            "dm-message-unknown",
            _balloon("change", "BALLOON_REQUEST", "to.type=77", "once"),
            "a message of type 77 comes",
            "Dynamic Memory: message types are 0 to 12",
        ),
        (
            "dm-size-wrong",
            _balloon("change", "BALLOON_REQUEST", "to.size=65535", "once"),
            "a message's header says 65535 bytes",
            "Dynamic Memory: a message is as long as its header says",
        ),
        (
            "dm-info-unknown",
            _balloon("change", "INFO", "to.info_type=9"),
            "INFO is of an unknown kind",
            "Dynamic Memory: INFO is of type 0, the maximum size",
        ),
    ),
    "Balloon: the guest's answers": (
        (
            "balloon-response-lost",
            "packet.in:drop,channel=hv-balloon,message=BALLOON_RESPONSE,once",
            "the host does not see which pages the guest has released",
            _DM_ANSWER,
        ),
        (
            "balloon-response-twice",
            "packet.in:duplicate,channel=hv-balloon,message=BALLOON_RESPONSE,once",
            "the guest releases the same pages twice",
            "Dynamic Memory: each page is released once",
        ),
        (
            "balloon-response-beyond-ram",
            "packet.in:change,channel=hv-balloon,message=BALLOON_RESPONSE,to.range=0x100fffff000,once",
            "the guest releases a page that it does not have",
            "Dynamic Memory: a guest releases its own RAM",
        ),
        (
            "unballoon-response-lost",
            "packet.in:drop,channel=hv-balloon,message=UNBALLOON_RESPONSE,once",
            "the host does not see that the guest has its pages back",
            _DM_ANSWER,
        ),
        (
            "hot-add-response-lost",
            "packet.in:drop,channel=hv-balloon,message=HOT_ADD_RESPONSE,once",
            "the host does not see that the guest has added memory, and may ask again",
            _DM_ANSWER,
        ),
        (
            "hot-add-response-refused",
            "packet.in:change,channel=hv-balloon,message=HOT_ADD_RESPONSE,to.pages=0,to.result=0,once",
            "the guest has added memory and says that it has not",
            "Dynamic Memory: HOT_ADD_RESPONSE says what was added",
        ),
        (
            "status-reports-lost",
            "packet.in:drop,channel=hv-balloon,message=STATUS_REPORT",
            "the guest's pressure reports are lost",
            "Dynamic Memory: the guest reports once a second",
        ),
        (
            "status-report-absurd",
            "packet.in:change,channel=hv-balloon,message=STATUS_REPORT,to.committed_pages=0xffffffffffffffff",
            "the guest reports 2**64 - 1 committed pages, as Linux does once its counter has wrapped",
            "Dynamic Memory: reports are of the guest's memory",
        ),
    ),
    "Integration services": (
        (
            "heartbeats-lost",
            "packet.out:drop,channel=heartbeat,message=HEARTBEAT",
            "no heartbeat is sent",
            "integration services: a heartbeat each 2 s",
        ),
        (
            "heartbeat-answers-lost",
            "packet.in:drop,channel=heartbeat,message=HEARTBEAT",
            "the guest's answers to heartbeats are lost",
            "integration services: each heartbeat is answered with its number plus one",
        ),
        (
            "ic-negotiation-missing",
            "packet.out:drop,message=NEGOTIATE",
            "no integration service negotiates versions",
            "integration services: NEGOTIATE comes first",
        ),
        (
            "ic-negotiation-too-many-versions",
            "packet.out:change,message=NEGOTIATE,to.frameworks=65535,to.messages=65535",
            "NEGOTIATE announces more versions than it has",
            "integration services: the counts are those of the versions in the message",
        ),
        (
            "ic-size-wrong",
            "packet.out:change,channel=heartbeat,message=HEARTBEAT,to.size=65535",
            "a heartbeat's header says 65535 bytes",
            "integration services: the header has the body's size",
        ),
        (
            "ic-type-unknown",
            "packet.out:change,channel=heartbeat,message=HEARTBEAT,at=28,bytes=6300,once",
            "a message of type 99 comes on heartbeat's channel",
            "integration services: a channel carries its own type and NEGOTIATE",
        ),
        (
            "shutdown-twice",
            "packet.out:duplicate,channel=shutdown,message=SHUTDOWN",
            "a shutdown is requested twice",
            "integration services: one request a shutdown",
        ),
        (
            "time-far-off",
            "packet.out:change,channel=timesync,message=TIME_SYNC,to.host_time=0x7fffffffffffffff,to.body_flags=1",
            "the host's time is in the year 30828, with the flag to set the guest's clock",
            "integration services: host_time is the time of day since 1601",
        ),
        (
            "time-repeated",
            "packet.out:duplicate,channel=timesync,message=TIME_SYNC,times=20",
            "each time sample comes 21 times",
            "integration services: none on the rate",
        ),
    ),
}
