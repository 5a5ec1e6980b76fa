"""The configuration of a test's guest: from the marker, the command line and the matrix.

    @pytest.mark.pyvmm(kernel="6.12", cpus=2)      the closest marker of a test wins, keyword by keyword,
    --pyvmm-kernel 6.12                            over the command line,
    pyvmm_matrix = kernel=6.1,6.12 cpus=1,2        which wins over the matrix

All values are the words of `pyvmm run`, checked by its parsers.
"""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.errors import ConfigError
from pyvmm.seconds import check_seconds

if TYPE_CHECKING:
    from pyvmm.launch.options import GuestOptions

Settings = Mapping[str, str | int]
"""Some keywords of a configuration and their checked values."""

OPTION_NAMES = {
    "kernel": "image",
    "kdir": "kdir",
    "engine": "hyperv",
    "cpus": "cpus",
    "vmbus": "max_vmbus",
    "protocol": "balloon_version",
    "memory": "memory",
    "append": "append",
    "devices": "device",
}
"""Keywords of the marker, and the options of `pyvmm run` that they are."""

TIMEOUT = 120.0
"""Seconds for one test, fixtures included, the guest's boot not."""

_IMAGE = "debian-"
_NO_MATRIX = "none"
_MOST = 256  # configurations of a matrix: more is a slip of the pen


@dataclass(frozen=True, slots=True)
class Configuration:
    """A guest's configuration in the words of `pyvmm run`. `kernel` is a version of ours or a file."""

    kernel: str = "6.1"
    kdir: str = ""
    engine: str = "auto"
    cpus: int = 1
    vmbus: str = "5.3"
    protocol: str = "3.0"
    memory: str = "512M"
    append: str = ""
    devices: str = ""  # besides the usual ones, joined by +

    def __str__(self) -> str:
        """The id in a test's name: `6.12-user-2cpu`, and what else is not the default."""
        kernel = Path(self.kdir or self.kernel).name
        words = [kernel, self.engine, f"{self.cpus}cpu"]
        default = Configuration()
        for name, prefix in (
            ("memory", ""),
            ("vmbus", "vmbus"),
            ("protocol", "balloon"),
            ("append", ""),
            ("devices", ""),
        ):
            value = getattr(self, name)
            if value != getattr(default, name):
                words.append(prefix + "_".join(str(value).split()))
        return "-".join(words)

    def keywords(self) -> dict[str, object]:
        """Return the keywords of `pyvmm.testbed.vm.VM`."""
        keywords: dict[str, object] = {
            OPTION_NAMES[name]: getattr(self, name) for name in OPTION_NAMES if name not in ("kernel", "kdir")
        }
        keywords["device"] = tuple(filter(None, self.devices.split("+")))
        if self.kdir:
            keywords["kdir"] = self.kdir
        elif image := image_name(self.kernel):
            keywords["image"] = image
        else:
            keywords["kernel"] = self.kernel
        keywords["engine"] = keywords.pop("hyperv")
        return keywords

    def options(self) -> GuestOptions:
        """Return the same as options of `pyvmm run`."""
        from pyvmm.launch.options import read_keywords

        keywords = self.keywords()
        keywords["hyperv"] = keywords.pop("engine")
        return read_keywords(keywords, {})

    def with_settings(self, *layers: Settings) -> Configuration:
        """Return it with the values of `layers`, later ones over earlier ones."""
        merged: dict[str, Any] = {}
        for layer in layers:
            # A kernel and a build tree exclude each other: the later one counts.
            for name, other in (("kernel", "kdir"), ("kdir", "kernel")):
                if name in layer and other not in layer:
                    merged.pop(other, None)
            merged |= layer
        return dataclasses.replace(self, **merged)


def image_name(kernel: str) -> str:
    """Return the name of the image of ours that `kernel` means, as `6.1` or `debian-6.1`; empty for a file."""
    from pyvmm.images.catalog import RECIPES

    return next((name for name in (kernel, _IMAGE + kernel) if name in RECIPES), "")


def read_setting(name: str, value: object) -> str | int:
    """Check a value of one keyword and return it as a Configuration has it. Raises ConfigError."""
    if name not in OPTION_NAMES:
        close = difflib.get_close_matches(name, OPTION_NAMES, 1)
        hint = f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(OPTION_NAMES)}"
        raise ConfigError(f"unknown keyword {name[:40]!r}{hint}")
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Path)):
        raise ConfigError(f"{name}: {str(value)[:40]!r} is neither a text nor a number")
    text = str(value)
    if name == "kernel":
        return _read_kernel(text)
    if name == "kdir":
        if not Path(text).is_dir():
            raise ConfigError(f"kdir: {text[:100]!r} is no folder: name a kernel's build tree")
        return str(Path(text).absolute())
    from pyvmm.launch.options import OPTIONS, details

    if name == "memory" and isinstance(value, int):  # in MiB, as `-m 512`
        text = f"{value}M"
    about = details(OPTIONS[OPTION_NAMES[name]])
    try:
        for each in text.split("+") if name == "devices" else ():
            about.value(each)
        read = 0 if name == "devices" else about.value(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    if name != "cpus":
        return text
    if read < 1:
        raise ConfigError(f"cpus: {read} is less than 1")
    return int(read)


def _read_kernel(text: str) -> str:
    from pyvmm.images.catalog import RECIPES

    if image := image_name(text):
        return image.removeprefix(_IMAGE)
    if not Path(text).is_file():
        known = ", ".join(name.removeprefix(_IMAGE) for name in RECIPES)
        raise ConfigError(f"kernel: {text[:100]!r} is neither a file nor one of {known}")
    return str(Path(text).absolute())


def read_settings(given: Mapping[str, object]) -> dict[str, str | int]:
    """Check keywords and values. Raises ConfigError."""
    settings = {name: read_setting(name, value) for name, value in given.items()}
    if settings.get("kernel") and settings.get("kdir"):
        raise ConfigError("kernel and kdir contradict each other: give one of them")
    return settings


def read_marker(positional: tuple[Any, ...], given: Mapping[str, object]) -> tuple[Settings, float | None]:
    """Return the settings of `@pytest.mark.pyvmm(...)`, and its time limit. Raises ConfigError."""
    if positional:
        raise ConfigError(f"{str(positional[0])[:40]!r} has no keyword: write kernel={positional[0]!r} for instance")
    keywords = dict(given)
    timeout: float | None = None
    if "timeout" in keywords:
        value = keywords.pop("timeout")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"timeout: {str(value)[:40]!r} is not a number of seconds")
        try:
            timeout = check_seconds(value)
        except ConfigError as error:
            raise ConfigError(f"timeout: {error}") from error
        if not timeout:
            raise ConfigError("timeout: 0 leaves no time: give seconds")
    return read_settings(keywords), timeout


def read_matrix(lines: Iterable[str]) -> list[Settings]:
    """Return the settings of each configuration of a matrix, without repetitions. Raises ConfigError.

    A line is `NAME=VALUE[,VALUE...]...`: all combinations of its values. Lines add up.
    """
    found: list[Settings] = []
    for line in lines:
        if line.strip() == _NO_MATRIX:
            continue
        for settings in _read_line(line):
            if settings not in found:
                found.append(settings)
            if len(found) > _MOST:
                raise ConfigError(f"a matrix of more than {_MOST} configurations")
    return found


def _read_line(line: str) -> Iterable[Settings]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise ConfigError(f"{line[:60]!r}: {error}") from None
    values: dict[str, list[str | int]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word[:40]!r}: write NAME=VALUE[,VALUE...], kernel=6.1,6.12 for instance")
        if name in values:
            raise ConfigError(f"{name}= is there twice in one line")
        # The commas of these are their own.
        several = [text] if name in ("append", "memory") else text.split(",")
        values[name] = list(dict.fromkeys(read_setting(name, each) for each in several))
    if not values:
        return []
    return (dict(zip(values, each, strict=True)) for each in product(*values.values()))
