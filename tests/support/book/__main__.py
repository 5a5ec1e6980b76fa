"""python -m tests.support.book [--check] [PAGE...]: write the generated parts of the book anew, or compare them."""

from __future__ import annotations

import sys

from pyvmm.errors import HostError
from pyvmm.kvm import Kvm
from tests.support.book import notebook, pictures
from tests.support.book.chapters import ROOT
from tests.support.book.parts import PartError, pages, rewritten


def main(arguments: list[str]) -> int:
    """Return the exit status: 1 if a page is stale, or a part cannot be made."""
    check = "--check" in arguments
    try:
        Kvm().close()
        runs = True
    except HostError as error:
        print(f"outputs and pictures stay as they are: {error}", file=sys.stderr)
        runs = False
    wanted = [word for word in arguments if word != "--check"]
    stale = 0
    for page in pages():
        if wanted and not any(word in page.name for word in wanted):
            continue
        text = page.read_text()
        try:
            made = rewritten(text, outputs=runs)
        except PartError as error:
            print(f"{page.relative_to(ROOT)}: {error}", file=sys.stderr)
            stale = 1
            continue
        if made != text:
            stale |= check
            print(f"{page.relative_to(ROOT)} {'is stale: python -m tests.support.book' if check else 'written'}")
            if not check:
                page.write_text(made)
    if not wanted:
        stale |= notebook.update(check=check)
        if runs:
            stale |= pictures.update(check=check)
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
