"""`python -m pyvmm.host exec -- COMMAND`: run a command in an emulated host; also start, stop, status, refresh."""

from __future__ import annotations

import sys
from pathlib import Path

from pyvmm.errors import PyvmmError
from pyvmm.host import commands
from pyvmm.host.client import complain

USAGE = """usage: python -m pyvmm.host exec [--memory MIB] [--forward SOCKET]... [--] COMMAND [ARGUMENT...]
       python -m pyvmm.host start [--memory MIB] [--idle SECONDS] | stop | status | refresh"""


def main(arguments: list[str]) -> int:
    """Run one of the commands and return the exit status."""
    words = list(arguments)
    verb = words.pop(0) if words else ""
    numbers = {"--memory": 0, "--idle": 0}
    sockets: list[Path] = []
    try:
        while words and (words[0] in numbers or words[0] == "--forward"):
            if words[0] == "--forward":
                sockets.append(Path(words[1]))
            else:
                numbers[words[0]] = int(words[1])
            del words[:2]
    except (IndexError, ValueError):
        verb = ""
    if verb == "exec" and words[:1] == ["--"]:
        words.pop(0)
    memory, idle = numbers["--memory"] or None, numbers["--idle"] or None
    try:
        match verb, words:
            case "exec", [_, *_]:
                return commands.execute(words, memory_mib=memory, forward_sockets=sockets, progress=complain)
            case "start", []:
                complain(commands.start(memory_mib=memory, idle_seconds=idle, progress=complain))
            case "stop", []:
                complain(commands.stop())
            case "status", []:
                complain(commands.status())
            case "refresh", []:
                commands.refresh(memory_mib=memory, progress=complain)
            case _:
                complain(USAGE)
                return 2
    except PyvmmError as error:
        complain(f"pyvmm: {error}")
        return 125
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
