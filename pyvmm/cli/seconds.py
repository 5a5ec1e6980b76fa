"""A click parameter type for options in seconds."""

from __future__ import annotations

from typing import Any

import click

from pyvmm.seconds import LONGEST


class Seconds(click.FloatRange):
    """A number of seconds. Unlike click's FloatRange it refuses NaN, which no bound excludes, and infinity."""

    def __init__(self, min: float = 0, min_open: bool = False) -> None:
        super().__init__(min=min, max=LONGEST, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return found
