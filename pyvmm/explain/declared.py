"""Reads what the source says about a declaration: docstrings, comments, lines, and the `Source:` of its module.

Source: this project's own files. Nothing is told twice: an enumeration's member is explained by the string behind it,
as a constant is, or by the comment in its line; where it comes from stands in the class's or module's docstring.

    class Msr(IntEnum):
        \"\"\"HV_X64_MSR_*: the synthetic MSRs.

        Source: TLFS, "Hypercall Interface"; Linux include/hyperv/hvgdk_mini.h.
        \"\"\"

        SIMP = 0x40000083
        \"\"\"SYMBOL: what it is. TLFS, "SIMP Register".\"\"\"

SYMBOL is the name in Linux, needed only where the class's `HV_X64_MSR_*` and the member's name do not make it.
Members that differ in digits (SINT0, SINT1) share one explanation.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pyvmm

ROOT = Path(pyvmm.__file__).resolve().parents[1]
"""The folder to which the paths shown are relative: a checkout, or site-packages."""

_SYMBOL = re.compile(r"^(?:([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?=:)|((?:struct|union|enum) [a-z0-9_]+)(?=[:,.;]|$))")
_SECTIONS = re.compile(
    r'\s*(?:TLFS|KVM API|MS-RNDIS|SPC-5|SBC-4)(?:,? (?:"[^"]+"|[0-9][0-9.]*[0-9]|[0-9]+)(?: and)?)+\.?'
)
_SOURCE = re.compile(r"Sources?: *")
_PATH = re.compile(r"^(?:[\w{},.*+-]+/)+[\w{},.*+-]+")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of one of our files; `symbol` is the class or function around it."""

    path: str
    line: int
    symbol: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" + (f"  {self.symbol}" if self.symbol else "")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a declaration comes from: sections of specifications, and places in Linux (`path, symbols`)."""

    spec: tuple[str, ...] = ()
    linux: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """A docstring taken apart: the Linux symbol it opens with, sections it names, and the rest."""

    symbol: str = ""
    spec: tuple[str, ...] = ()
    text: str = ""

    @property
    def first(self) -> str:
        """Return the first sentence."""
        return re.split(r"(?<=[.!?])\s+(?=[A-Z`\"(])", self.text, maxsplit=1)[0]


@dataclass(slots=True)
class Declaration:
    """A class, function or constant in the source: its docstring or comment, and its members."""

    name: str
    line: int
    doc: str = ""
    members: dict[str, Declaration] = field(default_factory=dict)


@dataclass(slots=True)
class Module:
    """A module's source, taken apart."""

    name: str
    path: str
    doc: str
    tree: ast.Module
    top: dict[str, Declaration]

    def place(self, *names: str) -> Place:
        """Return where a declaration stands; `names` go from a class to its member."""
        found = self.find(*names)
        return Place(self.path, found.line if found else 1)

    def find(self, *names: str) -> Declaration | None:
        """Return a declaration by its name and those around it."""
        found: Declaration | None = None
        among = self.top
        for name in names:
            found = among.get(name)
            if found is None:
                return None
            among = found.members
        return found


def shown_path(path: Path) -> str:
    """Return a source file's path as it is shown: from the checkout, or from site-packages."""
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError:
        return str(path)


@cache
def source_file(module: str) -> Path:
    """Return the file of one of our modules."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, f"no module {module}"
    return Path(spec.origin)


@cache
def read(module: str) -> Module:
    """Read a module's source."""
    path = source_file(module)
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    comments = _comments(text)
    return Module(module, shown_path(path), ast.get_docstring(tree) or "", tree, _body(tree.body, comments))


def _comments(text: str) -> dict[int, str]:
    """Return the comment that ends each line, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = {each.start[0]: each.string.lstrip("# ") for each in tokens if each.type == tokenize.COMMENT}
    lines = text.splitlines()
    return {line: comment for line, comment in found.items() if not lines[line - 1].lstrip().startswith("#")}


def _body(body: list[ast.stmt], comments: dict[int, str]) -> dict[str, Declaration]:
    made: dict[str, Declaration] = {}
    for number, node in enumerate(body):
        match node:
            case ast.ClassDef(name=name):
                doc = ast.get_docstring(node) or ""
                made[name] = Declaration(name, node.lineno, doc, _body(node.body, comments))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                made[name] = Declaration(name, node.lineno, ast.get_docstring(node) or "")
            case ast.Assign(targets=targets):
                after = _string_after(body, number) or comments.get(node.end_lineno or 0, "")
                for target in targets:
                    for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                        if isinstance(each, ast.Name):
                            made[each.id] = Declaration(each.id, node.lineno, after)
            case ast.AnnAssign(target=ast.Name(id=name)):
                after = _string_after(body, number) or comments.get(node.end_lineno or 0, "")
                made[name] = Declaration(name, node.lineno, after)
    return made


def _string_after(body: list[ast.stmt], number: int) -> str:
    match body[number + 1 : number + 2]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return text
    return ""


def member_doc(module: str, cls: str, member: str) -> str:
    """Return a member's explanation: its own, or that of a member that differs from it in digits only."""
    found = read(module).find(cls)
    if found is None or member not in found.members:
        return ""
    if found.members[member].doc:
        return found.members[member].doc
    stem = re.sub(r"\d+", "0", member)
    same = (each.doc for name, each in found.members.items() if re.sub(r"\d+", "0", name) == stem and each.doc)
    return next(same, "")


def split(doc: str) -> Text:
    """Take a docstring apart: symbol, sections, text. The paragraph `Source:` is left to `origin`."""
    text = " ".join(paragraph for paragraph in _paragraphs(doc) if not _SOURCE.match(paragraph))
    symbol = ""
    if found := _SYMBOL.match(text):
        symbol = found[1] or found[2]
        text = text[found.end() :].lstrip(":,.; ")
    spec = tuple(each.strip(" .") for each in _SECTIONS.findall(text))
    text = _SECTIONS.sub("", text).strip()
    return Text(symbol, spec, text[:1].upper() + text[1:])


def _paragraphs(doc: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", doc.strip())]


def origin(module: str, cls: str = "") -> Origin:
    """Return where a class comes from: the `Source:` of its docstring, else its module's."""
    read_module = read(module)
    found = read_module.find(cls) if cls else None
    for doc in (found.doc if found else "", read_module.doc):
        for paragraph in _paragraphs(doc):
            if _SOURCE.match(paragraph):
                return _origin(_SOURCE.sub("", paragraph, count=1))
    return Origin()


def _origin(text: str) -> Origin:
    """Sort the parts of a `Source:` paragraph, which semicolons separate."""
    spec: list[str] = []
    linux: list[str] = []
    for part in re.split(r";\s+", re.split(r"(?<=[a-z0-9_)*\"\]}])\. (?=[A-Z])", text, maxsplit=1)[0].rstrip(".")):
        if "Documentation/virt/kvm/api.rst" in part:
            spec.append(part.removeprefix("Linux "))
        elif part.startswith("Linux ") or (linux and _PATH.match(part)):
            linux.append(part.removeprefix("Linux "))
        else:
            spec.append(part.removeprefix("Microsoft "))
    return Origin(tuple(spec), tuple(linux))


def class_prefix(doc: str) -> str:
    """Return the prefix of Linux's names that a class's docstring opens with: `HV_STATUS_*` gives HV_STATUS_."""
    found = re.match(r"([A-Z][A-Z0-9_]*_)\*", doc.strip())
    return found[1] if found else ""
