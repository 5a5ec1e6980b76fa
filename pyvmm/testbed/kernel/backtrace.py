"""Names a kernel's addresses, modules' too, and looks for return addresses on a kernel stack.

The kernels have no frame pointers, and the host does not read their unwind tables: a value on the stack that points
behind a call instruction is taken for a return address. It may be a leftover of an earlier call, hence "?".

Source: Linux include/linux/module.h, struct module and struct mod_kallsyms.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import iter_unpack
from typing import Final

from pyvmm.testbed.kernel.view import KernelView, NoKernelError

MODULES_LIMIT: Final = 512
SYMBOLS_LIMIT: Final = 1 << 16
STACK_BYTES: Final = 2048
FRAMES_LIMIT: Final = 24

_SYMBOL_SIZE: Final = 24  # Elf64_Sym: name u32, info u8, other u8, section u16, value u64, size u64
_KERNEL: Final = 1 << 63


class Module:
    """A loaded module: its text, and the symbols there once they are asked for."""

    def __init__(self, view: KernelView, at: int) -> None:
        self._view, self._at = view, at
        layout = view.image.layout("module")
        self.name = view.text(at + layout.at("name"))
        if "mem" in layout.members:  # since 6.4, with the text first
            part, place = view.image.layout("module_memory"), at + layout.at("mem")
        else:
            part, place = view.image.layout("module_layout"), at + layout.at("core_layout")
        self.base, self.size = view.u64(place + part.at("base")), view.u32(place + part.at("size"))
        self._symbols: list[tuple[int, str]] | None = None

    def find(self, address: int) -> tuple[str, int]:
        """Return the symbol at or before `address` and the distance; the module's start if there is none."""
        if self._symbols is None:
            try:
                self._symbols = self._read()
            except NoKernelError:
                self._symbols = []
        index = bisect_right(self._symbols, (address, "\U0010ffff")) - 1
        if index < 0:
            return ".text", address - self.base
        value, name = self._symbols[index]
        return name, address - value

    def _read(self) -> list[tuple[int, str]]:
        view, tables = self._view, self._view.image.layout("mod_kallsyms")
        place = view.u64(self._at + view.image.layout("module").at("kallsyms"))
        count = min(view.u32(place + tables.at("num_symtab")), SYMBOLS_LIMIT)
        table, strings = view.u64(place + tables.at("symtab")), view.u64(place + tables.at("strtab"))
        found = []
        for name, _, _, _, value, _ in iter_unpack("<IBBHQQ", view.read(table, count * _SYMBOL_SIZE)):
            if self.base <= value < self.base + self.size:
                found.append((value, view.text(strings + name, 128)))
        return sorted(found)


class Names:
    """Names of addresses in one kernel. Without a view each address is named by its number."""

    def __init__(self, view: KernelView | None) -> None:
        self._view = view
        self._modules: list[Module] = []
        self._text = range(0)
        if view is not None:
            self._text = range(view.image.symbols.get("_stext", 0), view.image.symbols.get("_etext", 0))

    def name(self, address: int) -> str:
        """Return `function+0x12 [module]`; the address in hexadecimal if it is in no text."""
        found, module = self._find(address)
        if found is None:
            return hex(address)
        name, offset = found
        return f"{name}+{offset:#x}" + (f" [{module}]" if module else "")

    def is_text(self, address: int) -> bool:
        """Whether the address is in the kernel's text or a module's."""
        return address in self._text or self._module(address) is not None

    def _find(self, address: int) -> tuple[tuple[str, int] | None, str]:
        view = self._view
        if view is None:
            return None, ""
        try:
            if address in self._text:
                return view.image.all.find(address), ""
        except NoKernelError:
            return None, ""
        module = self._module(address)
        return (None, "") if module is None else (module.find(address), module.name)

    def _module(self, address: int) -> Module | None:
        if self._view is None or address < self._text.stop:
            return None
        if not self._modules:
            self._modules = _modules(self._view)
        return next((each for each in self._modules if each.base <= address < each.base + each.size), None)

    def backtrace(self, rip: int, rsp: int) -> list[str]:
        """Return the place of `rip`, then what look like return addresses on the stack, each with "?"."""
        found = [self.name(rip)]
        view = self._view
        if view is None or rsp < _KERNEL:
            return found
        view.forget()
        for at in range(rsp & ~7, (rsp & ~7) + STACK_BYTES, 8):
            try:
                address = view.u64(at)
            except NoKernelError:
                break  # the end of the stack
            if self.is_text(address) and self._behind_call(view, address):
                found.append(f"? {self.name(address)}")
                if len(found) == FRAMES_LIMIT:
                    break
        return found

    @staticmethod
    def _behind_call(view: KernelView, address: int) -> bool:
        """Whether a call instruction ends at `address`: a direct one, or one through a register or memory."""
        try:
            code = view.read(address - 7, 7)
        except NoKernelError:
            return False
        by_register = code[5] == 0xFF and code[6] & 0xF8 == 0xD0
        by_memory = code[4] == 0xFF and code[5] & 0x38 == 0x10
        return code[2] == 0xE8 or by_register or by_memory


def _modules(view: KernelView) -> list[Module]:
    """Return the loaded modules; those that can be read of a damaged list."""
    found: list[Module] = []
    try:
        links = view.image.layout("module").at("list")
        head = view.image.symbol("modules")
        at = view.u64(head)
        while at != head and len(found) < MODULES_LIMIT:
            found.append(Module(view, at - links))
            at = view.u64(at)
    except NoKernelError:
        pass
    return found
