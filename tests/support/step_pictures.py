"""Draws docs/step.svg and docs/map.svg anew: `python -m tests.support.step_pictures`. Needs /dev/kvm."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pyvmm.analysis import page_map
from pyvmm.cli.commands.top import self_contained
from pyvmm.images.tiny.kernel import MEMORY, write_kernel
from pyvmm.loop import Loop
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.machine import Machine

DOCS = Path(__file__).parents[2] / "docs"
WIDTH = 100
WORDS = "7p"
HEIGHT = 34


def step_picture() -> str:
    """A stop at the guest's answer to a balloon request, as a terminal shows it."""
    child, master = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(WIDTH), LINES="60")
        os.execv(sys.executable, [sys.executable, "-m", "pyvmm", "step", "--script", WORDS])
    shown = b""
    while True:
        if select.select([master], [], [], 30)[0]:
            try:
                shown += os.read(master, 4096)
            except OSError:
                break
    os.waitpid(child, 0)
    text = "(step) " + WORDS + "\n" + shown.decode().replace("\r", "")
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text))
    return self_contained(console.export_svg(title="pyvmm step"))


def map_picture() -> str:
    """The map of the built-in guest with a quarter of its memory out."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop()
        kernel = write_kernel(Path(folder) / "tiny")
        config = MachineConfig(kernel=kernel, memory=MEMORY, name="tiny")
        with Machine(config, loop) as machine:
            machine.start()
            assert machine.balloon is not None

            def finished(_outcome: object) -> None:
                found.append(page_map.svg(machine.monitor.page_map()))
                machine.quit()

            machine.balloon.on_finish.append(finished)
            machine.monitor.balloon_set(MEMORY * 3 // 4)
            machine.run()
        loop.close()
    return found[0]


def main() -> None:
    """Write both."""
    (DOCS / "step.svg").write_text(re.sub(r"terminal-\d+", "terminal-step", step_picture()))
    (DOCS / "map.svg").write_text(map_picture())
    subprocess.run(["ls", "-l", str(DOCS / "step.svg"), str(DOCS / "map.svg")], check=True)


if __name__ == "__main__":
    main()
