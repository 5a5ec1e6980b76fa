"""python -m tests.support.reference [--check]: write the reference pages, or compare them."""

from __future__ import annotations

import sys

from tests.support.reference.pages import BOOK, made


def main(arguments: list[str]) -> int:
    """Return the exit status: 1 if `--check` finds a page that is not what the declarations say."""
    stale = 0
    for name, text in made().items():
        path = BOOK / name
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in arguments:
            print(f"docs/book/{name} is stale: make reference", file=sys.stderr)
            stale = 1
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"docs/book/{name} written")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
