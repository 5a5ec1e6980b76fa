"""The result of all oracles together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyvmm.testbed.oracles.oracle import Finding

SHORT = 200
"""Characters of a verdict's repr, which pytest shows of a failed assertion; it cuts longer ones in their middle."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the oracles found; true if that is nothing. `str` has all details, `repr` fits into pytest's one line."""

    findings: Sequence[Finding] = ()

    def __bool__(self) -> bool:
        return not self.findings

    def of(self, oracle: str) -> list[Finding]:
        """Return the findings of one oracle."""
        return [each for each in self.findings if each.oracle == oracle]

    def __repr__(self) -> str:
        if not self.findings:
            return "<survived>"
        room = max(30, (SHORT - 20) // len(self.findings))
        lines = [text if len(text) <= room else text[: room - 3] + "..." for text in map(str, self.findings)]
        return f"<{len(lines)} found: {'; '.join(lines)}>"

    def __str__(self) -> str:
        return "\n".join(each.text for each in self.findings) or "the guest survived"
