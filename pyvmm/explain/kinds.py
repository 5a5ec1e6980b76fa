"""The kinds of things that can be explained, with examples. `catalogue` makes their entries."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """A sort of things that can be explained."""

    name: str
    about: str
    examples: tuple[str, ...]


KINDS = {
    name: Kind(name, about, examples)
    for name, about, examples in (
        ("msr", "Hyper-V's MSRs; NAME=VALUE decodes a value", ("0x40000083", "SINT2=0x100f3")),
        ("cpuid", "CPUID leaves: the hypervisor's, and those of the CPU that are changed", ("0x40000003",)),
        ("hypercall", "hypercalls by code", ("0x5c", "HvCallSignalEvent")),
        ("message", "VMBus messages by type", ("15", "CHANNELMSG_GPADL_HEADER")),
        ("synic", "types of SynIC messages", ("0x80000010",)),
        ("version", "versions of the VMBus", ("0x50003",)),
        ("status", "statuses of hypercalls, VMBus, devices", ("0xc000000d", "HV_STATUS_INVALID_ALIGNMENT")),
        ("exit", "reasons for which KVM_RUN returns", ("KVM_EXIT_MMIO", "27")),
        ("packet", "types of packets in a channel's rings", ("VM_PKT_COMP",)),
        ("balloon", "messages of hv-balloon", ("DM_UNBALLOON_REQUEST",)),
        ("service", "messages of heartbeat, shutdown, timesync, kvp, vss, fcopy", ("ICMSGTYPE_HEARTBEAT",)),
        ("network", "messages and objects of netvsc", ("RNDIS_MSG_QUERY", "107")),
        ("scsi", "packets of storvsc", ("EXECUTE_SRB",)),
        ("echo", "commands of the echo device", ("SINK",)),
        ("ioctl", "requests to /dev/kvm", ("KVM_RUN", "0xae80")),
        ("capability", "KVM's capabilities", ("KVM_CAP_HYPERV_SYNIC2",)),
        ("kvm", "other numbers of KVM", ("KVM_MP_STATE_HALTED",)),
        ("fuse", "requests of a shared folder", ("FUSE_LOOKUP",)),
        ("e820", "types of memory in the e820 map", ("NVS",)),
        ("struct", "structures, with offsets", ("struct dm_header", "IcHeader")),
        ("register", "values made of bits; NAME=VALUE decodes one", ("HypercallControl=0x1005c",)),
        ("state", "states of the connection, channels, balloon", ("Serving", "BalloonWaiting")),
        ("port", "I/O ports", ("0x3f8",)),
        ("address", "fixed guest physical addresses", ("0xfec00000",)),
        ("fault", "named faults of --fault", ("rescind-twice",)),
        ("trace", "trace events", ("vmbus_open_channel",)),
        ("device", "VMBus devices and their GUIDs", ("hv-balloon", "525074dc-8985-46e2-8057-a307dc18a502")),
        ("guid", "other classes of devices, ports of Hyper-V sockets", ("00000400-facb-11e6-bd58-64006a7986d3",)),
        ("qmp-command", "commands of the monitor", ("query-balloon",)),
        ("qmp-event", "events of the monitor", ("BALLOON_CHANGE",)),
        ("exit-status", "what pyvmm returns to its shell", ("124",)),
    )
}
