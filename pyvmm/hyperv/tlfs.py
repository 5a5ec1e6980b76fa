"""Numbers and layouts of the Hypervisor Top-Level Functional Specification (TLFS) that pyvmm uses.

Source: Microsoft TLFS 6.0b, sections 2 (CPUID), 3 (hypercalls), 11 (SynIC), 12 (timers); names after Linux
include/asm-generic/hyperv-tlfs.h.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

from pyvmm.bits import Bits, bit, bits
from pyvmm.wire import Wire, u8, u16, u32, u64, wire


class Msr(IntEnum):
    """Synthetic MSRs (HV_X64_MSR_*)."""

    GUEST_OS_ID = 0x40000000
    HYPERCALL = 0x40000001
    VP_INDEX = 0x40000002
    RESET = 0x40000003
    VP_RUNTIME = 0x40000010
    TIME_REF_COUNT = 0x40000020
    REFERENCE_TSC = 0x40000021
    TSC_FREQUENCY = 0x40000022
    APIC_FREQUENCY = 0x40000023
    EOI = 0x40000070
    ICR = 0x40000071
    TPR = 0x40000072
    VP_ASSIST_PAGE = 0x40000073
    SCONTROL = 0x40000080
    SVERSION = 0x40000081
    SIEFP = 0x40000082
    SIMP = 0x40000083
    EOM = 0x40000084
    SINT0 = 0x40000090
    SINT15 = 0x4000009F
    STIMER0_CONFIG = 0x400000B0
    STIMER0_COUNT = 0x400000B1
    STIMER3_COUNT = 0x400000B7
    CRASH_P0 = 0x40000100
    CRASH_P4 = 0x40000104
    CRASH_CTL = 0x40000105
    REENLIGHTENMENT_CONTROL = 0x40000106
    TSC_EMULATION_CONTROL = 0x40000107
    TSC_EMULATION_STATUS = 0x40000108
    TSC_INVARIANT_CONTROL = 0x40000118


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
    """HV_STATUS_*."""

    SUCCESS = 0
    INVALID_HYPERCALL_CODE = 2
    INVALID_HYPERCALL_INPUT = 3
    INVALID_ALIGNMENT = 4
    INVALID_PARAMETER = 5
    ACCESS_DENIED = 6
    OPERATION_DENIED = 8
    INSUFFICIENT_MEMORY = 0xB
    INVALID_PORT_ID = 0x11
    INVALID_CONNECTION_ID = 0x12
    INSUFFICIENT_BUFFERS = 0x13


class HypercallCode(IntEnum):
    """HVCALL_*: the two that VMBus needs, those of the enlightenment ipi, and HV_EXT_CALL_*."""

    SEND_IPI = 0x0B
    SEND_IPI_EX = 0x15
    POST_MESSAGE = 0x5C
    SIGNAL_EVENT = 0x5D
    EXT_QUERY_CAPABILITIES = 0x8001
    EXT_MEMORY_HEAT_HINT = 0x8003


class ExtendedCapability(IntFlag):
    """HV_EXT_CAPABILITY_*: the answer to EXT_QUERY_CAPABILITIES."""

    MEMORY_COLD_DISCARD_HINT = 1 << 8


class HeatHint(IntEnum):
    """HV_EXTMEM_HEAT_HINT_*: kinds of hints."""

    COLD_DISCARD = 2


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
    """HVMSG_*: types of SynIC messages."""

    NONE = 0
    VMBUS = 1
    TIMER_EXPIRED = 0x80000010


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
