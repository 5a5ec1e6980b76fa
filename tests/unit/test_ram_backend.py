"""What guest RAM is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm import ram_backend as module
from pyvmm.errors import ConfigError, HostError
from pyvmm.ram_backend import Backend

MIB = 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "anon",
        "memfd",
        "file=/tmp/ram",
        "hugetlb=2M",
        "hugetlb=1G",
        "memfd,prealloc=on",
        "hugetlb=2M,prealloc=on,numa=3",
    ],
)
def test_a_backend_reads_as_it_is_written(text: str) -> None:
    assert str(Backend.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "ram", "anon=1", "file", "file=", "hugetlb", "hugetlb=4M", "hugetlb=x", "anon,", "anon,prealloc=yes",
     "anon,numa=-1", "anon,numa=9999", "memfd,share=on"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Backend.parse(text)


@pytest.mark.parametrize("text", ["anon", "memfd", "anon,prealloc=on", "memfd,prealloc=on"])
def test_pieces_are_memory_that_can_be_given_back(text: str) -> None:
    pool = Backend.parse(text).open(2 * MIB)
    one, two = pool.take(MIB), pool.take(MIB)
    pool.close()
    one.view[:3], two.view[:3] = b"one", b"two"
    assert bytes(one.view[:3]) == b"one"
    two.discard(0, MIB)
    assert (bytes(one.view[:3]), bytes(two.view[:3])) == (b"one", bytes(3))


def test_a_file_holds_what_the_guest_has(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    pool = Backend.parse(f"file={path}").open(2 * MIB)
    pool.take(MIB)
    pool.take(MIB).view[:4] = b"here"
    assert path.read_bytes()[MIB : MIB + 4] == b"here"


def test_a_file_of_ours_starts_empty_again(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"x" * MIB)
    assert bytes(Backend.parse(f"file={path}").open(MIB).take(MIB).view[:1]) == b"\0"


def test_a_file_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_text("dear")
    with pytest.raises(ConfigError, match="something else"):
        Backend.parse(f"file={path}").open(MIB)
    assert path.read_text() == "dear"


def test_one_file_is_one_machine_s(tmp_path: Path) -> None:
    text = f"file={tmp_path / 'ram'}"
    pool = Backend.parse(text).open(MIB)
    memory = pool.take(MIB)
    pool.close()
    with pytest.raises(ConfigError, match="another machine"):
        Backend.parse(text).open(MIB)
    memory.close()


def test_in_a_folder_the_file_has_no_name(tmp_path: Path) -> None:
    Backend.parse(f"file={tmp_path}").open(MIB).take(MIB).view[:1] = b"x"
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_none_can_be_is_the_host_s_refusal() -> None:
    with pytest.raises(HostError, match="No such file"):
        Backend.parse("file=/nowhere/ram").open(MIB)


def test_huge_pages_that_are_not_set_aside_are_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hugepages-2048kB"
    folder.mkdir()
    (folder / "free_hugepages").write_text("1\n")
    (folder / "nr_hugepages").write_text("5\n")
    monkeypatch.setattr(module, "HUGE_PAGES", tmp_path)
    with pytest.raises(HostError, match=r"4 huge pages needed, 1 free; echo 8 > "):
        Backend.parse("hugetlb=2M").open(8 * MIB)
    with pytest.raises(ConfigError, match="no huge pages of that size"):
        Backend.parse("hugetlb=1G").open(1 << 30)


def test_a_missing_numa_node_is_reported() -> None:
    with pytest.raises(ConfigError, match="no NUMA node 999"):
        Backend.parse("anon,numa=999").open(MIB)


@pytest.mark.skipif(not Path("/sys/devices/system/node/node0").is_dir(), reason="this host's Linux knows no NUMA")
def test_memory_can_be_bound_to_a_node() -> None:
    try:
        Backend.parse("anon,numa=0").open(MIB).take(MIB)
    except HostError as error:
        if "Operation not permitted" in str(error) or "not implemented" in str(error):
            pytest.skip(f"mbind is not allowed here: {error}")
        raise


def test_huge_pages_are_given_back_whole() -> None:
    """With an ordinary memfd that says its pages are 64 KiB."""
    pool = Backend("memfd", page_size=65536).open(MIB)
    memory = pool.take(MIB)
    memory.view[:] = b"x" * MIB
    memory.discard(4096, 65536 + 8192)
    assert bytes(memory.view[4096:4097]) == b"x"
    memory.discard(4096, 2 * 65536)
    assert bytes(memory.view[65535:65537]) == b"x\0"
    assert bytes(memory.view[2 * 65536 : 2 * 65536 + 1]) == b"x"
