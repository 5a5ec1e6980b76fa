"""What `pyvmm run` checks again in the emulated host, where a process outside may have checked it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.commands.run import _config
from pyvmm.launch.options import GuestOptions
from pyvmm.paths import INSIDE

IMAGE = GuestOptions(console="none")
TREE = GuestOptions(console="none", kdir=Path("tree"))


@pytest.mark.parametrize(
    ("options", "inside", "forwarded", "checked"),
    [
        (TREE, False, False, True),
        (TREE, True, True, False),
        (TREE, True, False, True),  # `pyvmm host exec -- pyvmm run --kdir tree`, after another `make`
        (IMAGE, False, False, True),
        (IMAGE, True, True, False),
        (IMAGE, True, False, False),
    ],
)
def test_a_tree_is_looked_at_unless_the_process_outside_just_has(
    options: GuestOptions, inside: bool, forwarded: bool, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("pyvmm.launch.build.build_config", lambda options, **fields: given.update(fields))
    if inside:
        monkeypatch.setenv(INSIDE, "1")
    else:
        monkeypatch.delenv(INSIDE, raising=False)
    _config(options, forwarded=forwarded)
    assert given["validate"] == checked
