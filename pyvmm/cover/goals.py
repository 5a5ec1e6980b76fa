"""Least percentages of a module's reachable blocks: "hv_balloon=90,hv_vmbus:protocol=60,hv_utils@6.12=50", which
has a part's and those of one kernel's module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyvmm.cover.figures import Figures
from pyvmm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Goal:
    """The least percentage of one module, or of its part; of all kernels, or of one: "6.12"."""

    module: str
    part: str
    kernel: str
    percent: float

    @property
    def name(self) -> str:
        part = f":{self.part}" if self.part else ""
        return f"{self.module}{part}" + (f"@{self.kernel}" if self.kernel else "")

    def is_of(self, figures: Figures) -> bool:
        """Return whether it is about this module."""
        kernel = figures.seen.kernel
        return self.module == figures.program.name and (not self.kernel or kernel.startswith(f"{self.kernel}."))


def parse_goals(text: str) -> list[Goal]:
    """Return the goals in a text. Raises ConfigError."""
    goals = []
    for word in filter(None, (each.strip() for each in text.split(","))):
        name, _, number = word.partition("=")
        name, _, kernel = name.partition("@")
        module, _, part = name.partition(":")
        try:
            percent = float(number)
        except ValueError:
            percent = -1.0
        if not module or not 0 <= percent <= 100:
            raise ConfigError(
                f"{word!r} is no goal: write MODULE=PERCENT, MODULE:PART=PERCENT or MODULE@6.12=PERCENT"
            )
        goals.append(Goal(module.replace("-", "_"), part, kernel, percent))
    return goals


def missed_goals(goals: Iterable[Goal], figures: Iterable[Figures]) -> list[str]:
    """Return a line for each goal that a module, of whichever kernel, does not reach, or that no module has."""
    wrong = []
    modules = list(figures)
    for goal in goals:
        of_module = [each for each in modules if goal.is_of(each)]
        if not of_module:
            wrong.append(f"{goal.name}: no such module was covered")
        for each in of_module:
            part = each.parts().get(goal.part) if goal.part else each.reached()
            kernel = f" ({each.seen.kernel})" if each.seen.kernel else ""
            if part is None:
                wrong.append(f"{goal.name}{kernel}: the rules name no such part")
            elif part.percent < goal.percent:
                wrong.append(
                    f"{goal.name}{kernel}: {part.percent:.1f} % of the blocks ran, wanted {goal.percent:g} %"
                )
    return wrong
