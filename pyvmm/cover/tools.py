"""Imports of the extra `pyvmm[cover]`, on use."""

from __future__ import annotations

import importlib
from typing import Any, Final

from pyvmm.errors import ConfigError

_COMMAND: Final = "pip install 'pyvmm[cover]'"


def load(module: str) -> Any:
    """Return capstone's or pyelftools' module. Raises ConfigError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"elftools": "pyelftools"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ConfigError(f"coverage needs {package}, which is not installed: {_COMMAND}") from None
