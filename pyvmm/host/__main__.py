"""`python -m pyvmm.host exec -- COMMAND`: run a command in an emulated host."""

from __future__ import annotations

import sys

from pyvmm.errors import PyvmmError
from pyvmm.host.client import complain


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    from pyvmm.host.emulated import EmulatedHost

    if len(arguments) < 2 or arguments[0] != "exec":
        complain("usage: python -m pyvmm.host exec [--] COMMAND [ARGUMENT...]")
        return 2
    argv = arguments[2:] if arguments[1] == "--" else arguments[1:]
    try:
        with EmulatedHost.start(progress=complain) as host:
            status = host.run(argv)
    except PyvmmError as error:
        complain(f"pyvmm: {error}")
        return 125
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
