"""The preloaded Python of a saved host: an interpreter that has imported all modules a command needs.

Under emulation starting Python takes a second and importing what `pyvmm` needs several. So the files for that come in
a second archive after the initramfs, under the very paths they have on the machine; the agent imports them before its
state is saved, and a `python -m MODULE` is then a fork of it, which starts in some ten milliseconds.

Files of other packages are *stable*: a host saved before one changed cannot be used. pyvmm's own change often in a
development checkout: if the digest of the command's sources is another than that of the imported ones (edited since,
or of another checkout), the fork forgets pyvmm's modules and imports them anew, from the command's own checkout.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import HostError

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_PACKAGE = "pyvmm"
# Part of the running agent, which speaks the protocol with a command's outer side: both must be the same version.
AGENT_MODULES = ("agent.py", "endpoint.py", "protocol.py", "preload.py", "rootfs.py", "zygote.py")

_COLLECT = """
import importlib, json, os, pkgutil, sys
wanted = ["pyvmm.host.agent"]
top = importlib.import_module({package!r})
wanted.append({package!r})
for module in pkgutil.walk_packages(top.__path__, {package!r} + ".", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        wanted.append(module.name)
import encodings.ascii, encodings.latin_1, encodings.idna, runpy, traceback, linecache, tokenize, codecs, _strptime
done = ["runpy", "traceback", "linecache", "tokenize", "_strptime"]
for name in wanted:
    try:
        importlib.import_module(name)
    except Exception:
        continue
    done.append(name)
files = [[m.__file__, m.__spec__.cached if m.__spec__ else None] for m in list(sys.modules.values())
         if getattr(m, "__file__", None)]
maps = sorted(dict.fromkeys(line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "r-xp" in line
              and len(line.split(None, 5)) == 6))
print(json.dumps(dict(modules=done, files=files, maps=[m for m in maps if m.startswith("/")],
                      prefix=[sys.prefix, sys.base_prefix], path=sys.path)))
"""


@dataclass(slots=True)
class Preload:
    """The modules that the inner interpreter imports, and the files needed for that."""

    modules: list[str]
    files: dict[str, str | None]  # a module's file -> its byte code file
    others: list[str]  # programs, libraries, configuration


def sources_digest() -> str:
    """Return a digest of pyvmm's own sources (paths, sizes and times)."""
    return _digest(_own_sources())


def sources_quiet_for() -> float:
    """Return the seconds since the last edit of pyvmm's own sources."""
    return time.time() - max(os.stat(file).st_mtime for file in _own_sources())


def stable_digest(files: Iterable[str]) -> str:
    """Return a digest of `files` (paths, sizes and times)."""
    return _digest(Path(file) for file in files)


@functools.cache
def agent_digest() -> str:
    """Return a digest of the contents of the agent's sources: checkouts with equal ones can share a host."""
    total = hashlib.sha256()
    for name in AGENT_MODULES:
        total.update((REPOSITORY / "pyvmm" / "host" / name).read_bytes())
    return total.hexdigest()[:16]


def _own_sources() -> Iterator[Path]:
    # In a checkout pyvmm/devices, pyvmm/firmware and pyvmm/images are links to the folders beside pyvmm.
    for folder, folders, names in os.walk(REPOSITORY / OWN_PACKAGE, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        try:
            entry = os.stat(file)
            total.update(f"{file}\0{entry.st_size}\0{entry.st_mtime_ns}\n".encode())
        except (OSError, ValueError):
            total.update(f"{file}\0gone\n".encode())
    return total.hexdigest()[:32]


def is_own(file: str) -> bool:
    """Return whether a file is one of pyvmm's sources that may change without a new saved host."""
    path = Path(file)
    if path.parent == REPOSITORY / "pyvmm" / "host" and path.name in AGENT_MODULES:
        return False
    return path.is_relative_to(REPOSITORY / OWN_PACKAGE)


def collect() -> Preload:
    """Run a fresh interpreter that imports everything, and collect the files it used."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["PYTHONPATH"] = str(REPOSITORY)
    script = _COLLECT.format(package=OWN_PACKAGE)
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=env, cwd="/", capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise HostError(f"emulated host: {sys.executable} cannot import pyvmm: {lines[-1]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    files = {file: cached for file, cached in answer["files"] if os.path.isabs(file) and os.path.exists(file)}
    others = [os.path.abspath(sys.executable), *answer["maps"]]
    for library in answer["maps"]:
        others += _names_of(library)
    for file in ("/etc/ld.so.cache", "/lib64/ld-linux-x86-64.so.2", "/etc/localtime", "/etc/passwd", "/etc/group"):
        others.append(file)
    for prefix in answer["prefix"]:
        others.append(f"{prefix}/pyvenv.cfg")
    for folder in answer["path"]:
        if os.path.isdir(folder):
            others += [entry.path for entry in os.scandir(folder) if entry.name.endswith((".pth", ".egg-link"))]
    return Preload(answer["modules"], files, [name for name in dict.fromkeys(others) if os.path.exists(name)])


def _names_of(library: str) -> list[str]:
    """Return the symbolic links beside a library that lead to it: programs load it by those names."""
    folder, name = os.path.split(library)
    if ".so" not in name:
        return []
    stem = name.partition(".so")[0]
    with os.scandir(folder) as entries:
        return [e.path for e in entries if e.name.startswith(stem) and e.is_symlink()
                and os.path.realpath(e.path) == library]  # fmt: skip
