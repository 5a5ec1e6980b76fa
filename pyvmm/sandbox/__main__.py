"""Demo, `python -m pyvmm.sandbox`: confines a process and shows which calls fail in a thread that it starts then."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pyvmm.sandbox.attempts import attempts
from pyvmm.sandbox.confine import confine


def main() -> None:
    """Make a folder with a file and a socket, and run `child` on it in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "secret").write_text("secret\n")
        subprocess.run([sys.executable, "-m", "pyvmm.sandbox", folder], check=True)


def child(folder: Path) -> None:
    """Confine this process, and print which attempts fail."""
    for name, value in confine("on").describe().items():
        print(f"{name:30} {value}")
    thread = threading.Thread(target=lambda: _show(attempts(folder, os.getppid())))
    thread.start()
    thread.join()


def _show(outcomes: dict[str, str]) -> None:
    for name, outcome in outcomes.items():
        print(f"{name:30} {outcome}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(Path(sys.argv[1]))
    else:
        main()
