"""What MkDocs calls while it builds the site (mkdocs.yml, `hooks`).

The navigation is the list of chapters, then the reference pages that lie in docs/book/reference, by name; each page's
excerpts are compared with the source; pictures are put into the page as SVG, so that they take the theme's colours.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from mkdocs.exceptions import PluginError  # noqa: E402

from tests.support.book.chapters import BOOK, chapters  # noqa: E402
from tests.support.book.parts import PartError, rewritten  # noqa: E402

_SHIM = re.compile(r"https://[\w.-]+/iframe-worker/shim")
_PICTURE = re.compile(r'<img alt="([^"]*)" src="(?:\.\./)*([\w/.-]+\.svg)"\s*/?>')


def on_config(config: Any) -> Any:
    """Make the navigation."""
    nav: list[dict[str, Any]] = [{"Start": "index.md"}]
    nav.append({"Chapters": [{f"{each.number}. {each.title}": each.page} for each in chapters()]})
    if (BOOK / "notebook.md").exists():
        nav.append({"Notebook": "notebook.md"})
    reference = sorted((BOOK / "reference").glob("*.md"), key=lambda path: (path.name != "index.md", path.name))
    if reference:
        nav.append({"Reference": [{_title(path): f"reference/{path.name}"} for path in reference]})
    config["nav"] = nav
    return config


def _title(path: Path) -> str:
    """The first heading of a page."""
    return next(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fail if an excerpt is not what the source says."""
    try:
        made = rewritten(markdown, outputs=False)
    except PartError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from None
    if made != markdown:
        raise PluginError(f"{page.file.src_uri} has stale excerpts: python -m tests.support.book")
    return markdown


def on_post_page(output: str, page: Any, config: Any, **_: Any) -> str:
    """Load the stand-in for workers from the site itself."""
    return _SHIM.sub(page.url.count("/") * "../" + "worker-from-file.js", output)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Put the pictures of the page into it."""

    def inline(match: re.Match[str]) -> str:
        path = BOOK / match[2]
        if not path.exists() or "pictures" not in match[2]:
            return match[0]
        return f'<figure class="picture" role="img" aria-label="{match[1]}">{path.read_text()}</figure>'

    return _PICTURE.sub(inline, html)
