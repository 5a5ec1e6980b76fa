"""docs/examples/mirror.py for tests: the module, and its row in the table of devices."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from pyvmm.machine.devices import Kind

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "examples" / "mirror.py"
DOCUMENT = ROOT / "docs" / "adding-a-device.md"


def load() -> ModuleType:
    """The example's module; the same each time, for events are declared once."""
    if "mirror_example" not in sys.modules:
        spec = importlib.util.spec_from_file_location("mirror_example", SOURCE)
        assert spec is not None and spec.loader is not None
        module = sys.modules["mirror_example"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["mirror_example"]


ROW = {"mirror": Kind(lambda parts: load().Mirror(), "mirror_example", several=True)}
