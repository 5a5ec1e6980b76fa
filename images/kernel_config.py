"""The check of a kernel's configuration against kernel.config, the options that pyvmm needs."""

from __future__ import annotations

from pathlib import Path

FRAGMENT = Path(__file__).parent / "kernel.config"


def options(config_text: str) -> dict[str, str]:
    """Return CONFIG_ names and values of a .config, without unset ones."""
    found = {}
    for line in config_text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and name.startswith("CONFIG_"):
            found[name] = value
    return found


def missing_options(config_text: str) -> list[str]:
    """Return the fragment's lines that `config_text` does not fulfil, e.g. `CONFIG_HYPERV_BALLOON=m`. y fulfils m."""
    have = options(config_text)
    missing = []
    for name, wanted in options(FRAGMENT.read_text()).items():
        value = have.get(name, "n")
        if not (value == wanted or (wanted == "m" and value == "y")):
            missing.append(f"{name}={wanted}")
    return missing
