"""The words of the prompt and of `--script`.

A word is a letter, with how often before it: `m`, `3m`. `t` takes a pattern of trace events, `d` an address and a
length. Words stand one after the other; `;` or a newline ends one that takes something: `m m p`, `t vmbus.*; 2m`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pyvmm.errors import ConfigError
from pyvmm.step.stepper import Kind, Wanted

STEPS: Final = {
    "m": (Kind.MESSAGE, "the next message of the VMBus, of either side"),
    "p": (Kind.PACKET, "the next packet in a channel's ring"),
    "h": (Kind.HYPERCALL, "the next hypercall"),
    "e": (Kind.EXIT, "the next exit of a vCPU"),
    "i": (Kind.EVENT, "the next signal, event flag, interrupt or end of a message"),
    "n": (Kind.ANY, "the next of these, exits apart"),
    "t": (Kind.TRACE, "the next trace event: `t PATTERN`, such as `t *state*`"),
    "c": (Kind.END, "to the end of the guest; Ctrl-C stops it"),
}
LOOKS: Final = {
    "w": "who waits for what",
    "l": "list all that happened since the last stop",
    "v": "view who owns which page of memory, as `pyvmm map` does",
    "s": "show the stop again",
    "r": "registers of the vCPUs",
    "d": "dump guest memory: `d ADDRESS [BYTES]`",
    "?": "this list",
    "q": "end the guest",
}
COUNT_LIMIT: Final = 1_000_000
DUMP_LIMIT: Final = 4096
_WORD: Final = re.compile(r"(\d*)([a-zA-Z?])")


@dataclass(frozen=True, slots=True)
class Command:
    """One word: a step, or a look at something, which `letter` names."""

    letter: str
    wanted: Wanted | None = None
    address: int = 0
    length: int = 64


def parse(text: str) -> list[Command]:
    """Return the commands of a line. Raises ConfigError for a word that is none."""
    made: list[Command] = []
    for part in re.split(r"[;\n]", text):
        words = part.split()
        while words:
            word = words.pop(0)
            matched = _WORD.fullmatch(word)
            if matched is None:
                raise ConfigError(f"no command {word[:40]!r}: `?` lists them")
            count = int(matched[1][:10] or 1)
            letter = matched[2]
            if letter == "t":
                made.append(_step(letter, count, words.pop(0) if words else "*"))
            elif letter == "d":
                made.append(_dump(words))
            elif letter in STEPS:
                if words and words[0].isdigit() and not matched[1]:
                    count = int(words.pop(0)[:10])
                made.append(_step(letter, count))
            elif letter in LOOKS and not matched[1]:
                made.append(Command(letter))
            else:
                raise ConfigError(f"no command {word[:40]!r}: `?` lists them")
    return made


def help_lines() -> list[str]:
    """Return the list of commands."""
    return [
        "forward to",
        *(f"  {letter}   {text}" for letter, (_, text) in STEPS.items()),
        "  3m  the third message from here; Enter repeats the last step",
        "look",
        *(f"  {letter}   {text}" for letter, text in LOOKS.items()),
    ]


def _step(letter: str, count: int, pattern: str = "") -> Command:
    if not 0 < count <= COUNT_LIMIT:
        raise ConfigError(f"{count} steps: give a number from 1 to {COUNT_LIMIT}")
    return Command(letter, Wanted(STEPS[letter][0], count, pattern))


def _dump(words: list[str]) -> Command:
    numbers: list[int] = []
    while words and len(numbers) < 2:
        try:
            numbers.append(int(words[0], 0))
        except ValueError:
            break
        words.pop(0)
    if not numbers:
        raise ConfigError("d needs an address: `d 0x1101200`, `d 0x1101200 64`")
    length = numbers[1] if len(numbers) > 1 else 64
    if not 0 < length <= DUMP_LIMIT:
        raise ConfigError(f"{length} bytes: give a number from 1 to {DUMP_LIMIT}")
    return Command("d", None, numbers[0], length)
