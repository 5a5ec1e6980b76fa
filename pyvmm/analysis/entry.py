"""One event of a trace that was recorded: what the readers give, and what diff and the report look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyvmm import trace


@dataclass(slots=True)
class Entry:
    """One event. `time` in seconds from some beginning; 0 where the file tells none."""

    time: float
    name: str
    thread: str
    fields: dict[str, Any]

    def number(self, name: str, default: int = 0) -> int:
        """A field as a number, `default` if it is none: files are anybody's."""
        value = self.fields.get(name)
        return value if isinstance(value, int) else default

    def text(self, name: str) -> str:
        """A field as text, empty if it is not there."""
        value = self.fields.get(name)
        return "" if value is None else str(value)

    def message(self, template: str | None = None) -> str:
        """The fields as the event's declaration, or `template`, formats them; `name=value` if that does not do."""
        if template is None:
            event = trace.find(self.name)
            template = None if event is None else event.template
        if template is not None:
            try:
                return trace.fill(template, self.fields)
            except (ValueError, TypeError, LookupError):
                pass
        if self.fields.keys() == {"text"}:
            return self.text("text")
        return " ".join(f"{key}={value}" for key, value in self.fields.items())
