"""The text of `--share`: DIR[:PATH][,ro]."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import ConfigError

FIRST_PORT = 0x70797300  # "pys", number
"""The host's port of the first shared folder."""
SHARES_LIMIT = 16


@dataclass(frozen=True, slots=True)
class Share:
    """A folder to share: where it lies here, and in the guest."""

    folder: Path
    target: str
    read_only: bool = False

    def __str__(self) -> str:
        text = f"{self.folder}:{self.target}".replace(",", ",,")
        return text + (",ro" if self.read_only else "")

    def inner(self, path: Path) -> str | None:
        """Return the guest's path of a host's path, None for one outside the folder."""
        try:
            below = path.resolve().relative_to(self.folder.resolve())
        except (OSError, ValueError):
            return None
        return os.path.join(self.target, below) if below.parts else self.target


def parse_share(text: str) -> Share:
    """Parse `DIR[:PATH][,ro]`; `,,` is a comma in a name. Raises ConfigError."""
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    place, options = parts[0], parts[1:]
    unknown = [each for each in options if each not in ("ro", "rw")]
    if unknown:
        raise ConfigError(f"{unknown[0][:40]!r} is no option of a shared folder: ro is; a comma in a name is ,,")
    folder, colon, below = place.partition(":/")
    target = f"/{below}" if colon else ""
    if not folder:
        raise ConfigError("name the folder to share: DIR[:PATH][,ro]")
    target = os.path.normpath(target or os.path.abspath(folder))
    if (
        target in ("/", "//")
        or target.startswith(("/proc/", "/sys/", "/dev/"))
        or target in ("/proc", "/sys", "/dev")
    ):
        raise ConfigError(f"a folder cannot be at {target} in the guest: name another place, DIR:/mnt")
    return Share(Path(os.path.abspath(folder)), target, "ro" in options)


def check_shares(shares: Sequence[Share]) -> None:
    """Raise ConfigError for folders that are not there, or at the same place in the guest."""
    if len(shares) > SHARES_LIMIT:
        raise ConfigError(f"{len(shares)} shared folders, at most {SHARES_LIMIT}: share one that holds them")
    places: set[str] = set()
    for share in shares:
        if not share.folder.is_dir():
            what = "not a folder" if share.folder.exists() else "no such folder"
            raise ConfigError(f"--share {share.folder}: {what}")
        if share.target in places:
            raise ConfigError(f"--share: two folders at {share.target} in the guest; name another place, DIR:PATH")
        places.add(share.target)


def inner_folder(shares: Sequence[Share]) -> str | None:
    """Return where the working folder is in the guest; None if it is not shared."""
    try:
        here = Path.cwd()
    except OSError:
        return None
    return next(filter(None, (share.inner(here) for share in shares)), None)


def command_line_word(number: int, share: Share) -> str:
    """Return the word of the kernel's command line that lets init mount a folder. Its path has %XX for most bytes."""
    path = "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or byte in b"/._-") else f"%{byte:02X}"
        for byte in os.fsencode(share.target)
    )
    return f"pyvmm.share={FIRST_PORT + number},{'ro' if share.read_only else 'rw'},{path}"
