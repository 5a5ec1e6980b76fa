"""The integration services as the raw host speaks them: requests with any field of their headers.

The machine's own services go on; an answer to a request of the raw host is refused (and counted) by them and kept
here. `silence` keeps the guest's answers from a service.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack
from typing import TYPE_CHECKING

from pyvmm.devices.ic.protocol import (
    PIPE_FLAGS,
    PIPE_SIZE,
    HeartbeatBody,
    IcFlag,
    IcHeader,
    IcType,
    TimeFlag,
    TimeReferenceBody,
    Version,
)

if TYPE_CHECKING:
    from pyvmm.testbed.host.host import Host

TRANSACTION = 200
"""Transaction of the raw host's requests: the services' own begin at 1."""
EPOCH_100NS = 116_444_736_000_000_000
"""1970 in units of 100 ns since 1601."""


@dataclass(frozen=True, slots=True)
class IcAnswer:
    """A message of a guest's service."""

    header: IcHeader
    body: bytes

    @property
    def status(self) -> int:
        return self.header.status


class RawService:
    """One integration service: `heartbeat`, `shutdown` or `timesync`, or a raw device that plays one."""

    def __init__(self, host: Host, name: str, kind: int, version: Version) -> None:
        self._host = host
        self.device = host.device(name)
        self._kind = kind
        self._version = version

    def send(
        self,
        body: bytes,
        *,
        type: int | None = None,
        version: Version | None = None,
        framework: Version = (3, 0),
        size: int | None = None,
        pipe_size: int | None = None,
        pipe_flags: int = PIPE_FLAGS,
        status: int = 0,
        transaction: int = TRANSACTION,
        flags: int = IcFlag.TRANSACTION | IcFlag.REQUEST,
        pad: bytes = b"",
    ) -> None:
        """Send one message. `size` is the body's in the header, `pipe_size` the pipe header's; both right by default.
        `pad` follows uncounted."""
        header = IcHeader(
            pipe_flags,
            (IcHeader.SIZE - PIPE_SIZE + len(body) if pipe_size is None else pipe_size) & 0xFFFFFFFF,
            *framework,
            (self._kind if type is None else type) & 0xFFFF,
            *(self._version if version is None else version),
            (len(body) if size is None else size) & 0xFFFF,
            status & 0xFFFFFFFF,
            transaction & 0xFF,
            flags & 0xFF,
            0,
        )
        self.send_raw(header.build() + body + pad)

    def send_raw(self, message: bytes) -> None:
        """Send any bytes as the payload of an in-band packet."""
        channel = self._host.channel(self.device)
        if len(message) <= channel.max_payload:
            channel.send(message)
        else:
            rings = self._host.ring(self.device)
            rings.send(rings.packet(message))

    def negotiate(
        self,
        frameworks: list[Version],
        versions: list[Version],
        *,
        counts: tuple[int, int] | None = None,
        size: int | None = None,
    ) -> None:
        """Send a NEGOTIATE; `counts` are the header's numbers of versions, right by default."""
        numbers = counts or (len(frameworks), len(versions))
        body = pack("<HHI", numbers[0] & 0xFFFF, numbers[1] & 0xFFFF, 0)
        body += b"".join(pack("<HH", *version) for version in (*frameworks, *versions))
        self.send(body, type=IcType.NEGOTIATE, version=(0, 0), size=size)

    @property
    def answers(self) -> list[IcAnswer]:
        """The guest's messages of this service since the raw host was first used, oldest first."""
        packets = [each.payload for each in self._host.seams.packets if each.device is self.device]
        return [
            IcAnswer(header, data[IcHeader.SIZE : IcHeader.SIZE + header.size])
            for data in packets
            if len(data) >= IcHeader.SIZE
            for header in [IcHeader.parse(data)]
        ]

    def wait_for(self, transaction: int = TRANSACTION, timeout: float = 10.0) -> IcAnswer:
        """Return the guest's last answer with this transaction; wait for one. Raises TimedOut."""

        def found() -> list[IcAnswer]:
            return [each for each in self.answers if each.header.transaction == transaction]

        name = self.device.offer.name
        self._host.parts.until(found, timeout, f"answer of {name} to transaction {transaction}")
        return found()[-1]

    def silence(self) -> None:
        """From now on the machine's own service gets nothing from the guest."""
        self._host.seams.silent.add(self.device)

    def resume(self) -> None:
        """End `silence`."""
        self._host.seams.silent.discard(self.device)


class RawIc:
    """The integration services of a machine."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def heartbeat(self) -> RawService:
        """The heartbeat service."""
        return RawService(self._host, "heartbeat", IcType.HEARTBEAT, (3, 0))

    @property
    def shutdown(self) -> RawService:
        """The shutdown service."""
        return RawService(self._host, "shutdown", IcType.SHUTDOWN, (3, 2))

    @property
    def timesync(self) -> RawService:
        """The time synchronisation service."""
        return RawService(self._host, "timesync", IcType.TIME_SYNC, (4, 0))

    def beat(self, sequence: int, **how: object) -> None:
        """Send a heartbeat with any sequence number of 64 bits; `how` as in RawService.send."""
        self.heartbeat.send(HeartbeatBody(sequence).build(), **how)  # type: ignore[arg-type]

    def shut_down(
        self, flags: int, *, reason: int = 0, timeout: int = 0, text: bytes = bytes(2048), **how: object
    ) -> None:
        """Send a shutdown request: flags 0, 1 power off, 2, 3 restart, 4, 5 hibernate; others are unknown."""
        body = pack("<III", reason & 0xFFFFFFFF, timeout & 0xFFFFFFFF, flags & 0xFFFFFFFF) + text
        self.shutdown.send(body, **how)  # type: ignore[arg-type]

    def set_time(
        self, seconds: float, *, flags: int = TimeFlag.SYNC, reference: int | None = None, **how: object
    ) -> None:
        """Send a time of version 4 in seconds since 1970 (negative: before), and the reference counter, now's if not
        given; both are cut to 64 bits."""
        now = getattr(self._host.parts.partition, "reference_time", lambda: 0)() if reference is None else reference
        host_time = int(seconds * 10_000_000) + EPOCH_100NS
        body = TimeReferenceBody(host_time & (1 << 64) - 1, now & (1 << 64) - 1, flags & 0xFF, 0, 0).build()
        self.timesync.send(body, **how)  # type: ignore[arg-type]
