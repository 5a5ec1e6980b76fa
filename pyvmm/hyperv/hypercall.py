"""Hypercalls: the control word, the hypercall page, and the two calls that VMBus needs.

Source: TLFS section 3 and 11.10; Linux hv_post_message() and vmbus_set_event(). Calls above 0x8000: `extended`; IPIs:
`ipi`.

    call [hypercall page]   RCX control word, RDX and R8 input and output gpa (or, fast, 16 bytes of input)
                            RAX status, and in bits 32..43 the repetitions done
                            In 32-bit mode EDX:EAX, EBX:ECX and EDI:ESI, the result in EDX:EAX
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm import address_map
from pyvmm.contain import contain
from pyvmm.errors import GuestError
from pyvmm.hyperv.extended import FIRST_EXTENDED, ExtendedCalls
from pyvmm.hyperv.ipi import IpiCalls
from pyvmm.hyperv.partition import MessageListener
from pyvmm.hyperv.tlfs import (
    MAX_PAYLOAD,
    HypercallCode,
    HypercallControl,
    HypercallStatus,
    PostMessageInput,
    SignalEventInput,
)
from pyvmm.memory import PAGE_SIZE, GuestMemory
from pyvmm.tap import Item, Tap

if TYPE_CHECKING:
    from pyvmm.kvm.structs import Regs, Sregs

CONNECTION_MASK = 0xFFFFFF
"""The bits of a connection id that name the connection; KVM's KVM_HYPERV_EVENTFD has the same limit."""

HYPERCALL_PORT = address_map.HYPERCALL.start
"""The I/O port of the user engine's hypercall page. No PC device uses it."""

LISTENER_WAIT = 30.0
"""Seconds a vCPU may wait for VMBus at its first HvPostMessage. In practice VMBus is ready long before."""

_WITH_HEADER = (HypercallCode.SEND_IPI, HypercallCode.SEND_IPI_EX)
"""Calls whose handler checks the size of the variable header itself."""

WIDTH_64, WIDTH_32 = 1, 4
"""Bytes that the page writes to the port, which tell the calling convention without a look at the vCPU's segments."""

_ENDBR64, _ENDBR32 = bytes.fromhex("f3 0f 1e fa"), bytes.fromhex("f3 0f 1e fb")
_OUT_AL, _OUT_EAX = 0xE6, 0xE7
_RET = 0xC3
_TEST_CX_CX, _TEST_AX_AX = bytes.fromhex("66 85 c9"), bytes.fromhex("66 85 c0")
_JS = 0x78
_LOW = 0xFFFFFFFF
_U64 = (1 << 64) - 1
_EFER_LMA = 1 << 10
_CALL_INSTRUCTIONS = (bytes.fromhex("0f 01 c1"), bytes.fromhex("0f 01 d9"))  # vmcall, vmmcall


def is_long_mode(sregs: Sregs) -> bool:
    """Return whether the vCPU runs 64-bit code: long mode, and not a compatibility segment in it."""
    return bool(sregs.efer & _EFER_LMA and sregs.cs.l)


def page_code(port: int = HYPERCALL_PORT, *, long_mode: bool = True) -> bytes:
    """The user engine's hypercall page: endbr64; out port, al; ret. In 32-bit mode endbr32; out port, eax; ret.

    VMCALL would not do: a KVM without Hyper-V answers it itself. ENDBR64 is what Linux 6.1 and later look for before
    they keep IBT on. A user-mode caller gets #GP from OUT (IOPL 0), so calls come from CPL 0 only.
    """
    return (_endbr(long_mode) + _exit_code(port, long_mode)).ljust(PAGE_SIZE, b"\xcc")


def _endbr(long_mode: bool) -> bytes:
    return _ENDBR64 if long_mode else _ENDBR32


def _exit_code(port: int, long_mode: bool) -> bytes:
    return bytes([_OUT_AL if long_mode else _OUT_EAX, port, _RET])


def page_code_beside_kvm(kvm_page: bytes, port: int = HYPERCALL_PORT, *, long_mode: bool = True) -> bytes | None:
    """The hypercall page for a KVM that does not pass on extended calls but answers "no such call" itself.

    It uses KVM's own call instruction for calls below 0x8000, and OUT for the others:

        endbr64; test cx, cx; js 1f; vmmcall; ret; 1: out port, al; ret

    CX holds the call's code, in 32-bit mode AX. None if `kvm_page`, as KVM wrote it, is not just its call instruction
    and a return: then the page must stay as it is.
    """
    instruction = kvm_page[:3]
    if instruction not in _CALL_INSTRUCTIONS or kvm_page[3] != _RET:
        return None
    below = instruction + bytes([_RET])
    test = _TEST_CX_CX if long_mode else _TEST_AX_AX
    code = _endbr(long_mode) + test + bytes([_JS, len(below)]) + below + _exit_code(port, long_mode)
    return code.ljust(PAGE_SIZE, b"\xcc")


def call_by_registers(call: Callable[[int, int, int], int], regs: Regs, width: int) -> tuple[int, int]:
    """Make the call that a page's OUT of `width` bytes asks for, and put the result into `regs`.

    Returns the control word and the result.
    """
    if width != WIDTH_32:
        control = regs.rcx
        regs.rax = result = call(control, regs.rdx, regs.r8)
        return control, result
    control = _pair(regs.rdx, regs.rax)
    result = call(control, _pair(regs.rbx, regs.rcx), _pair(regs.rdi, regs.rsi))
    regs.rdx, regs.rax = result >> 32, result & _LOW
    return control, result


def _pair(high: int, low: int) -> int:
    return (high & _LOW) << 32 | low & _LOW


class Hypercalls:
    """Decodes and handles hypercalls, on the vCPU thread that made them.

    `signal(connection_id) -> bool` delivers an event; False if the connection is unknown.
    """

    def __init__(self, memory: GuestMemory, signal: Callable[[int], bool], tap: Tap | None = None) -> None:
        self.memory = memory
        self._tap = Tap("hypercall") if tap is None else tap
        self.extended: ExtendedCalls | None = None
        self.ipi: IpiCalls | None = None
        self.on_unhandled: Callable[[int, int], None] = lambda code, status: None
        """Called with code and status of a call that does not exist, or whose connection nothing listens to."""
        self.message_ports: dict[int, Callable[[int, bytes], int]] = {}
        """Receivers of HvPostMessage by connection id, before the listener: (message_type, payload) -> status."""
        self.event_ports: dict[int, Callable[[], int]] = {}
        """Receivers of HvSignalEvent by connection id, called on the vCPU's thread; they return a status."""
        self._signal = signal
        self._listener: MessageListener | None = None
        self._listening = threading.Event()

    def listen(self, listener: MessageListener) -> None:
        """Set the receiver of HvPostMessage.

        A vCPU that posts before this waits: VMBus is built while the guest boots, and a guest that gets "no such
        connection" at its first contact would try an older version.
        """
        self._listener = listener
        self._listening.set()

    def call(self, control: int, input1: int, input2: int) -> int:
        """The result for RAX. `input1`: RDX; `input2`: R8. Never raises: bad input has a status."""
        if self._tap.on:
            return self._tapped(control, input1, input2)
        return self._answer(control, input1, input2)

    def _tapped(self, control: int, input1: int, input2: int) -> int:
        def deliver(item: Item) -> int:
            return self._answer(*(int(item.fields[name]) & _U64 for name in ("control", "input1", "input2")))

        code = control & 0xFFFF
        call = {"code": code, "control": control, "input1": input1, "input2": input2}
        status = self._tap.cross("in", b"", call, deliver)
        if status is None:
            status = int(HypercallStatus.SUCCESS)  # the call was lost, or is made later
        answer = {"code": code, "status": status}
        changed = self._tap.cross("out", b"", answer, lambda item: int(item.fields["status"]) & _U64)
        return int(status if changed is None else changed)

    def _answer(self, control: int, input1: int, input2: int) -> int:
        word = HypercallControl(control)
        if word.reserved_low or word.reserved_middle or word.reserved_high or word.nested:
            return HypercallStatus.INVALID_HYPERCALL_INPUT
        if word.variable_header and word.code not in _WITH_HEADER:
            return HypercallStatus.INVALID_HYPERCALL_INPUT
        try:
            match word.code:
                case HypercallCode.POST_MESSAGE | HypercallCode.SIGNAL_EVENT if word.rep_count or word.rep_start:
                    return HypercallStatus.INVALID_HYPERCALL_INPUT
                case HypercallCode.POST_MESSAGE if word.fast:
                    return HypercallStatus.INVALID_HYPERCALL_CODE
                case HypercallCode.POST_MESSAGE:
                    return self._post(input1)
                case HypercallCode.SIGNAL_EVENT if word.fast:
                    return self._event(SignalEventInput.parse(input1.to_bytes(8, "little")))
                case HypercallCode.SIGNAL_EVENT if input1 % 8:
                    return HypercallStatus.INVALID_ALIGNMENT
                case HypercallCode.SIGNAL_EVENT:
                    return self._event(SignalEventInput.parse(self.memory.read(input1, SignalEventInput.SIZE)))
                case HypercallCode.SEND_IPI | HypercallCode.SEND_IPI_EX if self.ipi is not None:
                    return self.ipi.call(word, input1, input2)
                case code if code > FIRST_EXTENDED and self.extended is not None:
                    result = self.extended.call(word, input1, input2)
                    if result == HypercallStatus.INVALID_HYPERCALL_CODE:
                        self.on_unhandled(code, result)
                    return result
                case code:
                    return self._unhandled(code, HypercallStatus.INVALID_HYPERCALL_CODE)
        except GuestError:
            return HypercallStatus.INVALID_PARAMETER
        except Exception as error:
            contain("hypercall", error)
            return HypercallStatus.OPERATION_DENIED

    def _post(self, gpa: int) -> int:
        if gpa % 8:
            return HypercallStatus.INVALID_ALIGNMENT
        size = PostMessageInput.SIZE
        if gpa % PAGE_SIZE > PAGE_SIZE - size - MAX_PAYLOAD:
            return HypercallStatus.INVALID_ALIGNMENT  # the block may not cross a page
        data = self.memory.read(gpa, size + MAX_PAYLOAD)  # one copy: the guest may change it under us
        head = PostMessageInput.parse(data)
        if head.payload_size > MAX_PAYLOAD:
            return HypercallStatus.INVALID_HYPERCALL_INPUT
        payload = data[size : size + head.payload_size]
        self._listening.wait(LISTENER_WAIT)  # the loop, which delivers messages, builds VMBus until then
        port = self.message_ports.get(head.connection_id & CONNECTION_MASK)
        if port is not None:
            return port(head.message_type, payload)
        if self._listener is None:
            return HypercallStatus.INVALID_CONNECTION_ID
        status = self._listener(head.connection_id & CONNECTION_MASK, head.message_type, payload)
        if status == HypercallStatus.INVALID_CONNECTION_ID:
            self.on_unhandled(HypercallCode.POST_MESSAGE, status)
        return status

    def _event(self, event: SignalEventInput) -> int:
        if event.flag_number:
            return HypercallStatus.INVALID_PORT_ID
        port = self.event_ports.get(event.connection_id & CONNECTION_MASK)
        if port is not None:
            return port()
        if not self._signal(event.connection_id & CONNECTION_MASK):
            return self._unhandled(HypercallCode.SIGNAL_EVENT, HypercallStatus.INVALID_CONNECTION_ID)
        return HypercallStatus.SUCCESS

    def _unhandled(self, code: int, status: HypercallStatus) -> HypercallStatus:
        self.on_unhandled(code, status)
        return status
