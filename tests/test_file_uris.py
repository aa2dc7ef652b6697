"""File URIs: there and back for any path, and one answer to each malformed one."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.file_uris import from_uri, is_file_uri, member_uri, readable_name, to_uri

NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in {b".", b".."}
)


@given(parts=st.lists(NAMES, min_size=1, max_size=3), member=st.lists(NAMES, max_size=2))
def test_any_path_comes_back_from_its_uri(parts: list[bytes], member: list[bytes]) -> None:
    """Of any bytes: spaces, #, ?, %, line breaks, and what is no UTF-8; members of tars too."""
    path = Path(os.fsdecode(b"/" + b"/".join(parts)))
    name = os.fsdecode(b"/".join(member))
    uri = member_uri(to_uri(path), name) if name else to_uri(path)
    assert uri.isascii()
    assert uri.isprintable()
    assert " " not in uri
    found = from_uri(uri)
    assert (found.path, found.member) == (path, name)
    assert urlsplit(uri).path == path.as_uri().removeprefix("file://")


@pytest.mark.parametrize(
    ("uri", "path", "member"),
    [
        ("file:///a/b.png", "/a/b.png", ""),
        ("FILE:///a", "/a", ""),
        ("file:/a/b.png", "/a/b.png", ""),
        ("file://localhost/a", "/a", ""),
        ("file://LocalHost/a", "/a", ""),
        ("file:///a%20b%23c%3Fd%25e", "/a b#c?d%e", ""),
        ("file:///a b/写真.png", "/a b/写真.png", ""),
        ("file:///%E5%86%99", "/写", ""),
        ("file:///caf%E9", "/caf\udce9", ""),
        ("file:///caf\udce9", "/caf\udce9", ""),
        ("file:///100%", "/100%", ""),
        ("file:///a\n\tb", "/a\n\tb", ""),
        ("file:///a.tar#x/1%20%23.png", "/a.tar", "x/1 #.png"),
        ("file:///a.tar#a#b", "/a.tar", "a#b"),
        ("file:///a#", "/a", ""),
    ],
)
def test_uris_are_read_as_people_write_them(uri: str, path: str, member: str) -> None:
    """In capitals, with a host of localhost, with letters that ought to be encoded."""
    assert is_file_uri(uri)
    found = from_uri(uri)
    assert (str(found.path), found.member) == (path, member)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:x", "file:///path"),
        ("file:", "file:///path"),
        ("file://x", "file:///path"),
        ("file://elsewhere/x", "file:///path"),
        ("file://[bad/x", "file:///path"),
        ("file:///a%00", "file:///path"),
        ("nile:///a", "file:///path"),
        ("file:///a?b", r"\? in a path as %3F"),
    ],
)
def test_malformed_uris_are_refused(uri: str, expected: str) -> None:
    """The message says what was expected; whoever asked says what it got."""
    with pytest.raises(ValueError, match=f"^expected {expected}$"):
        from_uri(uri)


def test_uri_is_of_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dots, and without following links."""
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert to_uri(Path("link/../a")) == f"file://{tmp_path}/a"
    assert to_uri(Path("link/a")) == f"file://{tmp_path}/link/a"


def test_names_that_are_no_utf_8_can_be_read() -> None:
    """The bytes that are not are percent-encoded; all else stays, also %."""
    assert readable_name(os.fsdecode(b"d/caf\xe9 100%.png")) == "d/caf%E9 100%.png"
    assert readable_name("写真.png") == "写真.png"
    of_c_locale = "写真.png".encode().decode("ascii", "surrogateescape")
    assert readable_name(of_c_locale) == "写真.png"
