"""The book's notebook runs from its first cell to its last, and prints what is stored in it."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from pyvmm.launch.probe import probe
from tests.support.book import notebook
from tests.support.book.chapters import PICTURES, ROOT

pytestmark = [pytest.mark.kvm, pytest.mark.own_process]

LIMIT = 120


@pytest.fixture
def client() -> Any:
    """The package that runs notebooks, which `make book` installs."""
    try:
        import ipykernel  # noqa: F401
        import nbclient
    except ImportError:
        if os.environ.get("CI"):
            pytest.fail("nbclient or ipykernel is missing: make book")
        pytest.skip("nbclient or ipykernel is missing: make book installs them")
    return nbclient


def outputs(cells: Any, kind: str) -> list[str]:
    return [
        "".join(each.get("text") or each["data"].get(kind, ""))
        for cell in cells
        for each in cell.get("outputs", [])
        if "text" in each or kind in each.get("data", {})
    ]


def test_the_notebook_runs_and_prints_what_is_stored_in_it(client: Any) -> None:
    import nbformat

    if not probe().usable and shutil.which("qemu-system-x86_64") is None:
        pytest.skip(f"{probe().reason}, and qemu-system-x86_64 is missing for the emulated host")
    stored = nbformat.read(notebook.NOTEBOOK, as_version=4)
    before = [text for text in outputs(stored.cells, "none") if text]
    runner = client.NotebookClient(stored, timeout=LIMIT, kernel_name="python3")
    runner.execute(cwd=str(ROOT))
    assert [text for text in outputs(stored.cells, "none") if text] == before
    drawn = [text for text in outputs(stored.cells, "image/svg+xml") if text.startswith("<svg")]
    assert len(drawn) == 2 and "INITIATE_CONTACT" in drawn[1]


def test_the_page_of_the_notebook_is_what_it_says() -> None:
    text, pictures = notebook.page()
    assert notebook.PAGE.read_text() == text, "python -m tests.support.book writes it anew"
    assert {name: (PICTURES / name).read_text() for name in pictures} == pictures
