"""The cpio archive of a saved host's preloaded Python: the modules' files and byte code under their own paths.

It follows the initramfs. Byte code is written as unchecked by time, since file times are zero in the archive.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import stat
import sys
from pathlib import Path

from pyvmm.host.preload import REPOSITORY, Preload
from pyvmm.images.cpio import CpioWriter, Entry


class Tree:
    """A file tree of an initramfs: files of the machine under their own paths, with the symbolic links in those."""

    def __init__(self, archive: CpioWriter) -> None:
        self._archive = archive
        self._known: set[str] = set()

    def add(self, path: str, data: bytes | None = None) -> None:
        """Add the file at `path`, with other contents if `data` is given."""
        name = self._place(path)
        if name is not None:
            mode = os.stat(name).st_mode if data is None or os.path.exists(name) else 0o644
            content = Path(name).read_bytes() if data is None else data
            self._archive.add(Entry(name[1:], stat.S_IFREG | stat.S_IMODE(mode), content))

    def _place(self, path: str) -> str | None:
        """Make the folders and links that lead to `path`. Returns its resolved path, or None if it is in the tree."""
        done = ""
        parts = [part for part in path.split("/") if part]
        while parts:
            part = parts.pop(0)
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            here = f"{done}/{part}"
            if os.path.islink(here):
                target = os.readlink(here)
                if here not in self._known:
                    self._known.add(here)
                    self._archive.symlink(here[1:], target)
                parts[:0] = [piece for piece in target.split("/") if piece and piece != "."]
                if target.startswith("/"):
                    done = ""
                continue
            done = here
            if parts and here not in self._known:
                self._known.add(here)
                self._archive.folder(here[1:])
        if done in self._known:
            return None
        self._known.add(done)
        return done


def archive(preload: Preload, sources: str) -> bytes:
    """Return the preload as a cpio archive, which follows the initramfs."""
    made = CpioWriter()
    _add_to(made, preload)
    record = {"modules": preload.modules, "sources": sources, "repository": str(REPOSITORY)}
    made.file("host/preload.json", json.dumps(record).encode())
    made.file("host/python", f"{sys.executable}\t{REPOSITORY}\n".encode())
    return made.build()


def _add_to(archive: CpioWriter, preload: Preload) -> None:
    """Put the files into an archive, with byte code that is not checked against file times (all zero there)."""
    tree = Tree(archive)
    for other in preload.others:
        tree.add(other)
    for file, cached in preload.files.items():
        tree.add(file)
        if cached and file.endswith(".py"):
            tree.add(cached, _byte_code(file, cached))


def _byte_code(file: str, cached: str) -> bytes:
    source = Path(file).read_bytes()
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    try:
        kept = Path(cached).read_bytes()
        entry = os.stat(file)
        times = (int(entry.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little")
        times += (entry.st_size & 0xFFFFFFFF).to_bytes(4, "little")
        if kept[:16] == importlib.util.MAGIC_NUMBER + bytes(4) + times:
            return head + kept[16:]
    except OSError:
        pass
    return head + marshal.dumps(compile(source, file, "exec", dont_inherit=True))
