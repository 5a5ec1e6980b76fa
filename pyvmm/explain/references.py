"""Finds where our code uses a name: the functions that handle a message, an MSR, a status.

A use counts only if the name resolves, through the file's imports, to the declaration itself. `case` patterns and
comparisons come first, since they are where something is dispatched; uses inside the declaring module are left out
unless a function of it handles the name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pyvmm.explain.declared import ROOT, Place, shown_path

_PACKAGE = Path(__file__).resolve().parents[1]
_LEFT_OUT = ("explain", "testbed", "cli", "analysis", "decode", "images", "step")
"""Packages that handle nothing of a guest's."""

_RANKS = {"case": 0, "key": 1, "compare": 2, "use": 3}


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a name."""

    place: Place
    doc: str
    """The first sentence of the function around it."""
    rank: int


@dataclass(frozen=True, slots=True)
class _Mention:
    """A name or attribute in a file: its expression, the classes and functions around it, and its role."""

    node: ast.expr
    scope: tuple[ast.AST, ...]
    role: str


@dataclass(slots=True)
class _File:
    path: Path
    module: str
    text: str
    tree: ast.Module | None = None
    mentions: dict[str, list[_Mention]] | None = None
    """Names and attributes by their last part."""
    imports: list[ast.Import | ast.ImportFrom] | None = None

    def parsed(self) -> ast.Module:
        if self.tree is None:
            self.tree = ast.parse(self.text)
        return self.tree

    def mentioned(self, name: str) -> list[_Mention]:
        if self.mentions is None:
            self.mentions = {}
            _collect(self.parsed(), (), "use", self.mentions)
        return self.mentions.get(name, [])

    def imported(self) -> list[ast.Import | ast.ImportFrom]:
        if self.imports is None:
            self.imports = [each for each in ast.walk(self.parsed()) if isinstance(each, ast.Import | ast.ImportFrom)]
        return self.imports


def _collect(node: ast.AST, scope: tuple[ast.AST, ...], role: str, found: dict[str, list[_Mention]]) -> None:
    """Collect the names and attributes below `node`; annotations are left out."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            found.setdefault(name, []).append(_Mention(node, scope, role))
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body) | ast.ClassDef(body=body):
            for statement in body:
                _collect(statement, (*scope, node), "use", found)
            return
        case ast.AnnAssign(value=value):
            if value is not None:
                _collect(value, scope, role, found)
            return
        case ast.match_case(pattern=pattern, guard=guard, body=body):
            _collect(pattern, scope, "case", found)
            if guard is not None:
                _collect(guard, scope, "case", found)
            for statement in body:
                _collect(statement, scope, "use", found)
            return
        case ast.Dict(keys=keys, values=values):
            for key in filter(None, keys):
                _collect(key, scope, "key", found)
            for each in values:
                _collect(each, scope, "use", found)
            return
        case ast.Compare():
            role = "compare"
    for child in ast.iter_child_nodes(node):
        _collect(child, scope, role, found)


@cache
def _files() -> tuple[_File, ...]:
    """Return our source files, those behind the links pyvmm/devices, firmware and images too."""
    made: list[_File] = []
    for folder in sorted(each for each in _PACKAGE.iterdir() if each.is_dir() and each.name not in _LEFT_OUT):
        for path in sorted(folder.rglob("*.py")):
            made.append(_File(path, _module_of(path), path.read_text(encoding="utf-8")))
    made += [
        _File(path, _module_of(path), path.read_text(encoding="utf-8")) for path in sorted(_PACKAGE.glob("*.py"))
    ]
    return tuple(made)


def _module_of(path: Path) -> str:
    parts = ("pyvmm", *path.relative_to(_PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def all_modules() -> Iterator[tuple[str, str]]:
    """Yield the name and source of each of our modules, but for those that handle nothing."""
    for file in _files():
        yield file.module, file.text


def uses(module: str, *names: str) -> list[Use]:
    """Return the uses of a declaration of a module, a class's member for two names; the dispatching ones first."""
    found: dict[str, Use] = {}
    for file in _files():
        if not all(name in file.text for name in names):
            continue
        for use in _uses_in(file, module, names):
            key = f"{use.place.path} {use.place.symbol}"
            if key not in found or use.rank < found[key].rank:
                found[key] = use
    return sorted(found.values(), key=lambda use: (use.rank, use.place.path, use.place.line))


def _uses_in(file: _File, module: str, names: tuple[str, ...]) -> Iterator[Use]:
    direct, modules = _bound(file, module, names[0])
    if not direct and not modules:
        return
    own = file.module == module
    last = {names[-1]} if len(names) > 1 else {names[0], *direct}
    for mention in (each for name in last for each in file.mentioned(name)):
        if _is(mention.node, names, direct, modules) and not (own and not _function(mention.scope)):
            yield _use(file, mention.node, mention.scope, mention.role)


def _is(node: ast.expr, names: tuple[str, ...], direct: set[str], modules: set[str]) -> bool:
    """Return whether an expression is `names`, through a name that stands for the first or for its module."""
    first, *members = names
    for member in reversed(members):
        if not (isinstance(node, ast.Attribute) and node.attr == member):
            return False
        node = node.value
    if isinstance(node, ast.Name):
        return node.id in direct
    return isinstance(node, ast.Attribute) and node.attr == first and _dotted(node.value) in modules


def _use(file: _File, node: ast.expr, scope: tuple[ast.AST, ...], role: str) -> Use:
    named = [each for each in scope if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    symbol = ".".join(each.name for each in named)
    doc = next((ast.get_docstring(each) or "" for each in reversed(named)), "")
    return Use(Place(shown_path(file.path), node.lineno, symbol), first_sentence(doc), _RANKS[role])


def first_sentence(doc: str) -> str:
    """Return the first sentence of a docstring, on one line."""
    return " ".join(doc.strip().split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def _function(scope: Iterable[ast.AST]) -> bool:
    return any(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in scope)


def _bound(file: _File, module: str, name: str) -> tuple[set[str], set[str]]:
    """Return the names in a file that stand for `name` of a module, and those that stand for the module."""
    direct = {name} if file.module == module else set()
    modules: set[str] = set()
    package, _, last = module.rpartition(".")
    for node in file.imported():
        match node:
            case ast.ImportFrom(module=origin, names=names):
                for alias in names:
                    if origin == module and alias.name == name:
                        direct.add(alias.asname or name)
                    elif origin == package and alias.name == last:
                        modules.add(alias.asname or last)
                    elif origin is not None and alias.name == name and _reexports(origin, module, name):
                        direct.add(alias.asname or name)
            case ast.Import(names=names):
                modules.update(alias.asname or alias.name for alias in names if alias.name == module)
    return direct, modules


@cache
def _reexports(origin: str, module: str, name: str) -> bool:
    """Return whether a package's `__init__` passes on a name of one of its modules."""
    if not module.startswith(origin + "."):
        return False
    found = next((file for file in _files() if file.module == origin), None)
    return found is not None and any(
        isinstance(node, ast.ImportFrom) and node.module == module and any(alias.name == name for alias in node.names)
        for node in found.parsed().body
    )


def _dotted(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{_dotted(value)}.{attr}"
    return ""


def exists(place: Place) -> bool:
    """Return whether a place's file exists and has its line."""
    path = ROOT / place.path
    return path.is_file() and place.line <= len(path.read_text(encoding="utf-8").splitlines())
