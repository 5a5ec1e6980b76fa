"""The link of an integration component to its driver: framing, version negotiation, matching replies to requests.

Source: Linux drivers/hv/channel_mgmt.c, vmbus_prep_negotiate_resp(), for how the guest chooses: its own newest
version that is on the host's list, for the framework and for the service separately.

    host                                     guest
      | NEGOTIATE: frameworks, versions ----> |
      | <---- one of each, or none of either  |      none: nothing in common, the service stays silent
      | request (transaction n) ------------> |
      | <------------- response (n, status)   |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyvmm.devices.ic import events as trace
from pyvmm.devices.ic.protocol import (
    PIPE_FLAGS,
    PIPE_SIZE,
    IcFlag,
    IcHeader,
    IcType,
    Negotiate,
    Version,
    VersionPair,
)
from pyvmm.errors import GuestProtocolError, WireError
from pyvmm.vmbus.channel import Channel

FRAMEWORKS: tuple[Version, ...] = ((3, 0), (1, 0))


@dataclass(frozen=True, slots=True)
class Negotiated:
    """Result of a negotiation: versions are agreed, and requests may be sent."""

    framework: Version
    version: Version


@dataclass(frozen=True, slots=True)
class IcReply:
    """The guest's answer to a request; `status` 0 is success, others are Windows error codes."""

    type: int
    body: bytes
    status: int


class IcLink:
    """One component's link to its driver, as long as the channel is open."""

    def __init__(self, channel: Channel, versions: Sequence[Version]) -> None:
        self.channel = channel
        self.versions = tuple(versions)
        self.framework: Version = FRAMEWORKS[-1]
        self.version: Version | None = None
        self._transaction = 0
        self._outstanding: dict[int, int] = {}  # transaction to type

    @property
    def ready(self) -> bool:
        """Whether versions are agreed."""
        return self.version is not None

    @property
    def outstanding(self) -> int:
        """Return the number of requests without an answer yet."""
        return len(self._outstanding)

    def negotiate(self) -> None:
        """Offer all versions; called once, when the channel opens."""
        body = Negotiate(len(FRAMEWORKS), len(self.versions), 0).build()
        body += b"".join(VersionPair(*version).build() for version in (*FRAMEWORKS, *self.versions))
        self._send(IcType.NEGOTIATE, body, (0, 0))

    def request(self, kind: IcType, body: bytes) -> bool:
        """Send a request. Return False, sending nothing, if there are no versions yet or the ring is full."""
        reason = ""
        if self.version is None:
            reason = "no versions agreed"
        elif self.channel.room() < IcHeader.SIZE + len(body):
            reason = "ring full"
        if reason or self.version is None:
            if trace.not_sent.on:
                trace.not_sent(self.channel.name, int(kind), reason)
            return False
        self._send(kind, body, self.version)
        return True

    def _send(self, kind: IcType, body: bytes, version: Version) -> None:
        self._transaction = self._transaction % 255 + 1
        header = IcHeader(
            PIPE_FLAGS,
            IcHeader.SIZE - PIPE_SIZE + len(body),
            *self.framework,
            kind,
            *version,
            len(body),
            0,
            self._transaction,
            IcFlag.TRANSACTION | IcFlag.REQUEST,
            0,
        )
        self._outstanding[self._transaction] = kind
        if trace.requested.on:
            trace.requested(self.channel.name, int(kind), self._transaction, len(body))
        self.channel.send(header.build() + body)

    def read(self, payload: bytes) -> Negotiated | IcReply:
        """Parse one packet of the guest. Raises WireError or GuestProtocolError."""
        header = IcHeader.parse(payload)
        name = self.channel.name
        body = payload[IcHeader.SIZE : IcHeader.SIZE + header.size]
        if len(body) < header.size:
            raise WireError(f"{name}: body of {header.size} bytes announced, {len(body)} there")
        if not header.flags & IcFlag.RESPONSE:
            raise GuestProtocolError(f"{name}: not a response, flags {header.flags:#x}")
        if self._outstanding.get(header.transaction) != header.type:
            raise GuestProtocolError(
                f"{name}: no request outstanding of type {header.type}, transaction {header.transaction}"
            )
        del self._outstanding[header.transaction]
        if trace.replied.on:
            trace.replied(name, header.type, header.transaction, header.status, len(body))
        if header.type == IcType.NEGOTIATE:
            return self._agree(body)
        return IcReply(header.type, body, header.status)

    def _agree(self, body: bytes) -> Negotiated:
        counts = Negotiate.parse(body)
        if (counts.frameworks, counts.messages) != (1, 1):
            raise GuestProtocolError(
                f"{self.channel.name}: guest chose {counts.frameworks} frameworks and {counts.messages} versions"
            )
        pairs = [VersionPair.parse(body, Negotiate.SIZE + n * VersionPair.SIZE) for n in range(2)]
        framework, version = ((pair.major, pair.minor) for pair in pairs)
        if framework not in FRAMEWORKS or version not in self.versions:
            raise GuestProtocolError(f"{self.channel.name}: framework {framework}, version {version} not offered")
        self.framework, self.version = framework, version
        if trace.negotiated.on:
            trace.negotiated(self.channel.name, ".".join(map(str, framework)), ".".join(map(str, version)))
        return Negotiated(framework, version)
