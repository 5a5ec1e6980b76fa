"""Decoding: bytes that host and guest exchange, as rows of fields with names, values and meanings.

    message(data)                      a VMBus message, of either side
    packet(data, "hv-balloon")         a ring's packet: header, descriptor, the device's payload
    post_message(data)                 the input of HvPostMessage, with the message in it
    synic_message(data)                a slot of a SynIC message page
    hypercall(control)                 the control word of a hypercall
    structure(cls, data)               any `@wire` structure

Each but `structure` returns a `Decoded`: a name (`OFFER`), and parts, each one structure with its rows. No bytes
raise an exception: a structure that is cut off ends in a row that says so, and an unknown type gives its bytes.
Names and offsets are those of the declarations (`pyvmm.wire.layout`), and a value's meaning is that of the class
that a field's annotation names: an enumeration, flags, or named bits. `pyvmm.decode.text` makes lines of it for a
terminal.

`pyvmm step` and `pyvmm explain` show them, fault rules address the same fields by name (`pyvmm.faults.layouts`).
"""

from pyvmm.decode.fields import Decoded, Part, Row, meaning, structure
from pyvmm.decode.items import hypercall, message, packet, post_message, synic_message

__all__ = [
    "Decoded",
    "Part",
    "Row",
    "hypercall",
    "meaning",
    "message",
    "packet",
    "post_message",
    "structure",
    "synic_message",
]
