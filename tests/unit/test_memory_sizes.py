"""How memory is asked for: `512M,max=4G`."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from click.testing import CliRunner

from pyvmm.cli.commands.run import run
from pyvmm.cli.guest_options import options_of
from pyvmm.errors import ConfigError
from pyvmm.launch.build import machine_config
from pyvmm.sizes import MemorySpec, exact_size, parse_memory, parse_size

M, G = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("512M", MemorySpec(512 * M)),
        ("512", MemorySpec(512 * M)),
        ("1536M,max=4G", MemorySpec(1536 * M, 4 * G)),
        ("512M, max=4G ,min=256M,buffer=20%", MemorySpec(512 * M, 4 * G, 256 * M, 20)),
        ("512M,buffer=5,max=512M", MemorySpec(512 * M, 512 * M, None, 5)),
    ],
)
def test_memory_is_a_size_and_its_bounds(text: str, spec: MemorySpec) -> None:
    assert parse_memory(text) == spec
    assert parse_memory(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    ["", ",max=1G", "1G,max", "1G,max=", "1G,most=2G", "1G,max=2G,max=3G", "1G,max=512M", "1G,min=2G", "1G,buffer=0%",
     "1G,buffer=20x", "1G,buffer=9999%", "1G,", "1G,2G"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_memory(text)


@pytest.mark.parametrize("size", [0, 1, 4096, 1536 * M, G, 4097])
def test_an_exact_size_reads_the_same_again(size: int) -> None:
    assert parse_size(exact_size(size)) == size


def fields(*options: str) -> dict[str, object]:
    """MachineConfig's, of what click reads."""
    read = run.make_context("run", [*options, "--balloon-piece", "64M"]).params
    return asdict(machine_config(options_of(read)))


def test_hot_add_is_max_counted_from_the_boot_size() -> None:
    by_size = fields("-m", "512M", "--hot-add", "256M")
    assert by_size == fields("-m", "512M,max=768M") == fields("-m", "512M,max=768M", "--hot-add", "256M")
    assert by_size["max_memory"] == 768 * M
    assert fields("-m", "512M")["max_memory"] is None


def test_two_sizes_to_grow_to_are_a_contradiction() -> None:
    with pytest.raises(ConfigError):
        fields("-m", "512M,max=1G", "--hot-add", "256M")


def test_the_options_come_back_from_a_printed_configuration() -> None:
    options = [
        "-m",
        "512M,max=2G",
        "--no-keep-target",
        "--mem-backend",
        "memfd,prealloc=on",
        "--balloon-piece",
        "64M",
    ]
    first = CliRunner().invoke(run, [*options, "--print-config"]).output
    for line in ('memory = "512M,max=2G"', "keep-target = false", 'mem-backend = "memfd,prealloc=on"'):
        assert line in first.splitlines()
