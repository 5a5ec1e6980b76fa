"""Which configurations a session's tests run in, and in which order: options, ini file, markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import ConfigError
from pyvmm.testbed.plugin import hooks
from pyvmm.testbed.plugin.configuration import (
    TIMEOUT,
    Configuration,
    Settings,
    read_marker,
    read_matrix,
    read_settings,
)

_NAMES = ("kernel", "kdir", "engine", "cpus")
_selection = pytest.StashKey["Selection"]()


def selection(config: pytest.Config) -> Selection:
    """Return the session's Selection. Raises pytest.UsageError for a wrong option or ini value."""
    if _selection not in config.stash:
        config.stash[_selection] = Selection(config)
    return config.stash[_selection]


class Selection:
    """The configurations that command line and ini file ask for."""

    def __init__(self, config: pytest.Config) -> None:
        self._root = config.rootpath
        given = {name: config.getoption(f"pyvmm_{name}") for name in _NAMES}
        try:
            self.options: Settings = read_settings({name: v for name, v in given.items() if v is not None})
        except ConfigError as error:
            raise pytest.UsageError(f"--pyvmm-{error}") from None
        lines: list[str] | None = config.getoption("pyvmm_matrix")
        place = "pyvmm_matrix" if lines is None else "--pyvmm-matrix"
        try:
            matrix = read_matrix(config.getini("pyvmm_matrix") if lines is None else lines)
        except ConfigError as error:
            raise pytest.UsageError(f"{place}: {error}") from None
        # One configuration alone is the default for all tests, and no parameter.
        self.base: Settings = matrix[0] if len(matrix) == 1 else {}
        self.matrix = matrix if len(matrix) > 1 else []

    def parametrize(self, metafunc: pytest.Metafunc) -> None:
        """Make the matrix a parameter of a test; configurations that its marker makes equal become one."""
        if not self.matrix:
            return
        try:
            marked = [settings for settings, _ in _markers(metafunc.definition)]
        except ConfigError:
            return  # `arrange` reports it, with the test's name
        chosen: dict[Configuration, Settings] = {}
        for settings in self.matrix:
            chosen.setdefault(self._configuration(settings, marked), settings)
        if len(chosen) > 1:
            ids = [str(configuration) for configuration in chosen]
            metafunc.parametrize(hooks.CONFIGURATION, list(chosen.values()), ids=ids, indirect=True)

    def _configuration(self, settings: Settings, marked: Iterable[Settings]) -> Configuration:
        return Configuration().with_settings(self.base, settings, self.options, *marked)

    def arrange(self, items: list[pytest.Item]) -> None:
        """Resolve each test's configuration, and bring tests of one configuration together, in the places that such
        tests have. Raises pytest.UsageError for a wrong marker.
        """
        chosen = [item for item in items if hooks.needs_guest(item)]
        for item in chosen:
            item.stash[hooks.RESOLVED] = self._resolve(item)
        order = {each: n for n, each in enumerate(dict.fromkeys(configuration_of(item) for item in chosen))}
        chosen.sort(key=lambda item: order[configuration_of(item)])
        following = iter(chosen)
        items[:] = [next(following) if hooks.needs_guest(item) else item for item in items]

    def _resolve(self, item: pytest.Item) -> tuple[Configuration, float]:
        call: Any = getattr(item, "callspec", None)
        settings = call.params.get(hooks.CONFIGURATION, {}) if call is not None else {}
        try:
            marked = list(_markers(item))
            configuration = self._configuration(settings, [each for each, _ in marked])
            timeout = next((limit for _, limit in reversed(marked) if limit is not None), TIMEOUT)
        except ConfigError as error:
            raise pytest.UsageError(f"{item.nodeid}: marker pyvmm: {error}") from None
        return configuration, timeout


def _markers(node: pytest.Item) -> Iterable[tuple[Settings, float | None]]:
    """The settings of a test's markers, the closest last."""
    for mark in reversed(list(node.iter_markers(hooks.MARKER))):
        yield read_marker(mark.args, mark.kwargs)


def configuration_of(item: pytest.Item) -> Configuration:
    """Return the configuration of a test of ours."""
    return item.stash[hooks.RESOLVED][0]


def header(config: pytest.Config, chosen: Sequence[pytest.Item]) -> list[str]:
    """Return the lines after the collection: what runs, and where."""
    from pyvmm.testbed.plugin.where import where_they_run

    found = list(dict.fromkeys(str(configuration_of(item)) for item in chosen))
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    return [f"pyvmm: {len(chosen)} with a guest ({shown}), {where_they_run(config)}"]


def repeat_command(config: pytest.Config, item: pytest.Item) -> str:
    """Return the shell's command that runs just this test again."""
    import shlex

    words = ["pytest"]
    if config.inipath is not None and config.inipath != _ini_file_for(item.path):
        words += ["-c", str(config.inipath)]
    for setting in config.getoption("override_ini", None) or []:
        words += ["-o", setting]
    for name in (*_NAMES, "host"):
        value = config.getoption(f"pyvmm_{name}")
        if value not in (None, "auto"):
            words += [f"--pyvmm-{name}", str(value)]
    for line in config.getoption("pyvmm_matrix") or []:
        words += ["--pyvmm-matrix", line]
    words.append(_relative_id(config, item))
    return shlex.join(words)


def _ini_file_for(test: Path) -> Path | None:
    """Return the ini file that pytest would find for this one file: the closest one above it."""
    for folder in test.parents:
        for name in (
            "pytest.toml",
            ".pytest.toml",
            "pytest.ini",
            ".pytest.ini",
            "pyproject.toml",
            "tox.ini",
            "setup.cfg",
        ):
            file = folder / name
            if not file.is_file():
                continue
            section = _SECTIONS.get(name)
            if section is None or any(
                line.startswith(section) for line in file.read_text("utf-8", "replace").splitlines()
            ):
                return file
    return None


_SECTIONS = {"pyproject.toml": "[tool.pytest", "tox.ini": "[pytest]", "setup.cfg": "[tool:pytest]"}
"""What makes one of pytest's of a file that is others' too."""


def _relative_id(config: pytest.Config, item: pytest.Item) -> str:
    """Return the node id with a path from the folder in which pytest was started."""
    _, separator, rest = item.nodeid.partition("::")
    path = item.path
    try:
        path = item.path.relative_to(Path(config.invocation_params.dir))
    except ValueError:
        pass
    return f"{path}{separator}{rest}"
