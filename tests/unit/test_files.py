from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pyvmm.files import DEPTH_LIMIT, FileBytes, FileError, load_object, parse_json, read_file, read_text, shown


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bound(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return path


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/dev/zero", "it is a device, not a file"),
        ("/dev/null", "it is a device, not a file"),
        ("/", "Is a directory"),
        ("/nonexistent/x", "No such file or directory"),
        ("a\0b", "no file can have such a name"),
        ("x" * 5000, "File name too long"),
        ("\udcff", "No such file or directory"),
    ],
)
def test_what_is_no_file_is_one_line(path: str, text: str) -> None:
    for read in (lambda: read_file(path, 100), lambda: FileBytes(path), lambda: load_object(path, {})):
        with pytest.raises(FileError) as caught:
            read()
        assert text in str(caught.value) and len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_a_fifo_and_a_socket_are_refused_without_waiting(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="it is a pipe"):
        read_file(fifo(tmp_path / "fifo"), 100)
    with pytest.raises(FileError, match="it is a socket"):
        read_file(bound(tmp_path / "sock"), 100)


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100))
    assert read_file(file, 100) == bytes(100)
    with pytest.raises(FileError, match="larger than"):
        read_file(file, 99)


def test_a_file_of_unknown_size_is_read_to_its_end() -> None:
    assert b"Linux" in read_file("/proc/version", 4096)


def test_a_file_cut_after_it_was_opened_is_an_error_not_a_signal(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    opened = FileBytes(file)
    assert len(opened) == 1 << 20 and opened[4:8] == bytes(4)
    os.truncate(file, 100)
    with pytest.raises(FileError, match="became shorter"):
        opened[1000:2000]


def test_text_that_is_no_utf8_is_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"CONFIG_A=\xff\n")
    assert read_text(tmp_path / "file") == "CONFIG_A=\ufffd\n"


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": NaN}', b'{"a": 1e999}',
     b'{"a": ' + b"9" * 5000 + b"}", b'{"a": true}', b'{"a": "x"}', b'{"b": 1}', b'{"a": 1.5}', b'{"a": [1]}'],
)  # fmt: skip
def test_json_of_another_shape_is_a_file_error(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(FileError, match=r"damaged: .*; remove it"):
        load_object(tmp_path / "file", {"a": int})


def test_json_of_the_shape_wanted_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"a": 1, "b": ["x"], "c": {"k": 2}, "d": 1.5, "more": null}')
    found = load_object(tmp_path / "file", {"a": int, "b": [str], "c": {str: int}, "d": (int, float)})
    assert found["b"] == ["x"]


@pytest.mark.parametrize(
    ("text", "value"), [("[NaN]", ["NaN"]), ("[1e999]", ["1e999"]), ("[" + "1" * 30 + "]", ["1" * 30])]
)
def test_numbers_that_cannot_be_calculated_with_stay_text(text: str, value: Any) -> None:
    assert parse_json(text) == value


def test_json_nests_up_to_a_limit() -> None:
    assert parse_json("[" * DEPTH_LIMIT + "]" * DEPTH_LIMIT)
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * (DEPTH_LIMIT + 1) + "]" * (DEPTH_LIMIT + 1))


def test_a_long_name_is_cut_where_it_is_shown() -> None:
    assert len(shown("x" * 10_000)) < 300
