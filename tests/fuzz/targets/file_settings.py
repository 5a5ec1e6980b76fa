"""Text that users write and files of ours in cache and runtime folders: sizes, options, TOML, JSON of each shape."""

from __future__ import annotations

from contextlib import suppress

from pyvmm.client import registry
from pyvmm.control.json_stream import Reader
from pyvmm.errors import ConfigError
from pyvmm.files import parse_json, parse_object
from pyvmm.host import daemon, snapshot
from pyvmm.images.kernel_config import KernelConfig, lacking, missing_options
from pyvmm.images.outdated import sources
from pyvmm.launch import probe
from pyvmm.launch.config_file import load
from pyvmm.ram_backend import Backend
from pyvmm.sizes import format_size, is_size, parse_memory, parse_size
from pyvmm.trace import check_pattern
from tests.fuzz.feed import as_file


def toml(data: bytes) -> None:
    """A file of options, and each option's value."""
    with as_file(data) as path, suppress(ConfigError):
        load(path)


def sizes(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with suppress(ConfigError):
        assert parse_size(text) >= 0 and is_size(text) and format_size(parse_size(text))
    for read in (parse_memory, Backend.parse, registry.check_name, check_pattern):
        with suppress(ConfigError):
            read(text)


def kernel_config(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    missing_options(text)
    lacking(KernelConfig(text, "fuzz"), cpus=2)


def kbuild_commands(data: bytes) -> None:
    """A .cmd file of a build tree."""
    for path in sources(data.decode("utf-8", "replace"), "/tree/drivers/hv", "hv_balloon.o"):
        assert path


def json_of_ours(data: bytes) -> None:
    """What is read of a cache: never an exception but ValueError, which makes it anew."""
    for text in (data.decode("utf-8", "replace"), '{"socket": "/x", "pid": 1, ' + data.decode("utf-8", "replace")):
        registry._parse("vm", text.encode())
        for shape in (daemon.RECORD, snapshot.RECORD):
            with suppress(ValueError):
                parse_object(text, shape)
        with suppress(ValueError):
            probe._findings(parse_json(text))


def json_stream(data: bytes) -> None:
    """The monitor's JSON reader: in one piece and byte by byte it finds the same."""
    whole, single = Reader(), Reader()
    expected, found = [], []
    whole.feed(data)
    while (each := whole.next_value()) is not None:
        expected.append(repr(each))
    for byte in data:
        single.feed(bytes([byte]))
        while (each := single.next_value()) is not None:
            found.append(repr(each))
    assert found == expected


TARGETS = {
    "file_toml": toml,
    "file_sizes": sizes,
    "file_kernel_config": kernel_config,
    "file_kbuild_commands": kbuild_commands,
    "file_json": json_of_ours,
    "file_json_stream": json_stream,
}
