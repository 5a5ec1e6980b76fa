"""How many methods a class has: one with many has several jobs."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 40
OWN_LIMITS = {"pyvmm/machine/machine.py:Machine": 30}


def test_no_class_has_more_methods_than_one_job_needs() -> None:
    for folder in ("pyvmm", "devices", "firmware", "images"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    name = f"{path.relative_to(ROOT)}:{node.name}"
                    methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
                    limit = OWN_LIMITS.get(name, LIMIT)
                    assert len(methods) <= limit, f"{name} has {len(methods)} methods, of {limit} at most"


def test_the_classes_with_limits_of_their_own_exist() -> None:
    for name in OWN_LIMITS:
        path, _, kind = name.partition(":")
        assert f"class {kind}" in (ROOT / path).read_text()
