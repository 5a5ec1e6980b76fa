"""The shared folder: names become files by descriptors only, and no name leads out of it.

A node is a name in another node, from the root's descriptor on. A path is opened by openat2(2), which refuses to
leave the folder and to follow links (RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS); where the kernel lacks it, name by name
with O_NOFOLLOW.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from struct import pack

from pyvmm.sandbox.syscalls import syscall
from pyvmm.share.protocol import ROOT

_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 1, 2, 4, 8

NODES_LIMIT = 1 << 20
"""Limit of nodes that the guest's kernel may keep; some 300 bytes each. It forgets those that it does not use."""

PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class _Node:
    """A name in a folder. `lookups`: how often the guest has got it and not forgotten."""

    __slots__ = ("lookups", "name", "number", "parent")

    def __init__(self, number: int, parent: _Node | None, name: str) -> None:
        self.number = number
        self.parent = parent
        self.name = name
        self.lookups = 0


class Folder:
    """Names below `root`, a folder's descriptor, for one connection."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._top = _Node(ROOT, None, "")
        self._nodes = {ROOT: self._top}
        self._by_name: dict[tuple[int, str], _Node] = {}
        self._next = ROOT
        self._has_openat2 = True

    def __len__(self) -> int:
        return len(self._nodes)

    # Nodes

    def look_up(self, parent: int, name: str) -> int:
        """Return the node of a name, and count that the guest has it. Raises OSError if there are too many."""
        node = self._by_name.get((parent, name))
        if node is None:
            if len(self._nodes) >= NODES_LIMIT:
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            self._next += 1
            node = _Node(self._next, self._node(parent), name)
            self._nodes[node.number] = node
            self._by_name[parent, name] = node
        node.lookups += 1
        return node.number

    def forget(self, number: int, count: int) -> None:
        """Take back `count` lookups."""
        node = self._nodes.get(number)
        if node is None or node is self._top:
            return
        node.lookups -= count
        if node.lookups <= 0:
            del self._nodes[number]
            self._drop_name(node)

    def moved(self, parent: int, name: str, to_parent: int, to_name: str) -> None:
        """Note that a name became another; what had that one is gone."""
        old = self._by_name.pop((to_parent, to_name), None)
        node = self._by_name.pop((parent, name), None)
        if old is not None:
            old.parent = None
        if node is not None:
            node.parent, node.name = self._node(to_parent), to_name
            self._by_name[to_parent, to_name] = node

    def swapped(self, parent: int, name: str, to_parent: int, to_name: str) -> None:
        """Note that two names were exchanged."""
        one, two = (self._by_name.pop(key, None) for key in ((parent, name), (to_parent, to_name)))
        for node, place, called in ((one, to_parent, to_name), (two, parent, name)):
            if node is not None:
                node.parent, node.name = self._node(place), called
                self._by_name[place, called] = node

    def removed(self, parent: int, name: str) -> None:
        """Note that a name is gone."""
        node = self._by_name.pop((parent, name), None)
        if node is not None:
            node.parent = None

    def _drop_name(self, node: _Node) -> None:
        if node.parent is not None and self._by_name.get((node.parent.number, node.name)) is node:
            del self._by_name[node.parent.number, node.name]

    def _node(self, number: int) -> _Node:
        node = self._nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def place(self, number: int) -> tuple[int, str]:
        """Return a node's folder and its name there."""
        node = self._node(number)
        if node is self._top:
            return ROOT, "."
        if node.parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node.parent.number, node.name

    def _path(self, number: int) -> list[str]:
        node = self._node(number)
        names: list[str] = []
        while node is not self._top:
            if node.parent is None or len(names) > 256:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            names.append(node.name)
            node = node.parent
        return names[::-1]

    # Files

    @contextmanager
    def opened(self, number: int) -> Iterator[int]:
        """Open a node itself, whatever it is, for looking and for what is below it (O_PATH)."""
        descriptor = self.open(number, PATH_FLAGS)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open(self, number: int, flags: int) -> int:
        """Open a node. No link is followed. Raises OSError."""
        return self._open(self._path(number), flags | os.O_NOFOLLOW | os.O_CLOEXEC)

    def open_file(self, number: int, flags: int) -> int:
        """Open a node that must be a regular file; a pipe or device is not touched."""
        with self.opened(number) as found:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        descriptor = self.open(number, flags | os.O_NONBLOCK | os.O_NOCTTY)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged meanwhile
            os.close(descriptor)
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return descriptor

    def _open(self, names: list[str], flags: int) -> int:
        if self._has_openat2:
            path = ctypes.create_string_buffer(os.fsencode("/".join(names) or "."))
            resolve = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
            how = ctypes.create_string_buffer(pack("<QQQ", flags, 0, resolve), 24)
            try:
                # NO_SYMLINKS refuses the last name as well, unless the link itself is opened: O_PATH | O_NOFOLLOW.
                return syscall(_OPENAT2, self._root, ctypes.addressof(path), ctypes.addressof(how), 24)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EAGAIN):
                    raise
                if error.errno == errno.ENOSYS:
                    self._has_openat2 = False
        return self._walk(names, flags)

    def _walk(self, names: list[str], flags: int) -> int:
        """Open a path name by name."""
        folder = self._root
        try:
            for name in names[:-1]:
                below = os.open(name, PATH_FLAGS | os.O_DIRECTORY, dir_fd=folder)
                if folder != self._root:
                    os.close(folder)
                folder = below
            return os.open(names[-1] if names else ".", flags, dir_fd=folder)
        finally:
            if folder != self._root:
                with suppress(OSError):
                    os.close(folder)
