"""The value of --disk."""

from __future__ import annotations

import pytest

from pyvmm.disks.spec import DiskSpec, parse_disk
from pyvmm.errors import ConfigError


def test_options_follow_the_file_in_any_order() -> None:
    spec = parse_disk("/a b/c.img,werror=stop,ro,id=root,serial=X-1,format=raw")
    assert spec == DiskSpec("/a b/c.img", True, "raw", "root", "X-1", "stop")


@pytest.mark.parametrize(
    "text", ["a.img", "a.img,ro", "a,,b=c.img,id=x", "x,format=raw,werror=report,serial=s,rerror=stop", ",,a"]
)
def test_words_of_a_disk_are_parsed_to_the_same_disk(text: str) -> None:
    assert parse_disk(str(parse_disk(text))) == parse_disk(text)


def test_two_commas_are_one_in_the_name() -> None:
    assert parse_disk("a,,b,ro").path == "a,b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no file"),
        (",ro", "names no file"),
        ("a,rw", "'rw' is no option of a disk; there are ro,"),
        ("a,ro=1", "'ro=1' is no option"),
        ("a,id", "'id' is no option"),
        ("a,", "'' is no option"),
        ("a,id=0", "id='0': it may be a letter"),
        ("a,id=" + "x" * 65, "id='xxx"),
        ("a,format=cow", "format='cow': it may be raw, qcow2"),
        ("a,werror=ignore", "werror='ignore': it may be report, stop, enospc"),
        ("a,rerror=enospc", "rerror='enospc': it may be report, stop"),
        ("a,serial=ä", "serial='ä': it may be 1 to 36"),
        ("a,serial=", "serial=''"),
    ],
)
def test_what_is_no_disk_is_refused_with_what_there_is(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="^[^\n]*" + message[:10].replace("(", "[(]")) as error:
        parse_disk(text)
    assert message in str(error.value)
