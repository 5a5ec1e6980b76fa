"""Recursive descent from a module's functions to its basic blocks.

Every instruction is decoded once, from the functions' symbols, exception fix-ups, the targets of jump labels and of
alternatives' jumps, and switch tables. What follows a call to a function that does not return is not reached.

Where a block's breakpoint may go (docs/coverage.md has the reasons):

    never     ENDBR64, UD1, UD2; what the kernel rewrites at any time: ftrace's call, jump labels, static calls, LOCK
    at last   inside an alternative or a paravirtual call: its instructions are others after loading
    first     the block's first instruction of two bytes and more, up to its first call
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from pyvmm.cover.image import Image, Place, Rewrite, Site
from pyvmm.cover.program import Block, Call, Candidate, Instruction, Kind, Program
from pyvmm.cover.tools import load

PATCH: Final = 2  # bytes of OUT imm8, AL
_CALL_BYTES: Final = 5
_NO_RETURN: Final = frozenset(
    (
        "__stack_chk_fail",
        "panic",
        "do_exit",
        "make_task_dead",
        "__fortify_panic",
        "fortify_panic",
        "kunit_abort",
        "__ubsan_handle_builtin_unreachable",
        "rewind_stack_and_make_dead",
        "kthread_complete_and_exit",
        "module_put_and_kthread_exit",
    )
)
_TRAPS: Final = ("ud2", "ud1")  # of BUG and WARN; the latter, since Linux 7, with the registers of a WARN's text
_ENDS: Final = frozenset(("ret", "retq", "iretq", "int3", "jmp", *_TRAPS))
_TRACING: Final = (
    "trace_event_raw_event_", "trace_event_get_offsets_", "trace_raw_output_", "perf_trace_", "__traceiter_",
    "__bpf_trace_", "__probestub_", "__SCT__tp_func_",
)  # fmt: skip
_TRAMPOLINE: Final = "__SCT__"
"""Trampolines of static calls. The kernel rewrites them, and takes other bytes there for a BUG."""
_KINDS: Final[dict[str, Kind]] = {".init.text": "init", ".altinstr_aux": "load"}
_SWITCH_REACH: Final = 40  # bytes before an indirect jump in which its table is named
_THUNK: Final = "indirect_thunk"


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What is kept of an instruction."""

    size: int
    mnemonic: str
    operands: str
    target: Place | str | None  # of a call or jump
    jump: bool

    @property
    def ends(self) -> bool:
        """Whether nothing runs on behind it, or not only."""
        if self.mnemonic == "call":
            return isinstance(self.target, str) and self.target in _NO_RETURN
        return self.jump or self.mnemonic in _ENDS


class Descent:
    """Finds the blocks of one Image."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self._capstone = load("capstone")
        self._decoder = self._capstone.Cs(self._capstone.CS_ARCH_X86, self._capstone.CS_MODE_64)
        self._decoder.detail = True
        self.instructions: dict[Place, _Decoded] = {}
        self.leaders: set[Place] = set()
        self.undecodable: list[Place] = []
        self._todo: list[Place] = []
        self._owners = sorted(image.functions)

    def run(self) -> Program:
        """Decode all and return the blocks."""
        for place in (*self.image.functions, *sorted(self.image.leaders)):
            self._lead(place)
        while self._todo:
            self._follow(self._todo.pop())
        return self._program()

    def _lead(self, place: Place | str | None) -> None:
        if isinstance(place, Place) and 0 <= place.offset < len(self.image.code.get(place.section, b"")):
            self.leaders.add(place)
            self._todo.append(place)

    def _follow(self, at: Place) -> None:
        """Decode from `at` up to what is decoded already, or to an end."""
        image, code = self.image, self.image.code[at.section]
        while at.offset < len(code) and at not in self.instructions:
            found = self._decode(at, code)
            if found is None:
                self.undecodable.append(at)
                return
            self.instructions[at] = found
            end = at.plus(found.size)
            if at in image.jump_labels:
                self._lead(image.jump_labels[at])
                self._lead(end)
            if found.mnemonic in _TRAPS:
                if image.traps.get(at, False):
                    self._lead(end)
                return
            if found.jump:
                if found.target is None or (isinstance(found.target, str) and _THUNK in found.target):
                    for target in self._switch(at):
                        self._lead(target)
                self._lead(found.target)
                if found.mnemonic != "jmp":
                    self._lead(end)
                return
            if found.ends:
                return
            at = end

    def _decode(self, at: Place, code: bytes) -> _Decoded | None:
        capstone = self._capstone
        ins = next(self._decoder.disasm(code[at.offset : at.offset + 16], at.offset, 1), None)
        if ins is None:
            return None
        branch = ins.group(capstone.CS_GRP_JUMP) or ins.mnemonic == "call"
        target: Place | str | None = None
        operands = ins.op_str
        operand = ins.operands[0] if ins.operands else None
        if branch:
            if operand is not None and operand.type == capstone.x86.X86_OP_IMM:
                target = self.image.branch(at, ins.size, operand.imm)
            if target is not None:
                operands = self.name(target)
        else:
            symbol = self.image.operand(at, ins.size, None)
            if symbol is not None:
                operands = f"{operands}  # {self.name(symbol)}"
        return _Decoded(ins.size, ins.mnemonic, operands, target, bool(ins.group(capstone.CS_GRP_JUMP)))

    def _switch(self, at: Place) -> list[Place]:
        """Return the targets of an indirect jump's table, which one of the instructions before it names."""
        near = range(at.offset - _SWITCH_REACH, at.offset + 8)
        fields = [p for p in self.image.tables if p.section == at.section and p.offset in near]
        return [target for each in fields for target in self.image.tables[each]]

    def owner(self, place: Place) -> tuple[str, int]:
        """Return the symbol of the function that holds `place` and the offset in it; ("", 0) if none does."""
        index = bisect_right(self._owners, place) - 1
        if index >= 0:
            start = self._owners[index]
            name, size = self.image.functions[start]
            if start.section == place.section and place.offset < start.offset + size:
                return name, place.offset - start.offset
        return "", 0

    def name(self, target: Place | str) -> str:
        """Return the text of a target: a symbol, or an offset in a function."""
        if isinstance(target, str):
            return target
        owner, offset = self.owner(target)
        if not owner:
            return f"{self.image.sections.get(target.section, 'data')}+{target.offset:#x}"
        return f"{owner}+{offset:#x}" if offset else owner

    # From instructions to blocks

    def _program(self) -> Program:
        starts = sorted(place for place in self.leaders if place in self.instructions)
        numbers = {place: number for number, place in enumerate(starts)}
        live, loaded = self._sites(live=True), self._sites(live=False)
        blocks: list[Block] = []
        calls: list[Call] = []
        listing: list[list[Instruction]] = []
        for place in starts:
            run = self._run(place)
            last = run[-1]
            function = _base(self.owner(place)[0]) or "?"
            candidates, why = self._candidates(run, live, loaded)
            block = Block(
                function=function,
                kind=self._kind(function, place.section),
                section=place.section,
                offset=place.offset,
                size=last.plus(self.instructions[last].size).offset - place.offset,
                next=sorted({numbers[each] for each in self._successors(last) if each in numbers}),
                candidates=candidates,
                evidence=[],
                why_none=why,
            )
            listing.append([self._shown(each) for each in run])
            calls += self._calls(run, function, len(blocks), live)
            blocks.append(block)
        _find_evidence(blocks)
        return Program(
            name=self.image.name,
            build_id=self.image.build_id,
            sections=self.image.sections,
            base=self.image.base,
            file_offsets={section: self.image.file_offsets[section] for section in self.image.sections},
            functions={name: (*place, size) for place, (name, size) in self.image.functions.items()},
            blocks=blocks,
            calls=calls,
            builtin=self.image.builtin,
            loading=self.image.loading,
            exits=[name for name, _ in self.image.functions.values() if name == "cleanup_module"],
            listing=lambda: listing,
        )

    def _run(self, place: Place) -> list[Place]:
        run = [place]
        while not self.instructions[run[-1]].ends:
            following = run[-1].plus(self.instructions[run[-1]].size)
            if following in self.leaders or following not in self.instructions:
                break
            run.append(following)
        return run

    def _successors(self, last: Place) -> list[Place]:
        decoded = self.instructions[last]
        end = last.plus(decoded.size)
        found: list[Place] = []
        if last in self.image.jump_labels:
            found += [self.image.jump_labels[last], end]
        if isinstance(decoded.target, Place) and decoded.jump:
            found.append(decoded.target)
        if decoded.jump and not isinstance(decoded.target, Place):
            found += self._switch(last)
        if not decoded.ends or (decoded.jump and decoded.mnemonic != "jmp") or self.image.traps.get(last, False):
            found.append(end)
        return found

    def _sites(self, *, live: bool) -> dict[int, list[Site]]:
        found: dict[int, list[Site]] = defaultdict(list)
        for site in self.image.sites:
            if site.why.live is live:
                found[site.place.section].append(site)
        return found

    def _candidates(
        self, run: list[Place], live: dict[int, list[Site]], loaded: dict[int, list[Site]]
    ) -> tuple[list[Candidate], str]:
        """Return the places for a breakpoint, the best first; if there are none, why."""
        if self.owner(run[0])[0].startswith(_TRAMPOLINE):
            return [], Rewrite.STATIC_CALL.value
        end = run[-1].plus(self.instructions[run[-1]].size).offset
        ranked: list[tuple[int, int, Candidate]] = []
        why: set[str] = set()
        called = 0
        for order, place in enumerate(run):
            decoded = self.instructions[place]
            if place.offset + PATCH > end:
                why.add("one byte left")
                break
            hit = [s.why.value for s in live[place.section] if _overlap(s, place.offset)]
            if decoded.mnemonic in (*_TRAPS, "endbr64") or place in self.image.traps:
                hit.append(decoded.mnemonic)
            why.update(hit)
            if not hit:
                moved = [s for s in loaded[place.section] if _overlap(s, place.offset)]
                inside = any(s.place != place or s.why in (Rewrite.ALTERNATIVE, Rewrite.PARAVIRT) for s in moved)
                whole = decoded.size >= PATCH
                rank = 8 * inside + 4 * called + 2 * (not whole)
                ranked.append((rank, order, Candidate(place.offset, self._expected(place, bool(moved)), whole)))
            called |= decoded.mnemonic == "call"
        return [candidate for _, _, candidate in sorted(ranked)][:4], "" if ranked else ", ".join(sorted(why))

    def _expected(self, place: Place, moved: bool) -> str:
        relocated = self.image.relocated.get(place.section, set())
        if moved or not relocated.isdisjoint(range(place.offset, place.offset + PATCH)):
            return ""
        return self.image.code[place.section][place.offset : place.offset + PATCH].hex()

    def _calls(self, run: list[Place], function: str, block: int, live: dict[int, list[Site]]) -> list[Call]:
        found = []
        for place in run:
            decoded = self.instructions[place]
            if decoded.mnemonic != "call" or decoded.size != _CALL_BYTES or decoded.target is None:
                continue
            if self.image.code[place.section][place.offset] != 0xE8:
                continue
            if any(_overlap(site, place.offset) for site in live[place.section]):
                continue
            found.append(Call(function, _base(self.name(decoded.target)), place.section, place.offset, block))
        return found

    def _kind(self, function: str, section: int) -> Kind:
        if function.startswith(_TRACING):
            return "tracing"
        return _KINDS.get(self.image.sections.get(section, ""), "code")

    def _shown(self, place: Place) -> Instruction:
        decoded = self.instructions[place]
        return Instruction(place.offset, decoded.size, f"{decoded.mnemonic} {decoded.operands}".rstrip())


def _overlap(site: Site, offset: int) -> bool:
    return site.place.offset < offset + PATCH and offset < site.place.offset + site.size


def _base(name: str) -> str:
    """Return a function's name without the suffix of its unlikely part."""
    return name.partition(".cold")[0]


def _find_evidence(blocks: list[Block]) -> None:
    """Set `evidence` of the blocks without candidates: successors that only they lead to; of one that consists of a
    jump label, else all successors.
    """
    before: dict[int, set[int]] = defaultdict(set)
    for number, block in enumerate(blocks):
        for following in block.next:
            before[following].add(number)
    for number, block in enumerate(blocks):
        if not block.candidates:
            own = [following for following in block.next if before[following] == {number}]
            label = Rewrite.JUMP_LABEL.value in block.why_none
            block.evidence = own or (block.next if label else [])


def analyse(image: Image) -> Program:
    """Return the blocks of a module."""
    return Descent(image).run()
