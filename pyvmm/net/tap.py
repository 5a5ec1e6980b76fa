"""A tap device of the host: each frame is one read or write, with a virtio header in front.

Source: Linux Documentation/networking/tuntap.rst; include/uapi/linux/if_tun.h and virtio_net.h.

The kernel finishes checksums and cuts large sends of the frames that it gets (IFF_VNET_HDR). Frames that it gives may
lack their checksum, which is completed here; it cuts large ones itself, as TUN_F_TSO is not set.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from pyvmm.errors import ConfigError, HostError, WireError
from pyvmm.net.checksum import complete_checksum
from pyvmm.net.link import FRAME_LIMIT, FdLink, Frames, Poller
from pyvmm.wire import Buffer

DEVICE = "/dev/net/tun"
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_TUN_F_CSUM = 1
_HEADER = struct.Struct("<BBHHHH")  # flags, gso type, header bytes, gso size, checksum start, its offset
_NEEDS_CHECKSUM = 1
FRAMES_LIMIT = 32
"""Frames read at once."""
NAME_LIMIT = 15
"""Characters of an interface's name (IFNAMSIZ)."""


def open_tap(name: str) -> int:
    """Open the tap device `name`, which is made if it does not exist. Raises ConfigError if that is refused."""
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"--net tap: cannot open {DEVICE}: {error.strerror}; load the module tun") from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        fcntl.ioctl(fd, TUNSETOFFLOAD, _TUN_F_CSUM)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EPERM:
            why = "not permitted; make it for yourself: `sudo ip tuntap add dev NAME mode tap user $USER`"
            raise ConfigError(f"--net tap={name}: {why.replace('NAME', name)}") from error
        if error.errno == errno.EBUSY:
            raise ConfigError(f"--net tap={name}: the device is in use; give each machine its own") from error
        if error.errno == errno.EINVAL:
            raise ConfigError(f"--net tap={name}: that interface is no tap device; name another") from error
        raise HostError(f"--net tap={name}: {error.strerror}") from error
    return fd


class TapLink(FdLink):
    """The link over the descriptor of a tap device, which it owns."""

    vnet = True
    checked = False
    kind = "tap"

    def __init__(self, loop: Poller, fd: int, name: str) -> None:
        super().__init__(loop, fd)
        self.place = name
        self._size = _HEADER.size + FRAME_LIMIT
        self._buffer = memoryview(bytearray(FRAMES_LIMIT * self._size))
        self.failed_writes = 0

    def read(self) -> Frames:
        frames = Frames()
        for number in range(FRAMES_LIMIT):
            space = self._buffer[number * self._size : (number + 1) * self._size]
            try:
                count = os.readv(self.fd, [space])
            except BlockingIOError:
                break
            except OSError as error:
                self.ended(error.strerror or str(error))
                break
            frame = space[_HEADER.size : count]
            flags, _, _, _, start, field = _HEADER.unpack_from(space)
            if flags & _NEEDS_CHECKSUM:
                try:
                    complete_checksum(frame, start, field)
                except WireError:
                    continue
            if len(frame):
                frames.append(frame)
        return frames

    def write(self, frames: Sequence[list[Buffer]]) -> int:
        for number, frame in enumerate(frames):
            try:
                os.writev(self.fd, frame)
            except BlockingIOError:
                self.await_room()
                return number
            except OSError:  # the interface is down, or the frame is none that the kernel takes
                self.failed_writes += 1
        return len(frames)

    def close_fd(self) -> None:
        os.close(self.fd)
