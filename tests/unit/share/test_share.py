"""A shared folder's server: FUSE's requests, names that must not leave the folder, limits, its process."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack, unpack_from

import pytest

from pyvmm.errors import ConfigError, GuestProtocolError
from pyvmm.loop import Loop
from pyvmm.share import protocol as p
from pyvmm.share.folder import Folder
from pyvmm.share.operations import HANDLES_LIMIT, Operations
from pyvmm.share.protocol import ROOT, Op, Owners, Request
from pyvmm.share.server import Server, ShareServer
from pyvmm.share.spec import Share, check_shares, command_line_word, parse_share


class Client:
    """A guest's kernel, one request at a time."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self._descriptor = os.open(root, os.O_PATH)
        self.folder = Folder(self._descriptor)
        self.operations = Operations(self.folder, Owners(os.geteuid(), os.getegid()), read_only=read_only)

    def ask(self, op: int, node: int = ROOT, body: bytes = b"") -> bytes:
        """The reply's body. Raises OSError for an error."""
        answer = self.operations.handle(Request(op, 7, node, body))
        assert answer is not None
        length, error, unique = p.REPLY.unpack_from(answer)
        assert (length, unique) == (len(answer), 7)
        if error:
            raise OSError(-error, os.strerror(-error))
        return answer[p.REPLY.size :]

    def node(self, *names: str) -> int:
        node = ROOT
        for name in names:
            (node,) = unpack_from("<Q", self.ask(Op.LOOKUP, node, os.fsencode(name) + b"\0"))
            if not node:
                raise FileNotFoundError(name)
        return node

    def open(self, node: int, flags: int = os.O_RDONLY) -> int:
        handle: int = unpack_from("<Q", self.ask(Op.OPEN, node, pack("<II", flags, 0)))[0]
        return handle

    def read(self, handle: int, size: int = 4096, offset: int = 0) -> bytes:
        return self.ask(Op.READ, 0, pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0))

    def write(self, handle: int, data: bytes, offset: int = 0) -> int:
        head = pack("<QQIIQII", handle, offset, len(data), 0, 0, 0, 0)
        written: int = unpack_from("<I", self.ask(Op.WRITE, 0, head + data))[0]
        return written

    def create(self, parent: int, name: str, mode: int = 0o644) -> tuple[int, int]:
        body = pack("<IIII", os.O_RDWR, stat.S_IFREG | mode, 0o22, 0) + os.fsencode(name) + b"\0"
        reply = self.ask(Op.CREATE, parent, body)
        return unpack_from("<Q", reply)[0], unpack_from("<Q", reply, 128)[0]

    def attributes(self, node: int) -> tuple[int, int, int]:
        """Size, mode, user."""
        reply = self.ask(Op.GETATTR, node)
        return (
            unpack_from("<Q", reply, 24)[0],
            unpack_from("<I", reply, 16 + 60)[0],
            unpack_from("<I", reply, 16 + 68)[0],
        )

    def names(self, node: int) -> list[str]:
        (handle,) = unpack_from("<Q", self.ask(Op.OPENDIR, node, pack("<II", 0, 0)))
        found: list[str] = []
        offset = 0
        while data := self.ask(Op.READDIR, node, pack("<QQIIQII", handle, offset, 200, 0, 0, 0, 0)):
            at = 0
            while at < len(data):
                _, offset, length, _ = unpack_from("<QQII", data, at)
                found.append(data[at + 24 : at + 24 + length].decode())
                at += 24 + length + 7 & ~7
        self.ask(Op.RELEASEDIR, node, pack("<QIIQ", handle, 0, 0, 0))
        return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "file").write_text("hello")
    (folder / "sub").mkdir()
    (folder / "up").symlink_to("../secret")
    (folder / "out").symlink_to(tmp_path)
    return folder


@pytest.fixture
def client(root: Path) -> Client:
    return Client(root)


def test_first_request_agrees_on_a_version(client: Client) -> None:
    reply = client.ask(Op.INIT, 0, pack("<IIII", 7, 45, 1 << 20, 0xFFFFFFFF))
    assert len(reply) == 64 and unpack_from("<II", reply) == (7, 31)
    assert unpack_from("<I", reply, 12)[0] == p.WANTED and unpack_from("<I", reply, 20)[0] == p.MAX_WRITE
    with pytest.raises(OSError, match="Protocol error"):
        client.ask(Op.INIT, 0, pack("<IIII", 7, 8, 0, 0))


def test_files_are_made_written_and_read(client: Client, root: Path) -> None:
    node, handle = client.create(client.node("sub"), "new", 0o4755)
    assert client.write(handle, b"some data") == 9 and client.write(handle, b"S") == 1
    assert client.read(handle) == b"Some data" and client.read(handle, offset=5) == b"data"
    assert (root / "sub/new").read_bytes() == b"Some data"
    size, mode, user = client.attributes(node)
    assert (size, stat.S_IMODE(mode), user) == (9, 0o755, 0)
    client.ask(Op.RELEASE, node, pack("<QIIQ", handle, 0, 0, 0))
    with pytest.raises(OSError, match="Bad file"):
        client.read(handle)


def test_folders_are_listed_in_pieces(client: Client, root: Path) -> None:
    for number in range(50):
        (root / "sub" / f"file {number}").write_text("")
    assert sorted(client.names(client.node("sub"))) == sorted([".", "..", *os.listdir(root / "sub")])


def test_listing_with_attributes_counts_as_looking_up(client: Client) -> None:
    (handle,) = unpack_from("<Q", client.ask(Op.OPENDIR, ROOT, pack("<II", 0, 0)))
    before = len(client.folder)
    data = client.ask(Op.READDIRPLUS, ROOT, pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0))
    assert len(client.folder) == before + 4
    nodes = []
    at = 0
    while at < len(data):
        nodes.append(unpack_from("<Q", data, at)[0])
        at += 128 + 24 + unpack_from("<I", data, at + 128 + 16)[0] + 7 & ~7
    for node in filter(None, nodes):
        client.operations.handle(Request(Op.FORGET, 1, node, pack("<Q", 1)))
    assert len(client.folder) == before


def test_names_come_and_go(client: Client, root: Path) -> None:
    sub = client.node("sub")
    client.ask(Op.MKDIR, sub, pack("<II", 0o7777, 0o22) + b"deep\0")
    assert stat.S_IMODE((root / "sub/deep").stat().st_mode) == 0o1755
    file = client.node("file")
    client.ask(Op.RENAME, ROOT, pack("<Q", client.node("sub", "deep")) + b"file\0moved\0")
    assert client.attributes(file)[0] == 5 and (root / "sub/deep/moved").exists()
    client.ask(Op.LINK, ROOT, pack("<Q", file) + b"linked\0")
    assert (root / "linked").stat().st_nlink == 2
    client.ask(Op.RENAME2, ROOT, pack("<QII", sub, 2, 0) + b"linked\0deep\0")
    assert (root / "linked/moved").exists() and (root / "sub/deep").is_file()
    with pytest.raises(FileExistsError):
        client.ask(Op.RENAME2, ROOT, pack("<QII", sub, 1, 0) + b"linked\0deep\0")
    client.ask(Op.UNLINK, sub, b"deep\0")
    client.ask(Op.UNLINK, client.node("linked"), b"moved\0")
    client.ask(Op.RMDIR, ROOT, b"linked\0")
    assert sorted(os.listdir(root)) == ["out", "sub", "up"]
    with pytest.raises(OSError, match="Stale"):
        client.attributes(file)


def test_links_are_read_and_made_and_never_followed(client: Client, root: Path) -> None:
    up = client.node("up")
    assert client.ask(Op.READLINK, up) == b"../secret"
    client.ask(Op.SYMLINK, ROOT, b"mine\0/etc/passwd\0")
    assert os.readlink(root / "mine") == "/etc/passwd"
    for name in ("up", "out", "mine"):
        node = client.node(name)
        assert stat.S_ISLNK(client.attributes(node)[1])
        for op, body in (
            (Op.OPEN, pack("<II", os.O_RDONLY, 0)),
            (Op.OPENDIR, pack("<II", 0, 0)),
            (Op.LOOKUP, b"secret\0"),
            (Op.CREATE, pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"evil\0"),
            (Op.MKDIR, pack("<II", 0o755, 0) + b"evil\0"),
            (Op.UNLINK, b"secret\0"),
            (Op.SYMLINK, b"evil\0x\0"),
        ):
            with pytest.raises(OSError):
                client.ask(op, node, body)
    with pytest.raises(OSError):
        client.ask(Op.CREATE, ROOT, pack("<IIII", os.O_RDWR | os.O_TRUNC, 0o644, 0, 0) + b"up\0")
    assert (root.parent / "secret").read_text() == "secret" and sorted(os.listdir(root.parent)) == ["root", "secret"]


def test_link_put_in_a_folders_place_is_not_followed(client: Client, root: Path) -> None:
    sub = client.node("sub")
    (root / "sub").rmdir()
    (root / "sub").symlink_to("..")
    for op, body in ((Op.LOOKUP, b"secret\0"), (Op.OPENDIR, pack("<II", 0, 0)), (Op.UNLINK, b"secret\0")):
        with pytest.raises(OSError):
            client.ask(op, sub, body)


@pytest.mark.parametrize("walked", [False, True])
def test_kernel_without_openat2_walks_name_by_name(client: Client, root: Path, walked: bool) -> None:
    client.folder._has_openat2 = not walked
    (root / "sub/deep").mkdir()
    (root / "sub/deep/file").write_text("deep")
    node = client.node("sub", "deep", "file")
    assert client.read(client.open(node)) == b"deep"
    (root / "sub/deep/file").unlink()
    (root / "sub/deep").rmdir()
    (root / "sub/deep").symlink_to("/etc")
    with pytest.raises(OSError):
        client.attributes(node)


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"../secret", b"x" * 256])
def test_names_that_are_none_end_the_connection(client: Client, name: bytes) -> None:
    for op, before in ((Op.LOOKUP, b""), (Op.UNLINK, b""), (Op.MKDIR, pack("<II", 0, 0)), (Op.RENAME, pack("<Q", 1))):
        with pytest.raises(GuestProtocolError):
            client.ask(op, ROOT, before + name + b"\0" + name + b"\0")


def test_attributes_are_set(client: Client, root: Path) -> None:
    node = client.node("file")

    def change(valid: int, *, size: int = 0, mode: int = 0, uid: int = 0, mtime: int = 0) -> None:
        body = pack("<IIQQQQQQIIIIIIII", valid, 0, 0, size, 0, 5, mtime, 0, 7, 8, 0, mode, 0, uid, 0, 0)
        client.ask(Op.SETATTR, node, body)

    change(p.SET_SIZE, size=2)
    change(p.SET_MODE, mode=0o6750)
    change(p.SET_MTIME, mtime=1000)
    found = (root / "file").stat()
    assert (found.st_size, stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (2, 0o750, 1_000_000_000_008)
    change(p.SET_UID, uid=0)
    with pytest.raises(PermissionError):
        change(p.SET_UID, uid=1234)
    change(p.SET_MTIME | p.SET_MTIME_NOW)
    assert (root / "file").stat().st_mtime > 1e9
    with pytest.raises(OSError):
        change(p.SET_SIZE, size=1 << 63)


def test_pipes_and_devices_are_not_opened(client: Client, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(PermissionError):
        client.open(client.node("pipe"))
    with pytest.raises(PermissionError):
        client.ask(Op.CREATE, ROOT, pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"pipe\0")
    with pytest.raises(PermissionError):
        client.ask(Op.MKNOD, ROOT, pack("<IIII", stat.S_IFCHR | 0o666, 0x103, 0, 0) + b"null\0")
    client.ask(Op.MKNOD, ROOT, pack("<IIII", stat.S_IFIFO | 0o666, 0, 0, 0) + b"other\0")
    assert stat.S_ISFIFO((root / "other").stat().st_mode)


def test_read_only_folder_is_not_changed(root: Path) -> None:
    client = Client(root, read_only=True)
    file = client.node("file")
    assert client.read(client.open(file)) == b"hello"
    for op, node, body in (
        (Op.OPEN, file, pack("<II", os.O_RDWR, 0)),
        (Op.OPEN, file, pack("<II", os.O_RDONLY | os.O_TRUNC, 0)),
        (Op.CREATE, ROOT, pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"new\0"),
        (Op.UNLINK, ROOT, b"file\0"),
        (Op.SETATTR, file, bytes(88)),
        (Op.MKDIR, ROOT, pack("<II", 0, 0) + b"new\0"),
        (Op.WRITE, ROOT, bytes(40)),
    ):
        with pytest.raises(OSError) as caught:
            client.ask(op, node, body)
        assert caught.value.errno == errno.EROFS
    assert len(os.listdir(root)) == 4 and (root / "file").read_text() == "hello"


def test_open_files_are_limited(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.share.operations.HANDLES_LIMIT", 5)
    assert HANDLES_LIMIT > 1000
    for _ in range(5):
        client.ask(Op.OPENDIR, ROOT, pack("<II", 0, 0))
    with pytest.raises(OSError, match="Too many"):
        client.open(client.node("file"))
    client.operations.close()
    client.open(client.node("file"))


def test_nodes_are_limited(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.share.folder.NODES_LIMIT", 2)
    client.node("file")
    with pytest.raises(OSError):
        client.node("sub")
    client.operations.handle(
        Request(Op.BATCH_FORGET, 1, 0, pack("<IIQQ", 1, 0, client.folder.look_up(ROOT, "file"), 2))
    )
    client.node("sub")


def test_unknown_requests_are_refused_one_by_one(client: Client) -> None:
    for op in (22, 39, 47, 4096):
        with pytest.raises(OSError, match="not implemented"):
            client.ask(op)


def test_noise_raises_nothing_else(client: Client, root: Path) -> None:
    noise = random.Random(1)
    for _ in range(3000):
        body = noise.randbytes(noise.choice((0, 4, 8, 16, 40, 88, 200)))
        try:
            client.operations.handle(Request(noise.choice(list(Op)), 1, noise.choice((0, 1, 2, 3)), body))
        except GuestProtocolError:
            pass
    assert (root.parent / "secret").read_text() == "secret"


# The server


@pytest.fixture
def served(root: Path) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = Server(theirs, os.open(root, os.O_PATH), read_only=False)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield ours
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    theirs.close()


def connect(machine: socket.socket) -> socket.socket:
    machine.send(pack("<I", 1))
    answer, descriptors, _, _ = socket.recv_fds(machine, 1, 1)
    assert answer == b"\1"
    made = socket.socket(fileno=descriptors[0])
    made.settimeout(10)
    return made


def request(op: int, node: int, body: bytes = b"", unique: int = 1) -> bytes:
    return p.HEADER.pack(p.HEADER.size + len(body), op, unique, node, 0, 0, 0, 0) + body


def test_requests_come_in_any_pieces(served: socket.socket) -> None:
    with connect(served) as connection:
        data = b"".join(request(Op.GETATTR, ROOT, bytes(16), unique) for unique in range(1, 4))
        for at in range(0, len(data), 7):
            connection.sendall(data[at : at + 7])
        got = b""
        while len(got) < 3 * 120:
            got += connection.recv(4096)
        assert [unpack("<IiQ", got[at : at + 16]) for at in (0, 120, 240)] == [(120, 0, n) for n in (1, 2, 3)]


def test_client_that_reads_nothing_costs_a_bounded_amount(served: socket.socket) -> None:
    with connect(served) as connection:
        connection.setblocking(False)
        sent = 0
        piece = request(Op.GETATTR, ROOT, bytes(16)) * 100
        for _ in range(10_000):
            try:
                sent += connection.send(piece)
            except BlockingIOError:
                break
        else:
            raise AssertionError("all was taken")
    with connect(served) as other:
        other.sendall(request(Op.GETATTR, ROOT, bytes(16)))
        assert len(other.recv(4096)) == 120


@pytest.mark.parametrize(
    "data", [bytes(40), pack("<I", 1 << 30) + bytes(36), request(Op.LOOKUP, ROOT, b"../secret\0")]
)
def test_bad_request_ends_this_connection_only(served: socket.socket, data: bytes) -> None:
    with connect(served) as good, connect(served) as bad:
        bad.sendall(data)
        assert bad.recv(100) == b""
        good.sendall(request(Op.GETATTR, ROOT, bytes(16)))
        assert len(good.recv(4096)) == 120


def test_server_is_a_confined_process_that_ends_with_the_machine(root: Path) -> None:
    loop = Loop()
    server = ShareServer(Share(root, "/mnt"), loop)
    found: list[socket.socket | None] = []
    server.dial(1, found.append)
    while not found:
        loop.step(5)
    connection = found[0]
    assert connection is not None
    with connection:
        connection.setblocking(True)
        connection.settimeout(10)
        connection.sendall(request(Op.LOOKUP, ROOT, b"file\0"))
        assert unpack_from("<iQQ", connection.recv(4096), 4)[0] == 0
        descriptor = os.pidfd_open(server._child)
        server.close()
        assert connection.recv(1) == b""
    os.close(descriptor)
    loop.close()
    with pytest.raises(ConfigError, match="No such file"):
        ShareServer(Share(root / "missing", "/mnt"), loop)


# The option


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("/a", Share(Path("/a"), "/a")),
        ("/a,ro", Share(Path("/a"), "/a", True)),
        ("/a:/b", Share(Path("/a"), "/b")),
        ("/a:/b/../c/,rw", Share(Path("/a"), "/c")),
        ("/a:b", Share(Path("/a:b"), "/a:b")),
        ("/a,,b:/c,ro", Share(Path("/a,b"), "/c", True)),
    ],
)
def test_option_is_read(text: str, share: Share) -> None:
    assert parse_share(text) == share and parse_share(str(share)) == share


@pytest.mark.parametrize("text", ["", ":/x", "/a,rx", "/a:/", "/a:/proc/x", "/a:/dev", "/", "/a,ro,x"])
def test_other_options_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_share(text)


def test_folders_are_checked(root: Path) -> None:
    check_shares([Share(root, "/a"), Share(root, "/b")])
    for shares in ([Share(root / "file", "/a")], [Share(root / "no", "/a")], [Share(root, "/a")] * 2):
        with pytest.raises(ConfigError):
            check_shares(shares)


def test_word_of_the_command_line_has_no_odd_bytes() -> None:
    word = command_line_word(1, Share(Path("/x"), "/m n/é,%", True))
    assert word == "pyvmm.share=1887007489,ro,/m%20n/%C3%A9%2C%25"


def test_inner_folder_of_a_path(root: Path) -> None:
    share = Share(root, "/mnt")
    assert (
        share.inner(root / "sub") == "/mnt/sub" and share.inner(root) == "/mnt" and share.inner(root.parent) is None
    )
