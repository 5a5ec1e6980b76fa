"""A hostile tiny guest: machine code made from a seed that does wild things as fast as it can, for ever.

    with Flooded(program(seed), vcpus...) as machine: ...

It enters long mode, sets up an interrupt table whose exception handler goes on with the next step, and plays just
enough hv_vmbus to have channels open. Then it takes its steps in an order that the TSC decides: MSRs with any value,
ports and memory-mapped registers of any width, hypercalls with inputs anywhere, posted messages good and bad, its
SynIC pages moved about, ring headers overwritten, interrupts taken or not. Whatever it breaks of itself (a triple
fault, a reset) only begins it anew. What would end it is left out: power-off, and execution where no memory is.

    ENTRY     code                 TABLES  page tables, 4 GiB mapped as they are      RINGS  the channels' pages
    BLOCKS    inputs of hypercalls, 256 bytes each                                    PAGES  for its SynIC
"""

from __future__ import annotations

from random import Random
from struct import pack

from pyvmm.devices.serial.window import AGENT, CONSOLE
from pyvmm.hyperv.tlfs import FIRST_MSR, MSR_RANGE, HypercallCode, Msr
from pyvmm.vmbus import protocol as p
from tests.support.fake_guest import gpadl_messages
from tests.support.flooded import ENTRY, MEMORY

STEPS = 512  # a power of two
CODE_SIZE = 0x20000
TABLES = ENTRY + CODE_SIZE
TABLE_PAGES = 6
DESCRIPTORS = TABLES + TABLE_PAGES * 4096  # GDT, then the IDT in a page of its own
JUMPS = DESCRIPTORS + 0x2000
BLOCKS = JUMPS + STEPS * 8
BLOCK_SIZE, BLOCK_COUNT = 256, 128
RINGS = 0x400000
RING_PAGES = 4  # a channel's, both ways
PAGES = 0x600000
HYPERCALL_PAGE, SIMP, SIEFP = PAGES, PAGES + 0x1000, PAGES + 0x2000
STACK = 0x700000
WAIT = 0x7000  # where the second processor halts
CHANNELS = 4
VECTOR = 0xF3

_PORTS = (*range(0x3F8, 0x400), *range(0x2F8, 0x300), 0x60, 0x64, 0x70, 0x71, 0x600, *range(0x606, 0x60C), 0xCF9,
          0xEC, 0x80, 0x20, 0x21, 0x43, 0x61)  # fmt: skip
_WINDOWS = tuple(base + at for window in (CONSOLE, AGENT) for base in (window.base, window.early) for at in range(8))
_MSRS = (*(int(msr) for msr in Msr if msr != Msr.RESET), *range(Msr.SINT0, Msr.SINT15 + 1))
_OWN_PAGES = (PAGES + 0x3000, PAGES + 0x4000, RINGS, RINGS + 0x1000, MEMORY - 0x1000, MEMORY, 0xA0000, 0xC0000000,
              0xFEC00000, 0xFEC11000, 1 << 32, 1 << 51, (1 << 64) - 0x1000)  # fmt: skip


def _wrmsr(msr: int, value: int) -> bytes:
    return pack("<BIBIBI", 0xB9, msr, 0xB8, value & 0xFFFFFFFF, 0xBA, value >> 32) + b"\x0f\x30"


def _call(control: int, rdx: int, r8: int, *, by_port: bool = False) -> bytes:
    registers = b"\x48\xb9" + pack("<Q", control) + b"\x48\xba" + pack("<Q", rdx) + b"\x49\xb8" + pack("<Q", r8)
    return registers + (b"\xe6\xec" if by_port else pack("<BI", 0xB8, HYPERCALL_PAGE) + b"\xff\xd0")


def _store(address: int, size: int, value: int) -> bytes:
    code = {1: b"\x88\x03", 2: b"\x66\x89\x03", 4: b"\x89\x03", 8: b"\x48\x89\x03"}[size]
    return b"\x48\xbb" + pack("<Q", address) + b"\x48\xb8" + pack("<Q", value) + code


def _load(address: int, size: int) -> bytes:
    code = {1: b"\x8a\x03", 2: b"\x66\x8b\x03", 4: b"\x8b\x03", 8: b"\x48\x8b\x03"}[size]
    return b"\x48\xbb" + pack("<Q", address) + code


def _port(random: Random) -> bytes:
    """One IN, OUT or REP OUTS."""
    port, how = random.choice(_PORTS), random.randrange(7)
    if port == 0x64 or port == 0xCF9:
        how = random.choice((0, 1, 2))  # writes may reset: `_step` has its own
    head = b"\x66\xba" + pack("<H", port) + pack("<BI", 0xB8, random.getrandbits(32))
    strings = pack("<BIBI", 0xBE, BLOCKS, 0xB9, random.choice((1, 7, 100)))
    return head + (b"\xec", b"\x66\xed", b"\xed", b"\xee", b"\x66\xef", b"\xef", strings + b"\xf3\x6e")[how]


class _Messages:
    """Inputs of HvPostMessage: the good ones that open channels, and others; where each lies."""

    def __init__(self, random: Random) -> None:
        self.blocks: list[bytes] = []
        self.opening = [
            self._post(4, p.InitiateContact(0x50003, 0, 2, 0, 0).build()),
            self._post(5, p.RequestOffers().build()),
        ]
        for relid in range(1, CHANNELS + 1):
            at = RINGS + relid * RING_PAGES * 4096
            pages = [at + n * 4096 for n in range(RING_PAGES)]
            self.opening += [self._post(5, message) for message in gpadl_messages(relid, relid, pages)]
            opening = p.OpenChannel(relid, relid, relid, 0, RING_PAGES // 2, b"")
            self.opening.append(self._post(5, opening.build()))
        self.others = [self._post(random.choice((1, 4, 5, 5, 5)), self._any(random)) for _ in range(60)]

    def _post(self, connection: int, message: bytes, size: int | None = None) -> int:
        block = pack("<IIII", connection, 0, 1, len(message) if size is None else size) + message
        self.blocks.append(block.ljust(BLOCK_SIZE, b"\0"))
        return BLOCKS + (len(self.blocks) - 1) * BLOCK_SIZE

    @staticmethod
    def _any(random: Random) -> bytes:
        relid = random.choice((1, 2, 3, 4, 5, 0, random.getrandbits(32)))
        match random.randrange(9):
            case 0:
                return p.CloseChannel(relid).build()
            case 1:
                return p.GpadlTeardown(relid, relid).build()
            case 2:
                return p.OpenChannel(relid, relid, relid, 0, random.randrange(5), b"").build()
            case 3:
                return p.ModifyChannel(relid, random.randrange(3)).build()
            case 4:
                words = [random.choice((0x4000, 0x2000, random.getrandbits(64)))]
                words += [
                    random.choice((RINGS >> 12, random.getrandbits(13), random.getrandbits(52))) for _ in range(4)
                ]
                head = p.GpadlHeader(relid, relid, random.choice((40, 24, 80, 0xFFF8)), 1)
                return head.build() + pack("<5Q", *words)
            case 5:
                return p.GpadlBody(0, relid).build() + random.randbytes(80)
            case 6:
                return p.RelidReleased(relid).build()
            case 7:
                return p.InitiateContact(random.choice((0x50003, 0x40000, 7)), 0, 2, 0, 0).build()
            case _:
                return pack("<II", random.randrange(30), 0) + random.randbytes(random.randrange(230))


def _packet(random: Random, relid: int) -> bytes:
    """Write something into a channel's ring as a guest would, or nearly, and signal."""
    ring = RINGS + relid * RING_PAGES * 4096
    size = random.choice((32, 40, 64))
    kind = random.choice((1, 3, 5, 7, 9, 11))
    words = [6 | 2 << 16 | (size // 8) << 32, 0, kind | random.choice((16, 32, 48)) << 16, random.getrandbits(64)]
    words += [random.getrandbits(64) for _ in range((size + 8) // 8 - len(words))]
    if random.random() < 0.2:
        words[0] = random.getrandbits(64)
    code = b"".join(_store(ring + 4096 + n * 8, 8, word) for n, word in enumerate(words))
    code += _store(ring, 4, random.choice((size + 8, size + 8, 0, 4088, random.getrandbits(32))))
    code += _store(ring + 4, 4, 0)
    return code + _call(1 << 16 | HypercallCode.SIGNAL_EVENT, p.FIRST_SIGNAL_CONNECTION + relid, 0)


def _step(random: Random, messages: _Messages) -> bytes:
    size = random.choice((1, 2, 4, 8))
    value = random.choice((random.getrandbits(64), 0, 1, (1 << 64) - 1, 1 << random.randrange(64)))
    match random.randrange(24):
        case 0 | 1 | 2:
            return _wrmsr(random.choice(_MSRS), value)
        case 3:
            return _wrmsr(FIRST_MSR + random.randrange(MSR_RANGE), value & ~1)
        case 4 | 5:
            return (
                pack("<BI", 0xB9, random.choice((*_MSRS, Msr.RESET, FIRST_MSR + random.randrange(MSR_RANGE))))
                + b"\x0f\x32"
            )
        case 6 | 7:
            page = random.choice((Msr.SIMP, Msr.SIEFP, Msr.REFERENCE_TSC, Msr.VP_ASSIST_PAGE))
            return _wrmsr(page, random.choice(_OWN_PAGES) | random.choice((1, 1, 3, 0)))
        case 8:  # back to what works, so that messages and events flow
            return _wrmsr(Msr.SIMP, SIMP | 1) + _wrmsr(Msr.SIEFP, SIEFP | 1) + _wrmsr(Msr.SINT0 + 2, VECTOR)
        case 9 | 10 | 11:
            return _port(random)
        case 12:
            return _store(random.choice(_WINDOWS), size, value)
        case 13:
            return _load(random.choice((*_WINDOWS, 0xA0000, 0xC0000000, MEMORY, (1 << 32) - 8)), size)
        case 14:
            return _store(random.choice((0xA0000, 0xC0000000, MEMORY, 0xFED00000)), size, value)
        case 15 | 16:
            block = random.choice(messages.others)
            return _call(HypercallCode.POST_MESSAGE, block, 0, by_port=random.random() < 0.2)
        case 17:
            code = random.choice((*HypercallCode, random.getrandbits(16))) | random.choice((0, 1 << 16, value))
            address = random.choice((*_OWN_PAGES, MEMORY - 8, MEMORY - 256, BLOCKS + 1, value))
            return _call(code & (1 << 64) - 1, address, random.choice((*_OWN_PAGES, value)))
        case 18:
            return _call(1 << 16 | HypercallCode.SIGNAL_EVENT, random.choice((16, 17, 18, 19, 20, 21, value)), 0)
        case 19 | 20:
            return _packet(random, random.randrange(1, CHANNELS + 1))
        case 21:  # take what lies in the message slot
            return _store(SIMP + 2 * 256, 4, 0) + _wrmsr(Msr.EOM, 0) + b"\xfb\x90\x90\xfa"  # sti; nop; nop; cli
        case 22:
            opening = b"".join(_call(HypercallCode.POST_MESSAGE, block, 0) for block in messages.opening)
            return opening if random.random() < 0.3 else b"\xfb\x90\x90\xfa"
        case _:
            return random.choice(
                (
                    b"\x0f\x0b",  # ud2
                    pack("<BI", 0xB8, 0x40000000 + random.randrange(16)) + b"\x0f\xa2",  # cpuid
                    _wrmsr(0x10, value),  # TSC
                    _wrmsr(0x1B, random.choice((0xFEE00900, 0xFEE00100, 0xFEE00D00))),  # APIC on, off, x2APIC
                    _store(0xFEE000F0, 4, 0x1FF),  # software-enable it
                    _store(0xFEE00310, 4, 1 << 24)
                    + _store(
                        0xFEE00300, 4, random.choice((0x4500, 0x4600 | WAIT >> 12, 0x40F3))
                    ),  # IPIs to the other
                    _wrmsr(Msr.CRASH_CTL, 3 << 62),
                )
            )


def program(seed: int) -> str:
    """The guest's code and data, as hexadecimal digits for `Flooded`."""
    random = Random(seed)
    messages = _Messages(random)
    handlers = _handlers()
    # 32 bits: page tables, long mode, far jump
    code = bytearray(
        pack("<BI", 0xB8, TABLES) + bytes.fromhex("0f22d8 0f20e0 83c820 0f22e0 b9800000c0 0f32 0d00010000 0f30")
    )
    code += bytes.fromhex("0f20c0 0d00000080 0f22c0 0f0115") + pack("<I", DESCRIPTORS + 0x100)
    code += b"\xea" + pack("<IH", ENTRY + len(code) + 7, 8)
    # 64 bits: segments, stack, interrupt table
    code += bytes.fromhex("66b81000 8ed8 8ec0 8ed0") + pack("<BI", 0xBC, STACK)
    code += bytes.fromhex("0f011c25") + pack("<I", DESCRIPTORS + 0x110)
    again = ENTRY + len(code)
    code += pack("<BI", 0xBD, again)  # mov ebp: where the exception handler goes on
    code += (
        _wrmsr(Msr.GUEST_OS_ID, 0x8100 << 48) + _wrmsr(Msr.HYPERCALL, HYPERCALL_PAGE | 1) + _wrmsr(Msr.SCONTROL, 1)
    )
    code += _wrmsr(Msr.SIMP, SIMP | 1) + _wrmsr(Msr.SIEFP, SIEFP | 1) + _wrmsr(Msr.SINT0 + 2, VECTOR)
    code += _store(WAIT, 4, 0xF4FDEBF4)  # hlt; jmp back
    for block in messages.opening:
        code += _store(SIMP + 2 * 256, 4, 0) + _wrmsr(Msr.EOM, 0) + _call(HypercallCode.POST_MESSAGE, block, 0)
    # rdtsc; shr eax, 3; and eax, STEPS - 1; jmp [JUMPS + rax * 8]
    code += bytes.fromhex("0f31 c1e803") + pack("<BI", 0x25, STEPS - 1) + b"\xff\x24\xc5" + pack("<I", JUMPS)
    exception, interrupt = ENTRY + len(code), ENTRY + len(code) + len(handlers[0])
    code += b"".join(handlers)
    jumps = []
    for _ in range(STEPS):
        jumps.append(ENTRY + len(code))
        step = _step(random, messages)
        code += pack("<BI", 0xBD, ENTRY + len(code) + 5 + len(step)) + step
    code += b"\xe9" + pack("<i", again - (ENTRY + len(code) + 5))
    assert len(code) <= CODE_SIZE and len(messages.blocks) <= BLOCK_COUNT
    blocks = b"".join(messages.blocks).ljust(BLOCK_SIZE * BLOCK_COUNT, b"\0")
    image = bytes(code).ljust(CODE_SIZE, b"\xf4") + _page_tables() + _descriptors(exception, interrupt)
    return (image + pack(f"<{STEPS}Q", *jumps) + blocks).hex()


def _handlers() -> tuple[bytes, bytes]:
    """Exceptions: fresh stack, on to the next step. Interrupts: end of interrupt, back."""
    exception = pack("<BI", 0xBC, STACK) + b"\xff\xe5"
    return exception, bytes.fromhex("50 b8b000e0fe c70000000000 58 48cf")


def _page_tables() -> bytes:
    top = pack("<Q", TABLES + 0x1003).ljust(4096, b"\0")
    directories = b"".join(pack("<Q", TABLES + 0x2003 + n * 4096) for n in range(4)).ljust(4096, b"\0")
    return top + directories + b"".join(pack("<Q", n << 21 | 0x83) for n in range(2048))


def _descriptors(exception: int, interrupt: int) -> bytes:
    gdt = pack("<3Q", 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF).ljust(0x100, b"\0")
    gdt += pack("<HI", 23, DESCRIPTORS).ljust(0x10, b"\0") + pack("<HQ", 4095, DESCRIPTORS + 0x1000)
    gates = [exception] * 32 + [interrupt] * 224
    idt = b"".join(pack("<HHHHII", at & 0xFFFF, 8, 0x8E00, at >> 16, 0, 0)[:16] for at in gates)
    return gdt.ljust(4096, b"\0") + idt
