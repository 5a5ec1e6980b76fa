"""Named faults of VMBus: contact, offers, channels and GPADLs, signals, rings.

Source: Linux include/linux/hyperv.h; drivers/hv/{connection,channel_mgmt,channel,ring_buffer,vmbus_drv}.c.
"""

from __future__ import annotations

_OTHER_INSTANCE = "bytes=5a5a5a5a11112222333344444444aaaa"
_ONE_ANSWER = "VMBus: each INITIATE_CONTACT has one VERSION_RESPONSE"
_OPEN_ANSWER = "VMBus: each OPEN_CHANNEL has one OPEN_RESULT"
_GPADL_ANSWER = "VMBus: each GPADL_HEADER with its bodies has one GPADL_CREATED, with the handle of the guest"
_OFFER = "VMBus: an offer names a device of its own, by instance, relid and connection"
_RING = "VMBus rings: a packet's length covers header, payload and padding, a trailer of 8 bytes follows"
_INDEX = "VMBus rings: an index is a multiple of 8 below the size; each side stores its own"
_EVENT = "TLFS 11.11: an event flag is set when the ring was empty and its mask clear"

GROUPS: dict[str, tuple[tuple[str, str | tuple[str, ...], str, str], ...]] = {
    "Contact and offers": (
        (
            "contact-unanswered",
            "message.out:drop,type=VERSION_RESPONSE",
            "the guest's contact has no answer",
            _ONE_ANSWER,
        ),
        (
            "contact-answered-late",
            "message.out:delay,type=VERSION_RESPONSE,seconds=3",
            "the answer to the contact comes 3 s late",
            "VMBus: none, a host may be slow",
        ),
        (
            "contact-answered-twice",
            "message.out:duplicate,type=VERSION_RESPONSE,once",
            "the contact is answered twice: the second answer fits any later contact",
            _ONE_ANSWER,
        ),
        (
            "contact-refused",
            "message.out:change,type=VERSION_RESPONSE,to.supported=0",
            "every version that the guest asks for is refused",
            "VMBus: a host serves at least one version that a supported guest knows",
        ),
        (
            "contact-answer-truncated",
            "message.out:truncate,type=VERSION_RESPONSE,length=12,once",
            "the answer to the contact ends before its connection id",
            "VMBus: a message is never shorter than its structure",
        ),
        (
            "contact-wrong-connection",
            "message.out:change,type=VERSION_RESPONSE,to.connection_id=4095",
            "the answer names a message connection that does not exist (from 5.0 on)",
            "VMBus: VERSION_RESPONSE names the connection for all further messages",
        ),
        (
            "offers-never-end",
            "message.out:drop,type=ALL_OFFERS_DELIVERED",
            "ALL_OFFERS_DELIVERED does not come",
            "VMBus: REQUEST_OFFERS is answered by the offers and ALL_OFFERS_DELIVERED",
        ),
        (
            "offers-reordered",
            "message.out:reorder,type=OFFER,others=2,once",
            "the first offer comes after two more messages",
            "VMBus: none, offers have no order",
        ),
        (
            "balloon-not-offered",
            "message.out:drop,type=OFFER,channel=hv-balloon",
            "hv-balloon is not offered",
            _OFFER,
        ),
        (
            "offer-twice",
            "message.out:duplicate,type=OFFER,channel=hv-balloon,once",
            "hv-balloon is offered twice with the same instance and relid",
            _OFFER,
        ),
        (
            "offer-instance-twice",
            "message.out:insert,type=OFFER,channel=hv-balloon,to.relid=60,once",
            "hv-balloon's instance is offered again under another relid",
            _OFFER,
        ),
        (
            "offer-second-balloon",
            f"message.out:insert,type=OFFER,channel=hv-balloon,at=24,{_OTHER_INSTANCE},to.relid=60,once",
            "a second balloon device is offered, whose channel the host refuses to open",
            "Dynamic Memory: a guest has one balloon device",
        ),
        (
            "offer-relid-too-large",
            f"message.out:insert,type=OFFER,channel=hv-balloon,at=24,{_OTHER_INSTANCE},to.relid=2048,once",
            "a device is offered under relid 2048, which has no event flag",
            "VMBus: a relid is an event flag, 1 to 2047",
        ),
        (
            "offer-relid-zero",
            f"message.out:insert,type=OFFER,channel=hv-balloon,at=24,{_OTHER_INSTANCE},to.relid=0,once",
            "a device is offered under relid 0",
            "VMBus: a relid is an event flag, 1 to 2047",
        ),
        (
            "offer-unknown-device",
            "message.out:change,type=OFFER,channel=heartbeat,at=8,bytes=00112233445566778899aabbccddeeff",
            "heartbeat is offered with a device type that no driver is for",
            "VMBus: none, a guest ignores devices that it does not know",
        ),
        (
            "offer-monitored",
            "message.out:change,type=OFFER,channel=hv-balloon,to.monitor_allocated=1,to.monitor_id=3",
            "the offer has the guest signal by the monitor page, which the host does not poll",
            "VMBus: monitor_allocated promises that the host polls the monitor page",
        ),
        (
            "rescind-unknown",
            "message.out:insert,type=ALL_OFFERS_DELIVERED,bytes=0200000000000000d0070000,once",
            "relid 2000, which was never offered, is rescinded",
            "VMBus: RESCIND names an offer that the guest has",
        ),
        (
            "rescind-relid-too-large",
            "message.out:insert,type=ALL_OFFERS_DELIVERED,bytes=020000000000000000080000,once",
            "relid 2048 is rescinded",
            "VMBus: a relid is an event flag, 1 to 2047",
        ),
        (
            "rescind-twice",
            "message.out:duplicate,type=RESCIND",
            "each RESCIND comes twice",
            "VMBus: one RESCIND an offer",
        ),
        ("rescind-lost", "message.out:drop,type=RESCIND", "no RESCIND comes", "VMBus: a removed device is rescinded"),
        (
            "unload-unanswered",
            "message.out:drop,type=UNLOAD_RESPONSE",
            "UNLOAD (kexec, unloading hv_vmbus, a panic) has no answer",
            "VMBus: each UNLOAD has one UNLOAD_RESPONSE",
        ),
        (
            "message-unknown",
            "message.out:insert,type=ALL_OFFERS_DELIVERED,to.type=99,once",
            "a message of type 99 comes",
            "VMBus: message types are 1 to 24",
        ),
        (
            "message-too-short",
            "message.out:insert,type=ALL_OFFERS_DELIVERED,length=4,once",
            "a message of 4 bytes comes, half a header",
            "VMBus: a message begins with a header of 8 bytes",
        ),
        (
            "message-timer-type",
            "message.out:insert,type=ALL_OFFERS_DELIVERED,to.synic_type=0x80000010,once",
            "a timer's message lies in VMBus's slot of a guest without synthetic timers",
            "TLFS 12.3: timer messages come of timers that the guest has enabled",
        ),
        (
            "messages-to-other-vp",
            "message.out:change,type=OFFER,to.vp=1",
            "offers come on VP 1, not on the one that the contact named",
            "VMBus: messages come on the VP of INITIATE_CONTACT",
        ),
        (
            "messages-slow",
            "message.out:delay,seconds=0.2",
            "each message comes 0.2 s late",
            "VMBus: none, a host may be slow",
        ),
    ),
    "Channels and GPADLs": (
        (
            "gpadl-unanswered",
            "message.out:drop,type=GPADL_CREATED,channel=hv-balloon",
            "hv-balloon's GPADL is not confirmed",
            _GPADL_ANSWER,
        ),
        (
            "gpadl-refused",
            "message.out:change,type=GPADL_CREATED,channel=hv-balloon,to.status=0xc000000d",
            "hv-balloon's GPADL is refused",
            "VMBus: none, a host may refuse",
        ),
        (
            "gpadl-wrong-handle",
            "message.out:change,type=GPADL_CREATED,channel=hv-balloon,to.gpadl=57005",
            "the confirmation names a handle that the guest does not know",
            _GPADL_ANSWER,
        ),
        (
            "gpadl-answered-twice",
            "message.out:duplicate,type=GPADL_CREATED,channel=hv-balloon",
            "the confirmation comes twice",
            _GPADL_ANSWER,
        ),
        (
            "torndown-withheld",
            "message.out:drop,type=GPADL_TORNDOWN,channel=hv-balloon",
            "the teardown of hv-balloon's GPADL is not confirmed: who closes the channel waits with a lock held",
            "VMBus: each GPADL_TEARDOWN has one GPADL_TORNDOWN",
        ),
        (
            "torndown-late",
            "message.out:delay,type=GPADL_TORNDOWN,channel=hv-balloon,seconds=5",
            "the teardown is confirmed 5 s late",
            "VMBus: none, a host may be slow",
        ),
        (
            "torndown-twice",
            "message.out:duplicate,type=GPADL_TORNDOWN,channel=hv-balloon",
            "the teardown is confirmed twice",
            "VMBus: each GPADL_TEARDOWN has one GPADL_TORNDOWN",
        ),
        (
            "open-unanswered",
            "message.out:drop,type=OPEN_RESULT,channel=hv-balloon",
            "OPEN_CHANNEL of hv-balloon has no answer",
            _OPEN_ANSWER,
        ),
        (
            "open-refused",
            "message.out:change,type=OPEN_RESULT,channel=hv-balloon,to.status=0xc0000001",
            "OPEN_RESULT reports hv-balloon's channel as not open, while the host has opened it",
            "VMBus: OPEN_RESULT says whether the host has opened the channel",
        ),
        (
            "open-answered-twice",
            "message.out:duplicate,type=OPEN_RESULT,channel=hv-balloon",
            "the channel's opening is answered twice",
            _OPEN_ANSWER,
        ),
        (
            "open-wrong-id",
            "message.out:change,type=OPEN_RESULT,channel=hv-balloon,to.open_id=57005",
            "the answer names another opening",
            "VMBus: OPEN_RESULT repeats relid and open id",
        ),
        (
            "rescind-during-open",
            "message.out:insert,type=OPEN_RESULT,channel=hv-balloon,to.type=RESCIND,length=12,place=before,once",
            "hv-balloon is rescinded just before the answer to OPEN_CHANNEL",
            "VMBus: none, an offer may be rescinded at any time; but the host goes on with the channel",
        ),
        (
            "rescind-after-open",
            "message.out:insert,type=OPEN_RESULT,channel=hv-balloon,to.type=RESCIND,length=12,once",
            "hv-balloon is rescinded while its driver negotiates, and the host goes on with the channel",
            "VMBus: the host closes a channel that it rescinds",
        ),
        (
            "modify-unanswered",
            "message.out:drop,type=MODIFY_CHANNEL_RESPONSE",
            "MODIFYCHANNEL has no answer (from 5.3 on)",
            "VMBus 5.3: each MODIFYCHANNEL has one MODIFYCHANNEL_RESPONSE",
        ),
        (
            "close-lost",
            "message.in:drop,type=CLOSE,channel=hv-balloon",
            "the host does not see CLOSE_CHANNEL, and goes on with the rings",
            "VMBus: after CLOSE_CHANNEL the host leaves the rings alone",
        ),
        (
            "open-lost",
            "message.in:drop,type=OPEN,channel=hv-balloon",
            "the host does not see OPEN_CHANNEL",
            "TLFS 11.9: a message that was posted with success arrives",
        ),
    ),
    "Signals": (
        (
            "events-lost",
            "event.out:drop,channel=hv-balloon",
            "the guest is not signalled when hv-balloon has written",
            _EVENT,
        ),
        (
            "events-late",
            "event.out:delay,channel=hv-balloon,seconds=1",
            "the guest is signalled a second late",
            "VMBus: none, a host may be slow",
        ),
        (
            "event-wrong-channel",
            "event.out:change,channel=heartbeat,to.flag=2000",
            "heartbeat's signals set the flag of relid 2000, which was not offered",
            "VMBus: a channel's event flag is its relid",
        ),
        (
            "event-of-another-channel",
            "event.out:insert,channel=heartbeat,to.flag=1",
            "each signal of heartbeat also sets the flag of relid 1, whose ring has nothing new",
            _EVENT,
        ),
        (
            "event-flag-zero",
            "event.out:insert,channel=heartbeat,to.flag=0",
            "each signal of heartbeat also sets flag 0, of guests before VMBus 2.4",
            "VMBus: flag 0 means that the interrupt page tells the channels, before 2.4 only",
        ),
        (
            "guest-signals-lost",
            "event.in:drop,channel=hv-balloon",
            "the host does not see the guest's signals of hv-balloon",
            "TLFS 11.11: HvSignalEvent reaches the port",
        ),
        (
            "guest-signals-late",
            "event.in:delay,channel=hv-balloon,seconds=1",
            "the host sees the guest's signals a second late",
            "VMBus: none, a host may be slow",
        ),
        ("eom-lost", "eom.in:drop", "the host does not see the guest's EOMs", "TLFS 11.10: EOM delivers what waits"),
        ("eom-late", "eom.in:delay,seconds=0.5", "the host acts on EOMs 0.5 s late", "TLFS 11.10: none on time"),
        (
            "interrupt-lost",
            "interrupt.out:drop,after=20,once",
            "one interrupt of a SINT is lost, the 21st",
            "TLFS 11.6: a message or event raises the interrupt of its SINT",
        ),
        (
            "interrupts-late",
            "interrupt.out:delay,seconds=0.05",
            "each SINT is raised 50 ms late",
            "TLFS 11.6: none on time",
        ),
        (
            "interrupts-spurious",
            "interrupt.out:duplicate,times=20",
            "each SINT is raised 20 more times",
            "TLFS 11.6: a SINT is raised for something",
        ),
    ),
    "Rings": (
        (
            "packet-lost",
            "packet.out:drop,channel=hv-balloon,once",
            "one packet is not written",
            "VMBus: packets arrive",
        ),
        (
            "packet-trailer-missing",
            "packet.out:truncate,channel=hv-balloon,message=BALLOON_REQUEST,length=-8,once",
            "the write index ends before the packet's trailer, and the guest's reader passes it",
            _RING,
        ),
        (
            "packet-stray-bytes",
            "packet.out:insert,channel=hv-balloon,message=BALLOON_REQUEST,length=8,once",
            "8 stray bytes lie behind a packet",
            _RING,
        ),
        (
            "packet-too-long",
            "packet.out:insert,channel=hv-balloon,message=BALLOON_REQUEST,to.length8=629,length=5040,once",
            "a packet of 5032 bytes comes, more than the driver's buffer takes",
            "VMBus: a host's packet has 4096 bytes at most",
        ),
        (
            "packet-longer-than-ring",
            "packet.out:change,channel=hv-balloon,message=BALLOON_REQUEST,to.length8=65535,once",
            "a packet's header says 524 KiB, more than the ring has",
            _RING,
        ),
        (
            "packet-length-zero",
            "packet.out:change,channel=hv-balloon,message=BALLOON_REQUEST,to.length8=0,once",
            "a packet's header says that it has no bytes",
            _RING,
        ),
        (
            "packet-offset-beyond",
            "packet.out:change,channel=hv-balloon,message=BALLOON_REQUEST,to.offset8=512,once",
            "a packet's payload begins behind its end",
            _RING,
        ),
        (
            "packet-type-unknown",
            "packet.out:change,channel=hv-balloon,message=BALLOON_REQUEST,to.packet_type=99,once",
            "a packet of type 99 comes",
            "VMBus: packet types are 0 to 12",
        ),
        (
            "completion-unasked",
            "packet.out:insert,channel=hv-balloon,to.packet_type=11,to.transaction=0x1234,once",
            "a completion comes for which no packet asked",
            "VMBus: a completion answers a packet that requested one",
        ),
        (
            "write-index-beyond",
            "index.out:change,channel=hv-balloon,ring=host,word=write,to.value=0xfffffff8,after=2,once",
            "the host's write index points beyond the ring",
            _INDEX,
        ),
        (
            "write-index-odd",
            "index.out:change,channel=hv-balloon,ring=host,word=write,to.value=3,after=2,once",
            "the host's write index is no multiple of 8",
            _INDEX,
        ),
        (
            "guest-write-index-overwritten",
            "index.out:insert,channel=hv-balloon,ring=guest,word=read,to.word=write,to.value=0x100000,after=4,once",
            "the host overwrites the guest's own write index with 1 MiB",
            _INDEX,
        ),
        (
            "guest-read-index-overwritten",
            "index.out:insert,channel=hv-balloon,ring=host,word=write,to.word=read,to.value=8,after=2,once",
            "the host overwrites the guest's own read index",
            _INDEX,
        ),
        (
            "read-index-stuck",
            "index.out:drop,channel=hv-balloon,ring=guest,word=read",
            "the host does not say what it has read: the guest's ring fills up",
            "VMBus rings: the reader stores its index",
        ),
        (
            "guest-mask-set",
            "index.out:insert,channel=hv-balloon,ring=guest,word=read,to.word=mask,to.value=1",
            "the host leaves its interrupt mask set, so that the guest never signals",
            "VMBus rings: a reader that sets the mask reads on until it has cleared it",
        ),
    ),
}
