"""What `pyvmm status` says of the memory."""

from __future__ import annotations

import pytest

from pyvmm.client.replies import RESIDENT_SLACK, memory_text

MIB = 1 << 20


@pytest.mark.parametrize(("more", "said"), [(RESIDENT_SLACK, False), (RESIDENT_SLACK + 1, True)])
def test_a_guest_that_uses_returned_memory_is_reported(more: int, said: bool) -> None:
    text = memory_text(
        {"boot": 512 * MIB, "actual": 128 * MIB, "target": 128 * MIB, "resident": 128 * MIB + more}, {}
    )
    assert text.startswith("128 MiB of 512 MiB; 384 MiB resident on the host")
    assert ("it uses pages that it gave back" in text) == said
