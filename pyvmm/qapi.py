"""The monitor's replies and events as types, declared once: the machine fills them, `query-qmp-schema` lists them.

Source: QEMU qapi/{control,machine,run-state,qdev,char,misc}.json for names and members, but for those after "Ours". A
member that may be absent is NotRequired. Names of types are QAPI's, for people who read the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar, cast, get_args

T = TypeVar("T")

RunState = Literal[
    "prelaunch", "running", "paused", "debug", "shutdown", "guest-panicked", "internal-error", "io-error"
]
BlockErrorAction = Literal["report", "stop"]
IoOperationType = Literal["read", "write"]
BlockDeviceIoStatus = Literal["ok", "failed", "nospace"]
BlockdevDetectZeroesOptions = Literal["off"]
ShutdownCause = Literal[
    "host-error",
    "host-qmp-quit",
    "host-qmp-system-reset",
    "host-signal",
    "guest-shutdown",
    "guest-reset",
    "guest-panic",
]  # fmt: skip
GuestPanicAction = Literal["pause", "poweroff", "run"]
GuestPanicInformationType = Literal["hyper-v"]
MemoryDeviceInfoKind = Literal["hv-balloon"]
SysEmuTarget = Literal["x86_64"]

PageOwner = Literal[
    "ram",
    "out",
    "undiscarded",
    "added",
    "unconfirmed",
    "unmapped",
    "ring",
    "gpadl",
    "synic-messages",
    "synic-events",
    "hypercall",
    "reference-tsc",
    "monitor-page",
]  # fmt: skip
"""Of RAM: the guest; the host, after the balloon; the same, but the host could not discard it. Of the hot-add window:
the guest; granted without an answer; no RAM. Then the pages that the guest shares with Hyper-V and the VMBus."""

CoverState = Literal["on", "suspended", "unloaded", "gone"]
"""on; the guest's kernel has left the VMBus and may come back; the guest unloads the module; the kernel is gone."""

ENUMS: dict[str, tuple[str, ...]] = {
    "RunState": get_args(RunState),
    "ShutdownCause": get_args(ShutdownCause),
    "GuestPanicAction": get_args(GuestPanicAction),
    "GuestPanicInformationType": get_args(GuestPanicInformationType),
    "MemoryDeviceInfoKind": get_args(MemoryDeviceInfoKind),
    "SysEmuTarget": get_args(SysEmuTarget),
    "BlockErrorAction": get_args(BlockErrorAction),
    "IoOperationType": get_args(IoOperationType),
    "BlockDeviceIoStatus": get_args(BlockDeviceIoStatus),
    "BlockdevDetectZeroesOptions": get_args(BlockdevDetectZeroesOptions),
    "CoverState": get_args(CoverState),
    "PageOwner": get_args(PageOwner),
    "RxState": ("normal", "none", "all"),
    "QMPCapability": (),
}
"""Enumerations by their QAPI names, which a Literal does not carry."""


class Empty(TypedDict):
    """No members: the reply of most commands that change something."""


class VersionTriple(TypedDict):
    major: int
    minor: int
    micro: int


class VersionInfo(TypedDict):
    qemu: VersionTriple
    package: str


class CommandInfo(TypedDict):
    name: str


class NameInfo(TypedDict):
    name: NotRequired[str]


class KvmInfo(TypedDict):
    enabled: bool
    present: bool


class TargetInfo(TypedDict):
    arch: SysEmuTarget


class StatusInfo(TypedDict):
    running: bool
    status: RunState


class BalloonInfo(TypedDict):
    actual: int


class HvBalloonInfo(TypedDict):
    committed: int
    available: int


class PageSpan(TypedDict):
    start: int
    size: int
    owner: PageOwner
    detail: NotRequired[str]


class PageTotal(TypedDict):
    owner: PageOwner
    size: int


PageMap = TypedDict(
    "PageMap",
    {
        "name": str,
        "spans": list[PageSpan],
        "special": list[PageSpan],
        "totals": list[PageTotal],
        "coarse": bool,
        "left-out": int,
    },
)


MemoryInfo = TypedDict("MemoryInfo", {"base-memory": int, "plugged-memory": NotRequired[int]})
HvBalloonDeviceInfo = TypedDict(
    "HvBalloonDeviceInfo",
    {"id": NotRequired[str], "memaddr": NotRequired[int], "max-size": int, "memdev": NotRequired[str]},
)


class MemoryDeviceInfo(TypedDict):
    type: MemoryDeviceInfoKind
    data: HvBalloonDeviceInfo


CpuInstanceProperties = TypedDict(
    "CpuInstanceProperties",
    {"socket-id": NotRequired[int], "core-id": NotRequired[int], "thread-id": NotRequired[int]},
)
CpuInfoFast = TypedDict(
    "CpuInfoFast",
    {
        "cpu-index": int,
        "qom-path": str,
        "thread-id": int,
        "props": NotRequired[CpuInstanceProperties],
        "target": SysEmuTarget,
    },
)
ChardevInfo = TypedDict("ChardevInfo", {"label": str, "filename": str, "frontend-open": bool})


class GuestPanicInformation(TypedDict):
    type: GuestPanicInformationType
    arg1: int
    arg2: int
    arg3: int
    arg4: int
    arg5: int


# Ours

BalloonReply = TypedDict("BalloonReply", {"target": int, "will-reach": int, "reason": str})


class ExecuteReply(TypedDict):
    status: int
    stdout: str
    stderr: str
    truncated: bool


class GuestFacts(TypedDict):
    """What a guest tells of itself through KVP."""

    name: str
    os: str
    addresses: list[str]


class KvpInfo(TypedDict):
    """Values by key. `refused`: statuses of values that the guest did not take, by key."""

    ready: bool
    auto: dict[str, str]
    guest: dict[str, str]
    external: dict[str, str]
    refused: dict[str, str]


class CardAddresses(TypedDict):
    """What the guest's daemon tells of a card. `addresses` have their prefix: 10.0.2.15/24."""

    card: str
    dhcp: bool
    addresses: list[str]
    gateways: list[str]
    dns: list[str]


class TraceEventInfo(TypedDict):
    name: str
    fields: list[str]
    on: bool


class TraceSubscription(TypedDict):
    events: dict[str, str]  # templates of the messages, by event
    now: float


class Autosize(TypedDict):
    target: int
    reason: str
    demand: int
    pressure: int
    limited: bool


class AutosizeInfo(TypedDict):
    enabled: bool
    state: str
    min: int
    max: int
    buffer: int
    last: Autosize | None


class PressureSample(TypedDict):
    time: float
    available: int
    committed: int
    actual: int
    out: int


class FaultId(TypedDict):
    """The reply to x-fault-add."""

    id: int


class FaultInfo(TypedDict):
    """One fault in the reply to x-query-faults: its number, text, and what its rules have done so far."""

    id: int
    rule: str
    hits: int
    seen: int
    failures: int


class PressureInfo(TypedDict):
    """The reply to x-query-pressure. Sizes in bytes."""

    current: int
    actual: int
    boot: int
    max: int
    target: int | None
    demand: int | None
    pressure: int | None
    autosize: AutosizeInfo | None
    samples: list[PressureSample]


VmbusChannelInfo = TypedDict(
    "VmbusChannelInfo",
    {
        "relid": int,
        "name": str,
        "type": str,
        "guid": str,
        "state": str,
        "sub-channel": NotRequired[int],  # its index; a primary channel has none
        "target-vp": NotRequired[int],
        "ring-in": NotRequired[int],
        "ring-out": NotRequired[int],
        "ring-in-used": NotRequired[int],
        "ring-out-used": NotRequired[int],
        "packets-in": NotRequired[int],
        "packets-out": NotRequired[int],
        "signals-in": NotRequired[int],
        "signals-out": NotRequired[int],
        "queued": NotRequired[int],
        "broken": NotRequired[str],
        "refused": NotRequired[int],
        "id": NotRequired[str],
        "path": NotRequired[str],
    },
)


NetInfo = TypedDict(
    "NetInfo",
    {
        "id": str,
        "mac": str,
        "kind": str,
        "place": str,  # a tap's interface, forwarded ports
        "link": str,  # up or down
        "up": bool,  # whether the guest's interface is
        "mtu": int,
        "channels": int,
        "received": int,  # frames, to the guest
        "received-bytes": int,
        "sent": int,
        "sent-bytes": int,
        "dropped": int,
        "errors": int,
    },
)
RxState = Literal["normal", "none", "all"]
RxFilterInfo = TypedDict(
    "RxFilterInfo",
    {
        "name": str,
        "promiscuous": bool,
        "multicast": RxState,
        "unicast": RxState,
        "vlan": RxState,
        "broadcast-allowed": bool,
        "multicast-overflow": bool,
        "unicast-overflow": bool,
        "main-mac": str,
        "vlan-table": list[int],
        "unicast-table": list[str],
        "multicast-table": list[str],
    },
)


AgentInfo = TypedDict("AgentInfo", {"ready": bool, "release": str, "sessions-only": bool})


class MemoryFigures(TypedDict):
    boot: int
    actual: int
    target: int | None
    resident: int


BalloonCapabilities = TypedDict("BalloonCapabilities", {"balloon": bool, "hot-add": bool, "alignment": int})
HotAddInfo = TypedDict(
    "HotAddInfo",
    {
        "address": int,
        "size": int,
        "added": int,
        "in-doubt": int,
        "lost": int,
        "offline": int,
        "removed": int,
        "refused": str | None,
    },
)


class RefusedPages(TypedDict):
    outside: int
    known: int
    repeated: int


BalloonState = TypedDict(
    "BalloonState",
    {
        "state": str,
        "version": str | None,
        "capabilities": BalloonCapabilities | None,
        "boot": int,
        "max": int,
        "hot-add": HotAddInfo | None,
        "actual": int,
        "target": int | None,
        "removed-guest": int,
        "removed-both": int,
        "available": int | None,
        "committed": int | None,
        "last-result": str | None,
        "refused-pages": RefusedPages,
    },
)


class PageReportingInfo(TypedDict):
    calls: int
    discarded: int
    refused: int
    failed: int


LoopInfo = TypedDict("LoopInfo", {"turns": int, "longest-turn": float, "stalls": int, "last-stall": str})
SandboxInfo = TypedDict(
    "SandboxInfo",
    {
        "mode": str,
        "landlock-abi": NotRequired[int],
        "seccomp": NotRequired[bool],
        "no-new-privileges": NotRequired[bool],
        "capabilities": NotRequired[str],
        "missing": NotRequired[list[str]],
    },
)


class UnhandledAccess(TypedDict):
    """Accesses of one kind ("port read", "msr write", "hypercall" ...) to one number that nothing handled."""

    kind: str
    number: int
    name: str  # what it is, where that is known
    count: int
    vcpu: int | None  # of the first, and its RIP
    rip: int | None


class UnhandledInfo(TypedDict):
    """The guest's unhandled accesses, the most frequent first. `more`: accesses that are in no entry."""

    accesses: list[UnhandledAccess]
    more: int


MachineInfo = TypedDict(
    "MachineInfo",
    {
        "name": str,
        "pid": int,
        "status": RunState,
        "engine": str,
        "cpus": int,
        "kernel": str,
        "uptime": float,
        "resets": int,
        "sandbox": SandboxInfo,
        "agent": AgentInfo,
        "memory": MemoryFigures,
        "balloon": BalloonState | None,
        "guest": GuestFacts | None,
        "page-reporting": PageReportingInfo | None,
        "autosize": AutosizeInfo | None,
        "vmbus": list[VmbusChannelInfo],
        "nets": list[NetInfo],
        "on-panic": str,
        "panics": int,
        "notices": list[str],
        "loop": LoopInfo,
        "unhandled": UnhandledInfo,
        "exits": dict[str, dict[str, int]],  # counts by kind of exit, by vCPU: vcpu0, vcpu1 ...
    },
)
"""The reply to x-status. Sizes in bytes, times in seconds."""


BlockCacheInfo = TypedDict("BlockCacheInfo", {"writeback": bool, "direct": bool, "no-flush": bool})
ImageInfo = TypedDict("ImageInfo", {"filename": str, "format": str, "virtual-size": int})
BlockDeviceInfo = TypedDict(
    "BlockDeviceInfo",
    {
        "file": str,
        "node-name": str,
        "ro": bool,
        "drv": str,
        "encrypted": bool,
        "backing_file_depth": int,
        "detect_zeroes": BlockdevDetectZeroesOptions,
        "image": ImageInfo,
        "cache": BlockCacheInfo,
        "bps": int,
        "bps_rd": int,
        "bps_wr": int,
        "iops": int,
        "iops_rd": int,
        "iops_wr": int,
        "write_threshold": int,
    },
)
BlockInfo = TypedDict(
    "BlockInfo",
    {
        "device": str,
        "qdev": str,
        "type": str,
        "removable": bool,
        "locked": bool,
        "io-status": BlockDeviceIoStatus,
        "inserted": BlockDeviceInfo,
        "x-lun": int,
        "x-serial": str,
        "x-werror": str,
        "x-rerror": str,
        "x-state": str,
    },
)
BlockDeviceStats = TypedDict(
    "BlockDeviceStats",
    {
        "rd_bytes": int,
        "wr_bytes": int,
        "rd_operations": int,
        "wr_operations": int,
        "flush_operations": int,
        "unmap_operations": int,
        "x-failed": int,
    },
)
BlockStats = TypedDict("BlockStats", {"device": str, "node-name": str, "stats": BlockDeviceStats})


# Events


ShutdownData = TypedDict("ShutdownData", {"guest": bool, "reason": ShutdownCause, "x-status": NotRequired[int]})
"""`x-status`: the exit status that the guest chose by the test devices' exit port."""


PanicData = TypedDict(
    "PanicData",
    {"action": GuestPanicAction, "info": NotRequired[GuestPanicInformation], "x-text": NotRequired[str]},
)


class CrashLoaded(TypedDict):
    action: GuestPanicAction
    info: NotRequired[GuestPanicInformation]


MemorySize = TypedDict("MemorySize", {"id": NotRequired[str], "size": int, "qom-path": str})


class DeviceDeletedData(TypedDict):
    device: NotRequired[str]
    path: str


BlockErrorData = TypedDict(
    "BlockErrorData",
    {
        "qom-path": str,
        "device": str,
        "node-name": str,
        "operation": IoOperationType,
        "action": BlockErrorAction,
        "nospace": bool,
        "reason": str,
    },
)


CoverInfo = TypedDict(
    "CoverInfo",
    {"module": str, "build-id": str, "state": CoverState, "blocks": int, "hits": str},
)
"""Coverage of one module; `pyvmm.cover_sites.parse_hits` reads `hits`."""


class Notice(TypedDict):
    text: str


class BalloonFinished(TypedDict):
    target: int
    actual: int
    reason: str
    final: bool


class AutosizeChange(TypedDict):
    enabled: bool


class TraceData(TypedDict):
    dropped: int
    events: list[Any]


class Console(TypedDict):
    begin: int
    end: int
    text: str


class Occurrence(NamedTuple):
    """One occurrence of an event: what the machine tells the monitor."""

    name: str
    data: dict[str, Any]


Emit = Callable[[Occurrence], None]


class Event(Generic[T]):
    """An event of the monitor and the type of its data; called with data it makes one occurrence.

    `at_most_every`: seconds between two of them where the guest decides how often they happen; the newest is kept
    meanwhile. `supersedes`: the event that is void, if it is still held back, once this one has happened.
    """

    def __init__(self, name: str, data: type[T], *, at_most_every: float = 0.0, supersedes: str = "") -> None:
        self.name, self.data = name, data
        self.at_most_every, self.supersedes = at_most_every, supersedes
        EVENTS[name] = self

    def __call__(self, data: T) -> Occurrence:
        return Occurrence(self.name, cast("dict[str, Any]", data))


EVENTS: dict[str, Event[Any]] = {}
"""All events, by name."""

SHUTDOWN = Event("SHUTDOWN", ShutdownData)
"""The machine has ended; `reason` says why."""
RESET = Event("RESET", ShutdownData)
"""The machine was reset, by the guest or the monitor."""
POWERDOWN = Event("POWERDOWN", Empty)
"""The monitor asked the guest to power off (`system_powerdown`)."""
STOP = Event("STOP", Empty)
"""The vCPUs are paused."""
RESUME = Event("RESUME", Empty)
"""The vCPUs run again."""
GUEST_PANICKED = Event("GUEST_PANICKED", PanicData)
"""The guest's kernel reported a panic, with its registers or text in the crash MSRs."""
GUEST_CRASHLOADED = Event("GUEST_CRASHLOADED", CrashLoaded)
"""The guest panicked and starts a crash kernel (kdump) that it had loaded."""
X_NOTICE = Event("X_NOTICE", Notice)
"""A line that `pyvmm run` shows to its user, such as why something does not work."""
BALLOON_CHANGE = Event("BALLOON_CHANGE", BalloonInfo, at_most_every=0.1)
"""The guest has another size now. QEMU sends it once a second at most, too coarse to draw progress with."""
HV_BALLOON_STATUS_REPORT = Event("HV_BALLOON_STATUS_REPORT", HvBalloonInfo, at_most_every=1.0)
"""The guest's driver reported committed and available memory."""
X_BALLOON_FINISHED = Event("X_BALLOON_FINISHED", BalloonFinished, at_most_every=0.1)
"""A change of size has ended, at the target or short of it; `reason` says why."""
X_BALLOON_TARGET = Event("X_BALLOON_TARGET", BalloonReply, supersedes="X_BALLOON_FINISHED")
"""The balloon has a new target; `will-reach` is what the guest can be expected to give."""
X_AUTOSIZE = Event("X_AUTOSIZE", Autosize)
"""Automatic sizing decided on a target, or did not change it."""
X_AUTOSIZE_CHANGE = Event("X_AUTOSIZE_CHANGE", AutosizeChange)
"""Automatic sizing was suspended or resumed."""
MEMORY_DEVICE_SIZE_CHANGE = Event("MEMORY_DEVICE_SIZE_CHANGE", MemorySize, at_most_every=1.0)
"""The amount of hot-added memory has changed."""
DEVICE_DELETED = Event("DEVICE_DELETED", DeviceDeletedData)
"""The guest has released a device after `device_del`."""
BLOCK_IO_ERROR = Event("BLOCK_IO_ERROR", BlockErrorData, at_most_every=1.0)
"""A disk's image could not be read or written; `action` is what the machine did."""
X_TRACE = Event("X_TRACE", TraceData)
"""Trace events, to the client that asked by `x-trace-subscribe`."""
X_CONSOLE = Event("X_CONSOLE", Console)
"""Console output, to the client that asked by `x-console-subscribe`."""
