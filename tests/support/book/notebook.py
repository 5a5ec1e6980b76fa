"""The notebook of the book as a page of the site: notebook.ipynb with its stored outputs -> notebook.md."""

from __future__ import annotations

import json

from tests.support.book.chapters import BOOK, PICTURES

NOTEBOOK, PAGE = BOOK / "notebook.ipynb", BOOK / "notebook.md"
ALT = "Drawn by the cell above"


def page() -> tuple[str, dict[str, str]]:
    """Return the page, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, str] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            for kind, data in output.get("data", {}).items():
                if kind == "image/svg+xml":
                    name = f"notebook-{len(pictures) + 1}.svg"
                    pictures[name] = "".join(data).rstrip() + "\n"
                    parts.append(f"![{ALT}](pictures/{name})")
    return "\n\n".join(parts) + "\n", pictures


def update(*, check: bool) -> int:
    """Write page and pictures; with `check` compare them instead. Returns 1 if one differs."""
    text, pictures = page()
    stale = 0
    for path, made in [(PAGE, text), *((PICTURES / name, svg) for name, svg in pictures.items())]:
        if path.exists() and path.read_text() == made:
            continue
        stale |= check
        print(f"{path.name} {'is stale: python -m tests.support.book' if check else 'written'}")
        if not check:
            path.write_text(made)
    return stale
