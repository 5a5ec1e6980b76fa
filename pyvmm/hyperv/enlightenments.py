"""The enlightenments by name: which CPUID bits each sets, what it needs, and which engine implements it.

Names are those of QEMU's `hv-*` properties without the prefix (QEMU docs/system/i386/hyperv.rst). Free page
reporting, which QEMU has not, has an option of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from pyvmm.errors import ConfigError
from pyvmm.hyperv.tlfs import Access, Feature, Hint

NO_ACCESS, NO_FEATURE, NO_HINT = Access(0), Feature(0), Hint(0)
BOTH = ("kernel", "user")
ALL = "all"
"""The word for every enlightenment that the engine implements, as QEMU's hv-passthrough."""


@dataclass(frozen=True, slots=True)
class Enlightenment:
    """A set of CPUID bits that go together. `needs`: others that it does not work without, with the reason in `why`.

    `fixed`: the reason why it cannot be switched off. `refused`: why an engine that is not in `engines` lacks it.
    """

    name: str
    effect: str
    access: Access = NO_ACCESS
    features: Feature = NO_FEATURE
    hints: Hint = NO_HINT
    default: bool = False
    engines: tuple[str, ...] = BOTH
    needs: tuple[str, ...] = ()
    why: str = ""
    fixed: str = ""
    refused: str = ""


TABLE = {
    each.name: each
    for each in (
        Enlightenment(
            "vpindex",
            "Each virtual processor's number, by MSR.",
            Access.VP_INDEX,
            default=True,
            fixed="Linux does not take the machine for Hyper-V without it",
        ),
        Enlightenment(
            "synic",
            "The interrupt controller of messages and event flags, on which VMBus is built.",
            Access.SYNIC,
            default=True,
            fixed="VMBus and every device on it need it",
        ),
        Enlightenment(
            "time",
            "The reference counter, and a page to compute it from the TSC: Linux's clocksource.",
            Access.TIME_REF_COUNT | Access.REFERENCE_TSC,
            default=True,
        ),
        Enlightenment(
            "frequencies",
            "The frequencies of TSC and local APIC by MSR: Linux calibrates neither.",
            Access.FREQUENCY,
            Feature.FREQUENCY_MSRS,
            default=True,
        ),
        Enlightenment(
            "crash",
            "The registers in which a panicking guest leaves its last log lines.",
            features=Feature.CRASH_MSRS,
            default=True,
        ),
        Enlightenment("reset", "An MSR that resets the machine.", Access.RESET, default=True),
        Enlightenment(
            "stimer",
            "Synthetic timers: Linux uses the first of each CPU for its clock events, instead of the local APIC's.",
            Access.SYNTIMER,
            needs=("synic", "time"),
            why="timers count its reference time",
        ),
        Enlightenment(
            "stimer-direct",
            "Synthetic timers interrupt by a vector of their own instead of a message: Linux's line HVS.",
            features=Feature.STIMER_DIRECT,
            needs=("stimer",),
            why="it is a mode of the timers",
        ),
        Enlightenment(
            "tlbflush",
            "Hypercalls that flush the TLBs of other CPUs: KVM flushes one that is not running when it runs again.",
            hints=Hint.REMOTE_TLB_FLUSH | Hint.EX_PROCESSOR_MASKS,
            engines=("kernel",),
            refused="KVM has no call by which user space flushes a vCPU's TLB",
        ),
        Enlightenment(
            "ipi",
            "Hypercalls that send an interrupt to many CPUs at once.",
            hints=Hint.CLUSTER_IPI | Hint.EX_PROCESSOR_MASKS,
        ),
        Enlightenment(
            "vapic",
            "The local APIC's EOI, ICR and TPR by MSR, and the VP assist page, with which KVM saves EOIs.",
            Access.APIC,
            hints=Hint.APIC_ACCESS,
        ),
        Enlightenment(
            "reenlightenment",
            "Registers by which a host announces another TSC frequency after a migration. pyvmm never migrates.",
            Access.REENLIGHTENMENT,
        ),
        Enlightenment("runtime", "The time that a virtual processor has run, by MSR.", Access.VP_RUNTIME),
        Enlightenment(
            "relaxed",
            "The guest's watchdogs allow for time in which it does not run. Windows heeds it, Linux does not.",
            hints=Hint.RELAXED_TIMING,
        ),
    )
}

DEFAULT = frozenset(name for name, each in TABLE.items() if each.default)


def parse_words(text: str) -> tuple[str, ...]:
    """Parse a list such as `stimer,-crash` to words `+stimer` and `-crash`. Raises ConfigError for unknown names.

    A name may have QEMU's prefix (`hv-stimer`, `hv_stimer`).
    """
    words = []
    for item in text.split(","):
        word = item.strip()
        sign, name = (word[0], word[1:]) if word[:1] in ("+", "-") else ("+", word)
        name = name.replace("_", "-").removeprefix("hv-")
        if not word:
            raise ConfigError("an empty name in a list of enlightenments: write it as stimer,-crash")
        if name not in TABLE and not (name == ALL and sign == "+"):
            known = [*TABLE, ALL]
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close and close[0] != name else f"there are {', '.join(known)}"
            raise ConfigError(f"{word[:40]!r} is no enlightenment: {hint}")
        words.append(sign + name)
    return tuple(words)


def chosen(words: Iterable[str], engine: str | None = None) -> frozenset[str]:
    """Return the names that are on after `words`, in their order, changed the default. Raises ConfigError if they
    contradict each other, or if `engine` lacks one; with None for what at least one engine has.
    """
    names = set(DEFAULT)
    asked = set()
    for word in words:
        sign, name = word[0], word[1:]
        if name == ALL:
            names |= {each.name for each in TABLE.values() if engine is None or engine in each.engines}
        elif sign == "+":
            names.add(name)
            asked.add(name)
        elif TABLE[name].fixed:
            raise ConfigError(f"enlightenment {name} cannot be switched off: {TABLE[name].fixed}")
        else:
            names.discard(name)
            asked.discard(name)
    for name in sorted(names):
        each = TABLE[name]
        for needed in each.needs:
            if needed not in names:
                raise ConfigError(f"enlightenment {name} needs {needed}: {each.why}; add {needed}, or remove {name}")
        if engine is not None and engine not in each.engines and name in asked:
            other = " or ".join(each.engines)
            raise ConfigError(
                f"the {engine} engine has no enlightenment {name}: {each.refused}; "
                f"use --hyperv {other} or leave {name} out"
            )
    return frozenset(name for name in names if engine is None or engine in TABLE[name].engines)


def describe() -> str:
    """Return the table that `--enlightenments help` prints."""
    import textwrap

    lines = [
        "The default is changed by a list of names: `name` or `+name` adds one, `-name` removes one, `all` adds",
        "every one that the engine has. QEMU's prefix hv- may be given.",
        "",
    ]
    width = max(map(len, TABLE))
    for each in TABLE.values():
        state = "always" if each.fixed else "on" if each.default else "off"
        notes = [each.effect]
        if each.needs:
            notes.append(f"Needs {' and '.join(each.needs)}.")
        if each.engines != BOTH:
            notes.append(f"Only --hyperv {', '.join(each.engines)}.")
        first, *rest = textwrap.wrap(" ".join(notes), 112 - width - 10)
        lines.append(f"{each.name:{width}}  {state:7} {first}")
        lines += [f"{'':{width + 10}}{line}" for line in rest]
    return "\n".join(lines)
