"""The reference pages of the book, docs/book/reference: made from the declarations in the code.

    python -m tests.support.reference [--check]        write them anew, or compare them (`make reference`)

They are committed, so that they can be read in the repository; a test compares them. What `pyvmm explain` shows comes
from the same catalogue (`pyvmm.explain`), but with the code that handles each thing.
"""
