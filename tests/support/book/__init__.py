"""The book, docs/book: its list of chapters, the parts of its pages that are generated, its pictures.

    python -m tests.support.book            # write excerpts, outputs and pictures anew
    python -m tests.support.book --check    # fail where a page differs from what would be written

chapters.toml orders the chapters and names the code that each explains. A page holds generated parts between two
comments, so that it is readable as it lies there; `parts` writes them. `hooks` is what MkDocs calls.
"""
