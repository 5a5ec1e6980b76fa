"""Numbers and layouts of the Hypervisor Top-Level Functional Specification (TLFS) that pyvmm uses.

Source: Microsoft TLFS 6.0b, sections 2 (CPUID), 3 (hypercalls), 11 (SynIC), 12 (timers); names after Linux
include/asm-generic/hyperv-tlfs.h.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

from pyvmm.bits import Bits, bit, bits
from pyvmm.wire import Wire, u8, u16, u32, u64, wire


class Leaf(IntEnum):
    """HYPERV_CPUID_*: the CPUID leaves by which a guest finds the hypervisor.

    Source: TLFS, "Microsoft Hypervisor CPUID Leaves"; Linux include/hyperv/hvgdk_mini.h;
    arch/x86/kernel/cpu/mshyperv.c reads them.
    """

    VENDOR = 0x40000000
    """HYPERV_CPUID_VENDOR_AND_MAX_FUNCTIONS: EAX the last leaf, EBX, ECX and EDX the text "Microsoft Hv"."""
    INTERFACE = 0x40000001
    """HYPERV_CPUID_INTERFACE: EAX "Hv#1": the hypervisor keeps to the TLFS. TLFS, "Hypervisor Vendor-Neutral
    Interface Identification - 0x40000001"."""
    VERSION = 0x40000002
    """HYPERV_CPUID_VERSION: EAX build, EBX major and minor version. Linux only logs them. TLFS, "Hypervisor System
    Identity - 0x40000002"."""
    FEATURES = 0x40000003
    """HYPERV_CPUID_FEATURES: EAX `Access`, the MSRs that may be used; EBX `Privilege`, the hypercalls; EDX `Feature`.
    TLFS, "Hypervisor Feature Identification - 0x40000003"."""
    RECOMMENDATIONS = 0x40000004
    """HYPERV_CPUID_ENLIGHTMENT_INFO: EAX `Hint`, what the guest should do; EBX how often to spin for a lock before it
    reports that. TLFS, "Implementation Recommendations - 0x40000004"."""
    LIMITS = 0x40000005
    """HYPERV_CPUID_IMPLEMENT_LIMITS: EAX the number of virtual processors at most, EBX of logical ones. TLFS,
    "Hypervisor Implementation Limits - 0x40000005"."""


class Msr(IntEnum):
    """HV_X64_MSR_*: the synthetic MSRs.

    Source: TLFS, "Hypercall Interface", "SynIC Registers", "Timers"; Linux include/hyperv/hvgdk_mini.h, before 6.14
    arch/x86/include/asm/hyperv-tlfs.h.
    """

    GUEST_OS_ID = 0x40000000
    """What the guest's system is and its version; without it the hypercall page stays off. TLFS, "Reporting the Guest
    OS Identity"."""
    HYPERCALL = 0x40000001
    """Where the guest wants the page with the hypercall's instructions (`PageMsr`). TLFS, "Establishing the Hypercall
    Interface (x86/x64)"."""
    VP_INDEX = 0x40000002
    """The number of this virtual processor (VP) in hypercalls and interrupts' targets; read only. TLFS, "Virtual
    Processor Indices"."""
    RESET = 0x40000003  # A write of bit 0 resets the machine.
    VP_RUNTIME = 0x40000010
    """How long this VP has run, in 100 ns; read only. TLFS, "Virtual Processor Run Time Register"."""
    TIME_REF_COUNT = 0x40000020
    """The reference counter: 100 ns since the machine began; read only. TLFS, "Partition Reference Counter
    Register"."""
    REFERENCE_TSC = 0x40000021
    """Where the guest wants the page by which it computes the reference counter from the TSC, without an exit
    (`PageMsr`). TLFS, "Reference Time Stamp Counter (TSC) Page Register"."""
    TSC_FREQUENCY = 0x40000022  # Frequency of the TSC in Hz; read only, so that the guest need not measure it.
    APIC_FREQUENCY = 0x40000023  # Frequency of the local APIC's timer in Hz; read only.
    EOI = 0x40000070  # Ends an interrupt at the local APIC, in one write. TLFS, "HV_X64_MSR_EOI".
    ICR = 0x40000071  # The local APIC's interrupt command: sends an interrupt to another VP. TLFS, "HV_X64_MSR_ICR".
    TPR = 0x40000072  # The local APIC's task priority. TLFS, "HV_X64_MSR_TPR".
    VP_ASSIST_PAGE = 0x40000073
    """Where the guest wants this VP's assist page (`PageMsr`), which spares EOIs. TLFS, "Virtual Processor Assist
    Page"."""
    SCONTROL = 0x40000080
    """Bit 0 switches this VP's SynIC (synthetic interrupt controller) on. TLFS, "SCONTROL Register"."""
    SVERSION = 0x40000081  # The SynIC's version, 1; read only. TLFS, "SVERSION Register".
    SIEFP = 0x40000082
    """Where the guest wants this VP's page of event flags, 2048 for each SINT (`PageMsr`): a channel's flag is its
    relid. TLFS, "SIEFP Register"."""
    SIMP = 0x40000083
    """Where the guest wants this VP's page of messages, one slot of 256 bytes for each SINT (`PageMsr`). TLFS, "SIMP
    Register"."""
    EOM = 0x40000084
    """End of message: the guest has emptied a slot, and the host may fill it again. TLFS, "EOM Register"."""
    SINT0 = 0x40000090
    """A synthetic interrupt source: vector, mask and auto-EOI (`SintValue`). Linux uses SINT 2 for the VMBus. TLFS,
    "SINTx Registers"."""
    SINT1 = 0x40000091
    SINT2 = 0x40000092
    SINT3 = 0x40000093
    SINT4 = 0x40000094
    SINT5 = 0x40000095
    SINT6 = 0x40000096
    SINT7 = 0x40000097
    SINT8 = 0x40000098
    SINT9 = 0x40000099
    SINT10 = 0x4000009A
    SINT11 = 0x4000009B
    SINT12 = 0x4000009C
    SINT13 = 0x4000009D
    SINT14 = 0x4000009E
    SINT15 = 0x4000009F
    STIMER0_CONFIG = 0x400000B0
    """How a synthetic timer works, and what it raises (`StimerConfig`). TLFS, "Synthetic Timer Configuration
    Register"."""
    STIMER0_COUNT = 0x400000B1
    """When a synthetic timer expires, by the reference counter, or its period. TLFS, "Synthetic Timer Count
    Register"."""
    STIMER1_CONFIG = 0x400000B2
    STIMER1_COUNT = 0x400000B3
    STIMER2_CONFIG = 0x400000B4
    STIMER2_COUNT = 0x400000B5
    STIMER3_CONFIG = 0x400000B6
    STIMER3_COUNT = 0x400000B7
    CRASH_P0 = 0x40000100
    """A number of the guest's panic report: error code or registers, and in P3 and P4 the address and size of a text.
    TLFS, "Guest Crash Enlightenment Interface"."""
    CRASH_P1 = 0x40000101
    CRASH_P2 = 0x40000102
    CRASH_P3 = 0x40000103
    CRASH_P4 = 0x40000104
    CRASH_CTL = 0x40000105
    """A write reports the guest's panic (`CrashControl`); read, it tells what the host takes. TLFS, "Guest Crash
    Control Register"."""
    REENLIGHTENMENT_CONTROL = 0x40000106
    """Which interrupt tells the guest that it was moved to a host with another TSC frequency."""
    TSC_EMULATION_CONTROL = 0x40000107  # Whether the hypervisor should emulate the TSC's old frequency after a move.
    TSC_EMULATION_STATUS = 0x40000108  # Whether the TSC is emulated; the guest clears it when it has adapted.
    TSC_INVARIANT_CONTROL = 0x40000118
    """Bit 0: show the TSC as invariant in CPUID 0x80000007; Linux then prefers it as its clock."""


FIRST_MSR = 0x40000000
MSR_RANGE = 0x1100
"""How many MSRs from FIRST_MSR on are Hyper-V's, the nested SynIC's twins included."""


class PageMsr(Bits):
    """HYPERCALL, REFERENCE_TSC, SIMP, SIEFP, VP_ASSIST_PAGE: an enable bit and a guest frame number."""

    enable = bit(0)
    locked = bit(1)
    gfn = bits(12, 52)

    @property
    def gpa(self) -> int:
        return int(self) & ~0xFFF


class SintValue(Bits):
    """A SINT register. Reset: masked, everything else 0."""

    vector = bits(0, 8)
    masked = bit(16)
    auto_eoi = bit(17)
    polling = bit(18)


class StimerConfig(Bits):
    """A synthetic timer's CONFIG register."""

    enable = bit(0)
    periodic = bit(1)
    lazy = bit(2)
    auto_enable = bit(3)
    vector = bits(4, 8)
    direct = bit(12)
    sint = bits(16, 4)


SINT_RESET = 0x10000
SINT_COUNT = 16
SYNIC_VERSION = 1
MIN_SINT_VECTOR = 16


class Access(IntFlag):
    """CPUID 0x40000003 EAX: MSRs the partition may use."""

    VP_RUNTIME = 1 << 0
    TIME_REF_COUNT = 1 << 1
    SYNIC = 1 << 2
    SYNTIMER = 1 << 3
    APIC = 1 << 4
    HYPERCALL = 1 << 5
    VP_INDEX = 1 << 6
    RESET = 1 << 7
    REFERENCE_TSC = 1 << 9
    FREQUENCY = 1 << 11
    REENLIGHTENMENT = 1 << 13
    TSC_INVARIANT = 1 << 15


class Privilege(IntFlag):
    """CPUID 0x40000003 EBX: what the partition may call."""

    POST_MESSAGES = 1 << 4
    SIGNAL_EVENTS = 1 << 5
    EXTENDED_HYPERCALLS = 1 << 20


class Feature(IntFlag):
    """CPUID 0x40000003 EDX."""

    FREQUENCY_MSRS = 1 << 8
    CRASH_MSRS = 1 << 10
    STIMER_DIRECT = 1 << 19


class Hint(IntFlag):
    """CPUID 0x40000004 EAX: what the guest should do."""

    REMOTE_TLB_FLUSH = 1 << 2
    APIC_ACCESS = 1 << 3
    RELAXED_TIMING = 1 << 5
    AUTO_EOI_DEPRECATED = 1 << 9
    CLUSTER_IPI = 1 << 10
    EX_PROCESSOR_MASKS = 1 << 11


class HypercallStatus(IntEnum):
    """HV_STATUS_*: the low 16 bits of a hypercall's result.

    Source: TLFS, "Hypercall Status Codes"; Linux include/hyperv/hvgdk_mini.h, before 6.14
    include/asm-generic/hyperv-tlfs.h.
    """

    SUCCESS = 0  # Done.
    INVALID_HYPERCALL_CODE = 2  # The code is not served.
    INVALID_HYPERCALL_INPUT = 3
    """The control word is wrong: a reserved bit, a repetition or a header where the call has none."""
    INVALID_ALIGNMENT = 4  # The input or output is not aligned to 8 bytes, or crosses a page.
    INVALID_PARAMETER = 5  # A parameter has a value that it must not have.
    ACCESS_DENIED = 6  # The partition lacks the privilege.
    OPERATION_DENIED = 8  # Not in the present state.
    INSUFFICIENT_MEMORY = 0xB  # The host has no memory for it.
    INVALID_PORT_ID = 0x11  # The port is not there.
    INVALID_CONNECTION_ID = 0x12
    """The connection is not there. Linux tries a message again for a while: the host may not be ready."""
    INSUFFICIENT_BUFFERS = 0x13  # Too many messages wait already. Linux posts the message again.


class HypercallCode(IntEnum):
    """HVCALL_*: the two that VMBus needs, those of the enlightenment ipi, and HV_EXT_CALL_*.

    Source: TLFS, "Hypercall Interface"; Linux include/hyperv/hvgdk_mini.h and hvgdk_ext.h, before 6.14
    include/asm-generic/hyperv-tlfs.h.
    """

    SEND_IPI = 0x0B  # Raises a vector on the VPs of a mask (`SendIpi`). TLFS, "HvCallSendSyntheticClusterIpi".
    SEND_IPI_EX = 0x15
    """The same for VPs beyond 63, in banks of 64 (`SendIpiEx`). TLFS, "HvCallSendSyntheticClusterIpiEx"."""
    POST_MESSAGE = 0x5C
    """Posts a message of at most 240 bytes to a connection (`PostMessageInput`): all VMBus messages of the guest.
    TLFS, "HvCallPostMessage"."""
    SIGNAL_EVENT = 0x5D
    """Sets an event flag of a connection (`SignalEventInput`): there are packets in a channel's ring. TLFS,
    "HvCallSignalEvent"."""
    EXT_QUERY_CAPABILITIES = 0x8001
    """HV_EXT_CALL_QUERY_CAPABILITIES: which extended calls there are (`ExtendedCapability`). TLFS,
    "HvExtCallQueryCapabilities"."""
    EXT_MEMORY_HEAT_HINT = 0x8003
    """HV_EXT_CALL_MEMORY_HEAT_HINT: pages that the guest does not need now (free page reporting); the host discards
    them. Not in the TLFS."""


class ExtendedCapability(IntFlag):
    """HV_EXT_CAPABILITY_*: the answer to EXT_QUERY_CAPABILITIES."""

    MEMORY_COLD_DISCARD_HINT = 1 << 8


class HeatHint(IntEnum):
    """HV_EXTMEM_HEAT_HINT_*: kinds of hints."""

    COLD_DISCARD = 2  # HV_EXT_MEMORY_HEAT_HINT_TYPE_COLD_DISCARD: the pages' contents may be discarded.


class HypercallControl(Bits):
    """The control word of a hypercall (RCX in 64-bit mode)."""

    code = bits(0, 16)
    fast = bit(16)
    variable_header = bits(17, 10)
    reserved_low = bits(27, 4)
    nested = bit(31)
    rep_count = bits(32, 12)
    reserved_middle = bits(44, 4)
    rep_start = bits(48, 12)
    reserved_high = bits(60, 4)


class MessageType(IntEnum):
    """HVMSG_*: types of SynIC messages.

    Source: TLFS, "HV_MESSAGE_TYPE"; Linux include/hyperv/hvgdk_mini.h, before 6.14 include/asm-generic/hyperv-tlfs.h.
    """

    NONE = 0  # The slot is empty: the host may fill it.
    VMBUS = 1  # A VMBus message, by the type that the message itself has. Linux has no name for it.
    TIMER_EXPIRED = 0x80000010
    """A synthetic timer has expired (`TimerMessage`). TLFS, "Synthetic Timer Expiration Message"."""


MESSAGE_SIZE = 256
MAX_PAYLOAD = 240
EVENT_FLAGS_SIZE = 256
EVENT_FLAGS = 2048
MESSAGE_PENDING = 1
VMBUS_SINT = 2


class MessageFlag(IntFlag):
    """HV_MESSAGE_FLAG_*: PENDING asks the guest to write EOM, as another message waits."""

    PENDING = MESSAGE_PENDING


@wire
class MessageHeader(Wire):
    """struct hv_message_header: the first 16 bytes of a slot in the SIMP page."""

    type: Annotated[u32, MessageType]
    payload_size: u8
    flags: Annotated[u8, MessageFlag]
    reserved: u16
    sender: u64


@wire
class PostMessageInput(Wire):
    """struct hv_input_post_message, without its payload."""

    connection_id: u32
    reserved: u32
    message_type: Annotated[u32, MessageType]
    payload_size: u32


@wire
class SignalEventInput(Wire):
    """struct hv_input_signal_event."""

    connection_id: u32
    flag_number: u16
    reserved: u16


@wire
class TimerMessage(Wire):
    """struct hv_timer_message_payload: times in 100 ns of the reference counter."""

    index: u32
    reserved: u32
    expiration: u64
    delivery: u64


@wire
class SendIpi(Wire):
    """struct hv_send_ipi: bit n of `mask` is VP n."""

    vector: u32
    reserved: u32
    mask: u64


@wire
class SendIpiEx(Wire):
    """struct hv_send_ipi_ex, without the banks."""

    vector: u32
    reserved: u32
    format: u64
    valid_banks: u64


@wire
class ReferenceTscPage(Wire):
    """struct ms_hyperv_tsc_page: time in 100 ns = ((tsc * scale) >> 64) + offset; sequence 0 means invalid."""

    sequence: u32
    reserved: u32
    scale: u64
    offset: u64


class CrashControl(Bits):
    """CRASH_CTL."""

    message = bit(62)
    notify = bit(63)
