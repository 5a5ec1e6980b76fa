"""One event of a recorded trace, as the readers return it and diff and the report use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyvmm import trace


@dataclass(slots=True)
class Entry:
    """One event. `time` in seconds from an arbitrary origin; 0 where the file has none."""

    time: float
    name: str
    thread: str
    fields: dict[str, Any]

    def number(self, name: str, default: int = 0) -> int:
        """Return a field as a number, `default` if it is none: files are untrusted."""
        value = self.fields.get(name)
        return value if isinstance(value, int) else default

    def text(self, name: str) -> str:
        """Return a field as text, empty if it is absent."""
        value = self.fields.get(name)
        return "" if value is None else str(value)

    def message(self, template: str | None = None) -> str:
        """Format the fields by the event's declaration, or by `template`; as `name=value` if they do not fit."""
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
