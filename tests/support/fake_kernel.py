"""A kernel's image and memory made by hand: symbols, layouts, page tables, a log, tasks and modules.

physical    0x1000 PML4, 0x2000 page directory pointers, 0x3000 page directory: KERNEL_MAP is 2 MiB from 0
            0x10000 kernel text and data, 0x20000 log, 0x40000 tasks, 0x60000 modules
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from struct import pack

from pyvmm.memory import GuestMemory
from pyvmm.testbed.kernel.btf import Layout, Member
from pyvmm.testbed.kernel.view import KERNEL_MAP, KernelImage, KernelView, Symbols

SIZE = 2 << 20
DATA, LOG, TASKS, MODULES = 0x10000, 0x20000, 0x40000, 0x60000
MODULE_TEXT = KERNEL_MAP + 0x70000
PRB_BITS, TEXT_BITS = 4, 10


def layout(size: int, /, **members: int) -> Layout:
    """Return a layout of plain members."""
    return Layout(size, {name: Member(offset) for name, offset in members.items()})


LAYOUTS = {
    "printk_ringbuffer": layout(96, desc_ring=0, text_data_ring=48),
    "prb_desc_ring": layout(48, count_bits=0, descs=8, infos=16, head_id=24, tail_id=32),
    "prb_data_ring": layout(32, size_bits=0, data=8),
    "prb_desc": layout(24, state_var=0, text_blk_lpos=8),
    "prb_data_blk_lpos": layout(16, begin=0, next=8),
    "printk_info": Layout(32, {"ts_nsec": Member(8), "text_len": Member(16), "level": Member(19, 5, 3)}),
    "task_struct": layout(256, __state=0, tasks=8, pid=24, comm=32, nvcsw=48, nivcsw=56, stack=64, thread=128),
    "thread_struct": layout(64, sp=16),
    "module": layout(256, list=8, name=24, kallsyms=80, mem=96),
    "module_memory": layout(24, base=0, size=8),
    "mod_kallsyms": layout(32, symtab=0, num_symtab=8, strtab=16),
}
SYMBOLS = {
    "linux_banner": KERNEL_MAP + DATA,
    "init_top_pgt": KERNEL_MAP + 0x1000,
    "prb": KERNEL_MAP + DATA + 0x100,
    "modules": KERNEL_MAP + DATA + 0x200,
    "init_task": KERNEL_MAP + TASKS,
    "_stext": KERNEL_MAP + 0x8000,
    "_etext": KERNEL_MAP + 0x9000,
}


@dataclass
class FakeKernel:
    """Memory with a kernel in it; `image` and `view` are what the readers take."""

    memory: GuestMemory = field(default_factory=lambda: GuestMemory.flat(SIZE))
    records: int = 0
    text_at: int = 0

    def __post_init__(self) -> None:
        self.put(0x1000 + 8 * 511, 0x2000 | 1)
        self.put(0x2000 + 8 * 510, 0x3000 | 1)
        self.put(0x3000, 1 | 1 << 7)
        self.memory.write(DATA, b"Linux version 6.1.0-fake\0")
        self.put(DATA + 0x100, KERNEL_MAP + LOG)
        self.put(DATA + 0x200, SYMBOLS["modules"])  # an empty list
        self.put(TASKS + 8, SYMBOLS["init_task"] + 8)
        self.memory.write(LOG, pack("<QQQQQ", PRB_BITS, KERNEL_MAP + LOG + 0x1000, KERNEL_MAP + LOG + 0x2000, 0, 0))
        self.memory.write(LOG + 48, pack("<QQ", TEXT_BITS, KERNEL_MAP + LOG + 0x4000))

    def put(self, gpa: int, value: int) -> None:
        """Store a number of 8 bytes."""
        self.memory.write(gpa, pack("<Q", value & (1 << 64) - 1))

    @property
    def image(self) -> KernelImage:
        """The kernel's image, without a file."""
        image = object.__new__(KernelImage)
        image.path = Path("fake")
        image.symbols, image.layouts = dict(SYMBOLS), dict(LAYOUTS)
        pairs = sorted([(SYMBOLS["_stext"], "start"), (SYMBOLS["_stext"] + 0x100, "vmbus_isr")])
        image._all = Symbols(Symbols.pack([each for each, _ in pairs], [name for _, name in pairs]))
        return image

    @property
    def view(self) -> KernelView:
        """The kernel for reading."""
        return KernelView(self.memory, self.image)

    def log(self, text: str, *, level: int = 6, seconds: float = 1.0, state: int = 2) -> None:
        """Append a record, as printk does; the oldest go."""
        data = text.encode()
        size = 8 + len(data) + -len(data) % 8
        begin, room = self.text_at, 1 << TEXT_BITS
        start = begin
        if begin // room != (begin + size - 1) // room:
            start = (begin + size - 1) // room * room
        self.text_at = start + size
        index = self.records % (1 << PRB_BITS)
        self.memory.write(LOG + 0x4000 + start % room, pack("<Q", self.records) + data)
        self.memory.write(LOG + 0x1000 + 24 * index, pack("<QQQ", state << 62 | self.records, begin, self.text_at))
        info = bytearray(32)
        info[8:16], info[16:18] = pack("<Q", round(seconds * 1e9)), pack("<H", len(data))
        info[19] = level << 5
        self.memory.write(LOG + 0x2000 + 32 * index, bytes(info))
        self.put(LOG + 24, self.records)
        self.put(LOG + 32, max(0, self.records - (1 << PRB_BITS) + 1))
        self.records += 1

    def add_task(self, number: int, name: str, *, state: int = 0, switches: int = 0, sp: int = 0) -> None:
        """Append a task; the numbers count from 1."""
        at = TASKS + 256 * number
        head = pack("<IIQQIIQQQQQ", state, 0, SYMBOLS["init_task"] + 8, 0, number, 0, 0, 0, switches, 0, 0)
        self.memory.write(at, head)
        self.memory.write(at + 32, name.encode()[:16].ljust(16, b"\0"))
        self.put(at + 144, sp)
        self.put(at - 256 + 8, KERNEL_MAP + at + 8)

    def add_module(self, name: str, symbols: dict[str, int]) -> None:
        """Load the one module, with symbols by their offset in its text of 4 KiB."""
        at, head = MODULES, SYMBOLS["modules"]
        self.put(DATA + 0x200, KERNEL_MAP + at + 8)
        self.put(at + 8, head)
        self.memory.write(at + 24, name.encode() + b"\0")
        self.put(at + 80, KERNEL_MAP + at + 0x200)
        self.memory.write(at + 96, pack("<QI", MODULE_TEXT, 0x1000))
        strings, table = b"\0", b""
        for symbol, offset in symbols.items():
            table += pack("<IBBHQQ", len(strings), 0, 0, 0, MODULE_TEXT + offset, 0)
            strings += symbol.encode() + b"\0"
        places = pack("<QQQ", KERNEL_MAP + at + 0x400, len(symbols), KERNEL_MAP + at + 0x2000)
        self.memory.write(at + 0x200, places)
        self.memory.write(at + 0x400, table)
        self.memory.write(at + 0x2000, strings)
