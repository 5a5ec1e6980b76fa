"""Asking apt: which package is chosen, from which lists. apt itself is played by a function."""

from __future__ import annotations

import errno
import signal
import time
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError, HostError
from pyvmm.images import packages
from pyvmm.images.packages import dependency, download, find_package, natural, run

TARGETS = """\
Packages|Debian|http://mirror.example/debian/|bookworm
Packages|Debian|http://mirror.example/debian/|bookworm-updates
Packages|Debian|http://mirror.example/debian-security/|bookworm-security
Translations|Debian|http://mirror.example/debian/|bookworm
Packages|Else|http://other.example/apt/|stable
"""


class Apt:
    """Answers apt-cache and apt-get; `machine` and `private` are the package names in each set of lists."""

    def __init__(self) -> None:
        self.machine: list[str] = []
        self.private: list[str] = []
        self.targets = TARGETS
        self.updates = 0
        self.depends = "kmod, linux-base (>= 4.3~), linux-binary-9 (= 1) | other"

    def __call__(self, *command: str, cwd: Path | None = None) -> str:
        program, *words = command
        names = self.private if any("sources.list" in word for word in words) else self.machine
        if "indextargets" in words:
            return self.targets
        if "update" in words:
            self.updates += 1
            return ""
        if "search" in words:
            return "".join(f"{name} - Linux\n" for name in names)
        if "show" in words:
            return f"Package: {words[-1]}\nVersion: 1:2-3\nDepends: {self.depends}\nDescription: x\n y: z\n"
        if "download" in words and cwd is not None:
            (cwd / f"{words[-1].partition('=')[0]}_1%3a2-3_amd64.deb").write_bytes(b"deb")
            return ""
        raise AssertionError(f"{program} {words}")


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    apt = Apt()
    monkeypatch.setattr(packages, "run", apt)
    return apt


PATTERN = r"linux-image-6[.]1[.][^ ]*-cloud-amd64"


def test_newest_matching_package_of_the_machine_is_taken(apt: Apt) -> None:
    apt.machine = [f"linux-image-6.1.0-{n}-cloud-amd64" for n in (9, 56, 47)] + [
        "linux-image-6.1.0-99-cloud-amd64-dbg"
    ]
    package = find_package(PATTERN, ("bookworm",))
    assert package.name == "linux-image-6.1.0-56-cloud-amd64"
    assert package.version == "1:2-3"
    assert apt.updates == 0


def test_other_suites_come_from_the_machines_own_mirrors(apt: Apt, tmp_path: Path) -> None:
    apt.private = ["linux-image-6.1.0-1-cloud-amd64"]
    package = find_package(PATTERN, ("bullseye",))
    assert package.source.label == "Debian bullseye"
    lines = (tmp_path / "apt/bullseye/sources.list").read_text().splitlines()
    assert [line.split("] ")[-1].removeprefix("deb ") for line in lines] == [
        "http://mirror.example/debian/ bullseye main",
        "http://mirror.example/debian-security/ bullseye-security main",
    ]


def test_the_newest_of_all_lists_is_found_where_asked_for(apt: Apt) -> None:
    apt.machine, apt.private = ["linux-source-6.12"], ["linux-source-6.9", "linux-source-7.3"]
    pattern = "linux-source-[0-9.]+"
    assert find_package(pattern, ("sid",)).name == "linux-source-6.12"
    package = find_package(pattern, ("sid",), everywhere=True)
    assert (package.name, package.source.label) == ("linux-source-7.3", "Debian sid")
    apt.private = []
    assert find_package(pattern, ("sid",), everywhere=True).name == "linux-source-6.12"


def test_own_lists_are_fetched_once_a_day(apt: Apt) -> None:
    apt.private = ["linux-image-6.1.0-1-cloud-amd64"]
    find_package(PATTERN, ("sid",))
    find_package(PATTERN, ("sid",))
    assert apt.updates == 1


def test_all_attempts_are_reported(apt: Apt) -> None:
    expected = r"this machine's package lists: none; Debian bullseye: none; Debian sid: none\); check apt's sources"
    with pytest.raises(ConfigError, match=expected):
        find_package(PATTERN, ("bullseye", "sid"))


def test_a_computer_without_a_debian_mirror_is_reported(apt: Apt) -> None:
    apt.targets = "Packages|Ubuntu|http://ubuntu.example/ubuntu/|noble\n"
    with pytest.raises(ConfigError, match="no Debian mirror"):
        find_package(PATTERN, ("bullseye",))


def test_needed_package_is_found_by_pattern(apt: Apt) -> None:
    apt.machine = ["linux-image-6.1.0-1-cloud-amd64"]
    package = find_package(PATTERN, ())
    assert package.depends == ("kmod", "linux-base", "linux-binary-9")
    found = dependency(package, "linux-binary-.*")
    assert found is not None
    assert found.name == "linux-binary-9"
    assert dependency(package, "linux-modules-.*") is None


def test_package_is_fetched_once(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    apt.machine = ["linux-image-6.1.0-1-cloud-amd64"]
    package = find_package(PATTERN, ())
    deb = download(package)
    assert deb.read_bytes() == b"deb"
    monkeypatch.setattr(packages, "run", lambda *_: pytest.fail("asked again"))
    assert download(package) == deb
    assert sorted(path.name for path in deb.parent.iterdir()) == [deb.name]


def test_numbers_in_names_are_compared_as_numbers() -> None:
    names = ["linux-image-6.12.9+deb12", "linux-image-6.12.117+deb12", "linux-image-6.12.63+deb12"]
    assert max(names, key=natural) == "linux-image-6.12.117+deb12"


def test_failing_program_is_one_line_with_its_last_complaint() -> None:
    with pytest.raises(HostError, match="sh failed: E: no space") as caught:
        run("sh", "-c", "echo noise >&2; echo 'E: no space' >&2; echo 'W: aside' >&2; exit 100")
    assert "\n" not in str(caught.value)


def test_full_disk_of_a_program_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        run("sh", "-c", "echo 'tar: x: Cannot write: No space left on device' >&2; echo 'E: failed' >&2; exit 2")
    assert caught.value.errno == errno.ENOSPC


def test_missing_program_is_one_line() -> None:
    with pytest.raises(HostError, match="no-such-program is missing"):
        run("no-such-program")


def test_an_interrupted_program_ends_with_all_it_started(tmp_path: Path) -> None:
    """dpkg-deb runs tar: left alone, that goes on filling a folder that is being removed."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    begun = tmp_path / "begun"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            run("sh", "-c", f"sh -c 'echo $$ >{begun}; exec sleep 60'; true")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    deadline = time.monotonic() + 5
    while is_running(int(begun.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
