"""Files under allowed directories: real ones."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from places import Plain, kinds, read

from embedder.locations.config import LocationsConfig
from embedder.locations.files import Files, _failure
from shoal.errors import (
    ImageTooLarge,
    InvalidArgument,
    LocationUnavailable,
    NotFound,
    ShoalError,
    Unsupported,
)


def test_file_under_a_root_is_read_however_its_uri_is_written(root: Path) -> None:
    """Percent-encoding, a host of localhost and dots inside the root all name the file."""
    uri = (root / "sub" / "a b#1.png").as_uri()
    dotted = uri.replace("/sub/", "/sub/../sub/./")
    local = uri.replace("file:///", "file://localhost/")
    assert read(LocationsConfig(roots=(root,)), uri, dotted, local) == [b"inside"] * 3


def test_file_outside_the_roots_is_refused_by_name_and_by_link(root: Path) -> None:
    """Neither .., nor a root's name as a beginning, nor links of any kind lead out."""
    (root / "link").symlink_to(root.parent / "secret")
    (root / "up").symlink_to(root.parent)
    base = root.as_uri()
    answers = read(
        LocationsConfig(roots=(root,)),
        f"{base}/../secret",
        f"{base}/%2e%2e/secret",
        f"{base}-2/x",
        f"{base}/link",
        f"{base}/up/secret",
        "file:///etc/passwd",
        f"{base}/../absent",
    )
    assert kinds(answers) == [Unsupported] * 7


def test_file_may_be_linked_inside_and_the_root_may_be_a_link(root: Path) -> None:
    """A link that stays under a root is followed, and a root is where its link leads."""
    (root / "again").symlink_to(root / "sub" / "a b#1.png")
    alias = root.parent / "alias"
    alias.symlink_to(root)
    config = LocationsConfig(roots=(alias,))
    by_both = read(config, (alias / "again").as_uri(), (root / "again").as_uri())
    assert by_both == [b"inside", b"inside"]


def test_file_that_is_none_is_told_apart(root: Path) -> None:
    """Nothing there, a directory, a pipe (without waiting for its other end), a bad URI."""
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    base = root.as_uri()
    answers = read(
        LocationsConfig(roots=(root,)),
        f"{base}/absent.png",
        f"{base}/sub",
        f"{base}/pipe",
        f"{base}/sub/a%20b#1.png",
        "file://elsewhere/x",
        f"{base}/%00",
        f"{base}/{'x' * 300}",
        f"{base}/loop",
        f"{base}/sub/a%20b%231.png/x",
    )
    bad = InvalidArgument
    assert kinds(answers) == [NotFound, *[bad] * 7, NotFound]


def test_file_larger_than_an_image_may_be_is_not_read(root: Path) -> None:
    """The size is looked at first, and is in the message."""
    (root / "large").write_bytes(b"x" * 1001)
    (answer,) = read(LocationsConfig(roots=(root,)), (root / "large").as_uri())
    assert isinstance(answer, ImageTooLarge)
    assert "at most 1000 bytes, got 1001" in answer.message


def read_now(
    roots: Sequence[Path],
    uri: str,
    *,
    max_bytes: int = 1000,
    on_reserve: Callable[[], object] = lambda: None,
) -> tuple[bytes | ShoalError, list[int]]:
    """What is read at ``uri``, or the error, and the memory that was reserved."""
    means = Plain(on_reserve=on_reserve)
    try:
        return asyncio.run(Files(roots).read(uri, max_bytes=max_bytes, means=means)), means.reserved
    except ShoalError as exc:
        return exc, means.reserved


def test_memory_is_reserved_for_the_files_size(root: Path) -> None:
    """Once, and not at all for a file that is too large; the limit itself is allowed."""
    uri = (root / "sub" / "a b#1.png").as_uri()
    assert read_now([root], uri, max_bytes=6) == (b"inside", [6])
    outcome, reserved = read_now([root], uri, max_bytes=5)
    assert isinstance(outcome, ImageTooLarge)
    assert reserved == []
    told = f"image {uri!r}: expected at most 5 bytes, got 6"
    assert outcome.message == told
    assert (outcome.metadata["max_bytes"], outcome.metadata["bytes"]) == ("5", "6")


@pytest.mark.parametrize("content", [b"inside and more", b"in", b""])
def test_file_that_changes_while_it_is_read_is_unavailable(root: Path, content: bytes) -> None:
    """Longer or shorter than its size said: neither a part of it nor more than was reserved."""
    file = root / "x"
    file.write_bytes(b"inside")
    outcome, _ = read_now([root], file.as_uri(), on_reserve=lambda: file.write_bytes(content))
    assert isinstance(outcome, LocationUnavailable)
    assert outcome.message == f"file {file.as_uri()!r}: it changed while it was read"


def test_file_that_is_replaced_while_it_is_read_is_checked_again(root: Path) -> None:
    """A link put in its place between the look and the read leads nowhere either."""
    file = root / "x"
    file.write_bytes(b"inside")

    def replace() -> None:
        file.unlink()
        file.symlink_to(root.parent / "secret")

    outcome, _ = read_now([root], file.as_uri(), on_reserve=replace)
    assert isinstance(outcome, Unsupported)


@pytest.mark.parametrize(
    "name", ["absent", "sub", "x" * 300, "sub/a%20b%231.png", "link", "%00", "loop"]
)
def test_no_descriptor_is_left_open(root: Path, name: str) -> None:
    """However a read ends."""
    (root / "link").symlink_to(root.parent / "secret")
    (root / "loop").symlink_to("loop")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        read_now([root], f"{root.as_uri()}/{name}")
    assert len(list(descriptors.iterdir())) == before


def test_file_is_looked_at_before_it_is_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device or a pipe would notice that it is opened; a child process gets no descriptor."""
    really, flags = os.open, list[int]()

    def opened(path: bytes, given: int) -> int:
        flags.append(given)
        return really(path, given)

    monkeypatch.setattr(os, "open", opened)
    read_now([root], (root / "sub").as_uri())
    assert flags == [os.O_PATH | os.O_CLOEXEC]


def test_whole_machine_may_be_a_root(root: Path) -> None:
    """A root that ends with a slash is no other."""
    uri = (root / "sub" / "a b#1.png").as_uri()
    assert read_now([Path("/")], uri)[0] == b"inside"


def test_each_root_may_be_read(root: Path) -> None:
    """The first and the last, by the name that it was given and by where it lies."""
    other = root.parent / "photos-2"
    alias = root.parent / "alias"
    alias.symlink_to(other)
    uris = [(root / "sub" / "a b#1.png").as_uri(), (alias / "x").as_uri(), (other / "x").as_uri()]
    assert [read_now([root, alias], uri)[0] for uri in uris] == [b"inside", b"outside", b"outside"]
    relative = Path(os.path.relpath(root))
    assert read_now([relative], uris[0])[0] == b"inside"


def test_root_itself_is_no_file(root: Path) -> None:
    """Its own name, with or without a slash, is not below it."""
    for uri in (root.as_uri(), f"{root.as_uri()}/", f"{root.as_uri()}/sub/.."):
        assert isinstance(read_now([root], uri)[0], Unsupported)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("file://elsewhere/x", "file:///path"),
        ("file:x", "file:///path"),
        ("file://localhost", "file:///path"),
        ("file:///a%00b", "file:///path"),
        ("file:///x?y", "? in a path as %3F"),
        ("file:///x#y", "# in a path as %23"),
    ],
)
def test_malformed_uri_is_told_apart(root: Path, written: str, expected: str) -> None:
    """The caller's mistake, whether or not the place would be allowed."""
    outcome, _ = read_now([root], written)
    assert isinstance(outcome, InvalidArgument)
    assert outcome.message == f"image.uri: expected {expected}, got {written!r}"
    assert outcome.metadata["field"] == "image.uri"


def test_name_is_bytes_and_not_only_utf_8(root: Path) -> None:
    """A file whose name no text has is read by its percent-encoding."""
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:  # noqa: PTH123 - no Path has it
        file.write(b"inside")
    assert read_now([root], f"{root.as_uri()}/%FF.png")[0] == b"inside"


def test_what_is_no_regular_file_is_named(root: Path) -> None:
    """A directory and a pipe: the message says what was expected."""
    os.mkfifo(root / "pipe")
    for name in ("sub", "pipe"):
        uri = f"{root.as_uri()}/{name}"
        outcome, _ = read_now([root], uri)
        assert isinstance(outcome, InvalidArgument)
        told = f"image.uri: expected a regular file, got {uri!r}, which is none"
        assert (outcome.message, outcome.metadata["field"]) == (told, "image.uri")


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOENT, NotFound, "no such file: 'file:///x'"),
        (errno.ENOTDIR, NotFound, "no such file: 'file:///x'"),
        (errno.EACCES, InvalidArgument, "image.uri: expected a file to read, got 'file:///x': why"),
        (errno.EPERM, InvalidArgument, "image.uri: expected a file to read, got 'file:///x': why"),
        (errno.ELOOP, InvalidArgument, "image.uri: expected a file to read, got 'file:///x': why"),
        (
            errno.ENAMETOOLONG,
            InvalidArgument,
            "image.uri: expected a file to read, got 'file:///x': why",
        ),
        (errno.EIO, LocationUnavailable, "file 'file:///x': why"),
        (errno.EMFILE, LocationUnavailable, "file 'file:///x': why"),
    ],
)
def test_error_of_the_system_says_whether_to_try_again(
    number: int, kind: type[ShoalError], message: str
) -> None:
    """Nothing there, nothing to be read, or nothing now."""
    error = _failure("file:///x", OSError(number, "why"))
    assert type(error) is kind
    assert error.message == message
    if kind is InvalidArgument:
        assert error.metadata["field"] == "image.uri"
