"""The bodies of KVP's requests and answers.

Source: Linux include/uapi/linux/hyperv.h, struct hv_kvp_msg and its parts; drivers/hv/hv_kvp.c for what it fills in.

    +0  operation u8 | pool u8 | 0 u16
    SET, GET    +4 value record
    DELETE      +4 key size u32, key
    ENUMERATE   +4 index u32, value record      answered with the record; past the end with a status

    value record: type u32 | key bytes u32 | value bytes u32 | key 512 | value 2048     UTF-16, sizes with the NUL
"""

from __future__ import annotations

from enum import IntEnum
from struct import pack, unpack_from

from pyvmm.errors import ConfigError, WireError

BODY_SIZE = 2580
"""Bytes of each body: those of the longest, ENUMERATE's, as in Linux."""
KEY_SIZE, VALUE_SIZE = 512, 2048
NO_MORE = 0x80070103
"""Status of ENUMERATE past the end. Linux's daemon answers other errors there, too."""


class Operation(IntEnum):
    """KVP_OP_*: what a KVP message is.

    Source: Linux include/uapi/linux/hyperv.h, enum hv_kvp_exchg_op.
    """

    GET = 0  # H asks for a value.
    SET = 1  # H sets a value.
    DELETE = 2  # H deletes a value.
    ENUMERATE = 3  # H asks for the value with a number.
    GET_IP_INFO = 4  # H asks for a network card's addresses.
    SET_IP_INFO = 5  # H sets a network card's addresses.


class Pool(IntEnum):
    """KVP_POOL_*: whose value it is.

    Source: Linux include/uapi/linux/hyperv.h, enum hv_kvp_exchg_pool.
    """

    EXTERNAL = 0  # the host's settings for the guest
    GUEST = 1  # what programs of the guest tell
    AUTO = 2  # the guest's name, system and addresses
    AUTO_EXTERNAL = 3  # facts about the host


class ValueType(IntEnum):
    """REG_*. A u64 is 8 in Linux, and 11 in Windows."""

    STRING = 1  # REG_SZ: UTF-16 with a zero at the end.
    U32 = 4
    U64 = 8
    U64_WINDOWS = 11  # REG_QWORD in Windows; Linux has no name for it.


def check_pair(key: str, value: str) -> None:
    """Raise ConfigError for a key or value that no message can hold."""
    for what, text, size in (("key", key, KEY_SIZE), ("value", value, VALUE_SIZE)):
        if "\0" in text or len(encode(text)) > size:
            raise ConfigError(f"a {what} of {len(text)} characters: at most {size // 2 - 1}, without zero bytes")
    if not key:
        raise ConfigError("an empty key: give KEY=VALUE")


def build_set(pool: Pool, key: str, value: str) -> bytes:
    """Return the body of SET."""
    return pack("<BBH", Operation.SET, pool, 0) + _record(key, value).ljust(BODY_SIZE - 4, b"\0")


def build_delete(pool: Pool, key: str) -> bytes:
    """Return the body of DELETE."""
    data = encode(key)
    return (pack("<BBHI", Operation.DELETE, pool, 0, len(data)) + data).ljust(BODY_SIZE, b"\0")


def build_enumerate(pool: Pool, index: int) -> bytes:
    """Return the body of ENUMERATE."""
    return pack("<BBHI", Operation.ENUMERATE, pool, 0, index).ljust(BODY_SIZE, b"\0")


def _record(key: str, value: str) -> bytes:
    key_data, value_data = encode(key), encode(value)
    sizes = pack("<III", ValueType.STRING, len(key_data), len(value_data))
    return sizes + key_data.ljust(KEY_SIZE, b"\0") + value_data


def parse_pair(body: bytes) -> tuple[str, str]:
    """Return key and value of an answer to ENUMERATE; numbers as decimal text. Raises WireError."""
    start = 20
    if len(body) < start + KEY_SIZE:
        raise WireError(f"KVP: an answer of {len(body)} bytes, needs {start + KEY_SIZE}")
    kind, key_size, value_size = unpack_from("<III", body, 8)
    value = body[start + KEY_SIZE :]
    if key_size > KEY_SIZE or value_size > min(VALUE_SIZE, len(value)):
        raise WireError(f"KVP: a key of {key_size} bytes, a value of {value_size}")
    key = decode(body[start : start + key_size])
    match kind:
        case ValueType.STRING:
            return key, decode(value[:value_size])
        case ValueType.U32 | ValueType.U64 | ValueType.U64_WINDOWS if value_size in (4, 8):
            return key, str(int.from_bytes(value[:value_size], "little"))
    raise WireError(f"KVP: a value of type {kind} and {value_size} bytes")


def encode(text: str) -> bytes:
    """Return text in UTF-16 with its zero."""
    return text.encode("utf-16-le", "replace") + b"\0\0"


def decode(data: bytes) -> str:
    """Decode UTF-16 up to its first zero; half characters become U+FFFD."""
    return data[: len(data) & ~1].decode("utf-16-le", "replace").partition("\0")[0]
