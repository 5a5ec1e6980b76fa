"""Linux's compressed kernel file (bzImage): a setup header, a decompressor, and the packed kernel.

Source: Linux Documentation/arch/x86/boot.rst, arch/x86/boot/header.S.

    0       0x1f1            (setup_sects+1)*512      + payload_offset
    | boot  | setup header   | protected-mode kernel: | packed vmlinux | size unpacked, u32 |
    | sector, real-mode code | the unpacker           |

The real-mode part is for BIOSes and stays unused; its header is copied into the zero page.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import unpack_from
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.files import FileBytes
    from pyvmm.wire import Buffer


HEADER_START = 0x1F1
HEADER_LIMIT = 0x290  # the zero page has other fields from here on
HEADER_MAGIC = b"HdrS"
SECTOR = 512
LOADED_64 = 1 << 0  # XLF_KERNEL_64
OLDEST_PROTOCOL = 0x20C  # Linux 3.8: the first with xloadflags

MAX_VMLINUX = 1 << 30  # bytes unpacked. Debian's have 60 MiB; a hostile file could otherwise fill the host's memory


@dataclass(slots=True)
class BzImage:
    """The fields of struct setup_header that a loader needs, and the parts' offsets in the file."""

    header: bytes  # as found, from HEADER_START
    version: int
    release: str
    xloadflags: int
    kernel_offset: int  # of the protected-mode kernel, in the file
    kernel_size: int
    pref_address: int
    init_size: int  # memory needed from pref_address on, while unpacking
    initrd_addr_max: int
    cmdline_size: int
    payload_offset: int  # in the file
    payload_length: int

    @property
    def entry64(self) -> bool:
        """Return whether the kernel has a 64-bit entry, 0x200 after the protected-mode kernel's start."""
        return bool(self.xloadflags & LOADED_64)


def is_bzimage(data: Buffer | FileBytes) -> bool:
    """Return whether the file has a setup header."""
    return bytes(data[0x202:0x206]) == HEADER_MAGIC


def parse(data: Buffer | FileBytes, name: str = "kernel") -> BzImage:
    """Read and check the setup header. Raises ConfigError if pyvmm cannot load this kernel, or it is truncated."""
    whole = len(data)
    view = bytes(data[:HEADER_LIMIT])
    if len(view) < 0x26C or not is_bzimage(view):
        raise ConfigError(f"{name}: not a bzImage: no setup header")
    sectors = view[HEADER_START] or 4
    (version,) = unpack_from("<H", view, 0x206)
    if version < OLDEST_PROTOCOL:
        raise ConfigError(
            f"{name}: boot protocol {version >> 8}.{version & 255} is too old; Linux 3.8 or later is needed"
        )
    (paragraphs,) = unpack_from("<I", view, 0x1F4)
    (initrd_addr_max,) = unpack_from("<I", view, 0x22C)
    (xloadflags, cmdline_size) = unpack_from("<HI", view, 0x236)
    payload_offset, payload_length = unpack_from("<II", view, 0x248)
    pref_address, init_size = unpack_from("<QI", view, 0x258)
    offset = (sectors + 1) * SECTOR
    size = paragraphs * 16
    # The last paragraph (16 bytes) may be truncated: the builder rounds up.
    if offset + size > whole + 15 or offset >= whole:
        raise ConfigError(
            f"{name}: truncated bzImage: {whole} bytes, its header announces {offset + size}; copy it again"
        )
    size = min(size, whole - offset)
    if payload_offset + payload_length > size or payload_length < 4:
        raise ConfigError(f"{name}: damaged bzImage: its payload lies outside the file")
    length = 2 + view[0x201]  # the target of the jump over the header is its end
    end = min(max(0x200 + length, 0x268), HEADER_LIMIT)
    return BzImage(
        header=bytes(view[HEADER_START:end]),
        version=version,
        release=_release(data, view),
        xloadflags=xloadflags,
        kernel_offset=offset,
        kernel_size=size,
        pref_address=pref_address,
        init_size=init_size,
        initrd_addr_max=initrd_addr_max,
        cmdline_size=cmdline_size,
        payload_offset=offset + payload_offset,
        payload_length=payload_length,
    )


def _release(data: Buffer | FileBytes, head: bytes) -> str:
    """Return the version string's first word, as in `uname -r`. Empty if the file has none."""
    (pointer,) = unpack_from("<H", head, 0x20E)
    if not pointer:
        return ""
    text = bytes(data[pointer + 0x200 : pointer + 0x200 + 128]).split(b"\0")[0]
    return text.decode("ascii", "replace").split(" ")[0]


def unpack_kernel(data: Buffer | FileBytes, name: str = "kernel") -> bytearray:
    """Unpack the vmlinux in a bzImage. Takes about a second; images.payload keeps the result."""
    from pyvmm.firmware.decompress import PackedError, decompress

    image = parse(data, name)
    payload = bytes(data[image.payload_offset : image.payload_offset + image.payload_length])
    try:
        vmlinux = decompress(payload, MAX_VMLINUX)
    except PackedError as error:
        raise ConfigError(f"{name}: cannot decompress its kernel: {error}; copy it again") from error
    if vmlinux[:4] != b"\x7fELF":
        raise ConfigError(f"{name}: its payload is not an ELF kernel")
    return vmlinux
