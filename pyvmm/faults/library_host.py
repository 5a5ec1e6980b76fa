"""Named faults below VMBus: hypercalls, clock, memory, and KVM itself.

Source: TLFS sections 3, 11 and 12; Linux arch/x86/hyperv/, drivers/hv/hv.c; Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

_HINT = "TLFS: HvExtCallMemoryHeatHint takes pages of the guest's RAM"
_COUNTER = "TLFS 12.4: the reference counter only grows"

GROUPS: dict[str, tuple[tuple[str, str | tuple[str, ...], str, str], ...]] = {
    "Hypercalls": (
        (
            "post-message-busy",
            "hypercall.out:change,call=POST_MESSAGE,to.status=0x13,count=5",
            "the host says five times that it has no buffer for a message that it has taken",
            "TLFS 11.9: INSUFFICIENT_BUFFERS means that the message was not sent",
        ),
        (
            "post-message-lost",
            "hypercall.in:drop,call=POST_MESSAGE,once",
            "a message of the guest is lost, with status 0",
            "TLFS 11.9: a message that was posted with success arrives",
        ),
        (
            "post-message-refused",
            "hypercall.out:change,call=POST_MESSAGE,to.status=0x12",
            "no message connection exists, it says",
            "TLFS 11.9: INVALID_CONNECTION_ID means that the message was not sent",
        ),
        (
            "signal-refused",
            "hypercall.out:change,call=SIGNAL_EVENT,to.status=0x12",
            "no channel's connection exists, it says (user engine: with the kernel's KVM answers)",
            "TLFS 11.11: INVALID_CONNECTION_ID means that nothing was signalled",
        ),
        (
            "reporting-refused",
            "hypercall.out:change,call=EXT_MEMORY_HEAT_HINT,to.status=6",
            "every report of free pages is denied",
            _HINT,
        ),
        (
            "reporting-no-progress",
            "hypercall.out:change,call=EXT_MEMORY_HEAT_HINT,to.status=0",
            "reports of free pages succeed with no repetition done, so that the guest tries again",
            "TLFS 3.8: a repeated call that succeeds has done at least one repetition",
        ),
    ),
    "Clock": (
        (
            "reference-time-still",
            "clock.out:change,what=msr,to.time=1000",
            "the reference counter stands still (user engine)",
            _COUNTER,
        ),
        (
            "tsc-page-invalid",
            "clock.out:change,what=page,to.sequence=0",
            "the reference TSC page says that it is not to be used (user engine)",
            "TLFS 12.6: none, a guest then reads the counter",
        ),
        (
            "tsc-page-missing",
            "clock.out:drop,what=page",
            "the reference TSC page is not written (user engine)",
            "TLFS 12.6: the hypervisor fills the page that the guest enables",
        ),
        (
            "tsc-page-twice-as-fast",
            "clock.out:change,what=page,to.scale=0xffffffffffffff",
            "the guest's clock runs at another rate than the counter (user engine)",
            "TLFS 12.6: page and counter tell the same time",
        ),
        (
            "sample-time-zero",
            "clock.out:change,what=host,to.time=0",
            "time synchronisation sends reference time 0 with each sample",
            _COUNTER,
        ),
    ),
    "Memory": (
        (
            "discards-lost",
            "discard.out:drop",
            "released pages stay with the guest's process",
            "none that the guest sees: contents of released pages are undefined",
        ),
        (
            "discards-late",
            "discard.out:delay,by=balloon,seconds=2",
            "released pages are discarded 2 s late: whoever has got them back by then loses them",
            "Dynamic Memory: pages that were given back keep what the guest writes",
        ),
        (
            "reports-discarded-late",
            "discard.out:delay,by=reporting,seconds=1",
            "reported pages are discarded a second late, when the guest may use them",
            _HINT,
        ),
        (
            "discards-fail",
            "discard.out:fail,by=reporting,errno=ENOMEM",
            "the host cannot discard pages that the guest reports",
            "none: a report is a hint",
        ),
        (
            "hot-added-memory-missing",
            "memslot.out:drop,slot=16",
            "the first hot-added memory is not there: it reads as ones, writes are lost",
            "Dynamic Memory: HOT_ADD_REQUEST names memory that is there",
        ),
        (
            "hot-added-memory-readonly",
            "memslot.out:change,slot=16,to.readonly=1",
            "the first hot-added memory cannot be written",
            "Dynamic Memory: HOT_ADD_REQUEST names RAM",
        ),
        (
            "memory-slot-refused",
            "memslot.out:fail,slot=16,errno=ENOMEM",
            "KVM has no memory for the slot of hot-added memory",
            "none: the host cannot grow the guest",
        ),
    ),
    "KVM": (
        (
            "vcpu-refused",
            "ioctl.out:fail,op=CREATE_VCPU,errno=ENOMEM",
            "KVM creates no vCPU",
            "none: the machine does not start",
        ),
        (
            "msi-lost",
            "ioctl.out:drop,op=SIGNAL_MSI,after=40,once",
            "one interrupt that the user engine raises is lost, the 41st",
            "TLFS 11.6: a message or event raises the interrupt of its SINT",
        ),
        (
            "lines-lost",
            "ioctl.out:drop,op=IRQ_LINE,after=100,count=3",
            "three changes of an interrupt line of the PC's devices are lost",
            "PC: an interrupt line follows its device",
        ),
    ),
}
