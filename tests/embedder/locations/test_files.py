"""Files under allowed directories: real ones."""

from __future__ import annotations

import os
from pathlib import Path

from places import kinds, read

from embedder.locations.config import LocationsConfig
from shoal.errors import ImageTooLarge, InvalidArgument, NotFound, Unsupported


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
