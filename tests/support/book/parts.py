"""The generated parts of the book's pages: excerpts of source files, and what the examples print.

A part lies between two comments, which GitHub and the site do not show:

    <!-- code pyvmm/kvm/vm.py Vm.set_memory -->      a function, a method, a class or an assignment, by its name
    <!-- code pyvmm/wire.py Wire nodoc -->           without its docstring;  `head`: no further than its docstring
    <!-- code docs/book/examples/ch01_first_guest.py -->      a whole file
    <!-- output docs/book/examples/ch01_first_guest.py -->    what it prints
    <!-- chapters -->                                 the list of chapters
    <!-- end -->

The build of the site and a test fail when a part is not what the source says now.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.support.book.chapters import BOOK, ROOT, chapters

_PART = re.compile(r"^( *)<!-- (code|output|chapters) ?(.*?) ?-->\n(.*?)<!-- end -->", re.DOTALL | re.MULTILINE)
RUN_LIMIT = 60.0


class PartError(Exception):
    """A part that cannot be made: no such file or name."""


def pages() -> list[Path]:
    """The pages written by hand, in no special order; generated reference pages have no parts."""
    return sorted(path for path in BOOK.rglob("*.md") if "reference" not in path.relative_to(BOOK).parts)


def rewritten(text: str, *, outputs: bool) -> str:
    """Return a page with its parts made anew; without `outputs` what examples print stays as it is."""

    def part(match: re.Match[str]) -> str:
        indent, kind, words = match[1], match[2], match[3].split()
        if kind == "output" and not outputs:
            return match[0]
        body = _output(words[0]) if kind == "output" else _code(words) if kind == "code" else _chapters()
        head = match[0].splitlines()[0].strip()
        return textwrap.indent(f"{head}\n\n{body}\n<!-- end -->", indent)

    return _PART.sub(part, text)


def sources(text: str) -> Iterator[str]:
    """The source files of which a page has excerpts."""
    for _, kind, words, _ in _PART.findall(text):
        if kind == "code":
            yield words.split()[0]


def _code(words: list[str]) -> str:
    path, symbol, *options = *words, ""
    options = [option for option in options if option]
    try:
        text = (ROOT / path).read_text()
    except OSError as error:
        raise PartError(f"{path}: {error.strerror}") from None
    if symbol:
        text = excerpt(text, symbol, *options)
    return f'```python title="{path}"\n{text.rstrip()}\n```\n'


def excerpt(text: str, symbol: str, *options: str) -> str:
    """Return the lines of a definition, without indentation. Raises PartError."""
    tree = ast.parse(text)
    node: ast.AST = tree
    for name in symbol.split("."):
        node = _find(node, name, symbol)
    lines = text.splitlines()
    first, last = node.lineno, node.end_lineno or node.lineno  # type: ignore[attr-defined]
    decorators = getattr(node, "decorator_list", [])
    first = min([first, *(each.lineno for each in decorators)])
    kept = list(range(first, last + 1))
    if options:
        body = node.body  # type: ignore[attr-defined]
        doc = body[0]
        if ast.get_docstring(node) is None:  # type: ignore[arg-type]
            raise PartError(f"{symbol} has no docstring")
        if "nodoc" in options:
            kept = [n for n in kept if not doc.lineno <= n <= doc.end_lineno]
        elif "head" in options:
            kept = [n for n in kept if n <= doc.end_lineno]
        else:
            raise PartError(f"{symbol}: no such option {options}")
    return textwrap.dedent("\n".join(lines[n - 1] for n in kept))


def _find(node: ast.AST, name: str, symbol: str) -> ast.AST:
    for child in getattr(node, "body", []):
        match child:
            case ast.FunctionDef() | ast.ClassDef() if child.name == name:
                return child
            case ast.Assign(targets=[ast.Name(id=found)]) | ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                return child
    raise PartError(f"no {symbol}: {name} is not defined there")


def run(path: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the book as a reader does."""
    return subprocess.run(
        [sys.executable, str(path)], cwd=ROOT, text=True, capture_output=True, timeout=RUN_LIMIT, check=False
    )


def _chapters() -> str:
    return "".join(f"{each.number}. [{each.title}]({each.page})\n" for each in chapters())


def _output(path: str) -> str:
    done = run(ROOT / path)
    if done.returncode:
        raise PartError(f"{path} ended with status {done.returncode}: {done.stderr}")
    return f"```text\n{done.stdout.rstrip()}\n```\n"
