"""Pictures by the URIs of stored points."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest

from shoal.app.jobs import pictures_of_points
from shoal.app.jobs.pictures_of_points import Pictures
from shoal.errors import ImageTooLarge, LocationUnavailable, NotFound


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    opened = Pictures()
    yield opened
    opened.close()


def tar_of(path: Path, **members: bytes) -> str:
    """A tar with these members; gives its URI."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path.as_uri()


def test_a_file_is_read_by_its_uri(tmp_path: Path, pictures: Pictures) -> None:
    """Whatever letters its name has: a URI quotes them."""
    file = tmp_path / "a b#ä?.png"
    file.write_bytes(b"picture")
    assert pictures.read(file.as_uri()) == b"picture"


def test_a_member_of_a_tar_is_read_by_the_fragment(tmp_path: Path, pictures: Pictures) -> None:
    """Again and again, in any order."""
    uri = tar_of(tmp_path / "a b.tar", **{"x/1 #.png": b"one", "2.png": b"two"})
    assert pictures.read(f"{uri}#2.png") == b"two"
    assert pictures.read(f"{uri}#{quote('x/1 #.png')}") == b"one"
    assert pictures.read(f"{uri}#2.png") == b"two"


def test_only_a_few_tars_stay_open(
    tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was used longest ago is closed; it is opened again when it is needed."""
    monkeypatch.setattr(pictures_of_points, "_OPEN_TARS", 2)
    uris = [tar_of(tmp_path / f"{n}.tar", **{"p.png": bytes([n])}) for n in range(3)]
    for n in (0, 1, 0, 2):
        assert pictures.read(f"{uris[n]}#p.png") == bytes([n])
    (tmp_path / "0.tar").write_bytes(b"changed")  # an open tar does not notice
    assert [file.name for file in pictures._tars] == ["0.tar", "2.tar"]
    assert pictures.read(f"{uris[1]}#p.png") == bytes([1])
    kept = list(pictures._tars.values())
    pictures.close()
    assert not pictures._tars
    assert all(tar.closed for tar in kept)


def test_other_uris_are_fsspecs(pictures: Pictures) -> None:
    """All that fsspec knows."""
    with fsspec.open("memory://bucket/p.png", "wb") as file:
        file.write(b"picture")
    assert pictures.read("memory://bucket/p.png") == b"picture"


def test_a_picture_that_is_too_large_is_told(
    tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any place; a part of it is never taken for the whole."""
    with fsspec.open("memory://bucket/p.png", "wb") as file:
        file.write(b"picture")
    (tmp_path / "p.png").write_bytes(b"picture")
    uris = ["memory://bucket/p.png", (tmp_path / "p.png").as_uri()]
    uris.append(f"{tar_of(tmp_path / 't.tar', **{'p.png': b'picture'})}#p.png")
    below = Pictures(tmp_path)
    monkeypatch.setattr(pictures_of_points, "_MOST_BYTES", 7)
    assert [pictures.read(uri) for uri in uris] == [b"picture"] * 3
    assert below.read("s3://gone/p.png") == b"picture"
    monkeypatch.setattr(pictures_of_points, "_MOST_BYTES", 6)
    for uri in uris:
        with pytest.raises(ImageTooLarge, match=f"{uri}: expected at most 6 bytes, got more"):
            pictures.read(uri)
    for uri in ("s3://gone/p.png", "file:///gone/p.png"):
        with pytest.raises(ImageTooLarge):
            below.read(uri)


def test_tars_one_after_the_other_are_one(tmp_path: Path, pictures: Pictures) -> None:
    """As they were when their members were stored."""
    uri = tar_of(tmp_path / "a.tar", **{"1.png": b"one"})
    tar_of(tmp_path / "b.tar", **{"2.png": b"two"})
    with (tmp_path / "a.tar").open("ab") as file:
        file.write((tmp_path / "b.tar").read_bytes())
    assert pictures.read(f"{uri}#2.png") == b"two"


@pytest.mark.parametrize(
    ("uri", "below"),
    [
        ("https://host/photos/2024/1.png", "2024/1.png"),
        ("file:///gone/photos/2024/1.png", "1.png"),
        ("file:///gone/a%20b.png", "a b.png"),
        ("file:///gone/photos.tar#inner/2.png", "inner/2.png"),
        ("file:///gone/../1.png", "gone/1.png"),
    ],
)
def test_a_directory_stands_for_the_place_of_before(tmp_path: Path, uri: str, below: str) -> None:
    """By as much of the URI's end as leads to a file there, the longest first."""
    file = tmp_path / below
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"wanted")
    assert Pictures(tmp_path).read(uri) == b"wanted"
    if file.parent != tmp_path:
        (tmp_path / file.name).write_bytes(b"another of this name")
        assert Pictures(tmp_path).read(uri) == b"wanted"


def test_what_is_not_there_is_not_found(tmp_path: Path, pictures: Pictures) -> None:
    """No file, no member, no scheme; nothing outside the directory that is given."""
    uri = tar_of(tmp_path / "t.tar", **{"1.png": b"one"})
    for missing in ((tmp_path / "no.png").as_uri(), f"{uri}#2.png", "memory://none/p.png"):
        with pytest.raises(NotFound, match="nothing is there"):
            pictures.read(missing)
    for nothing in ("", "photos/1.png"):
        with pytest.raises(NotFound, match="expected a URI"):
            pictures.read(nothing)
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    with pytest.raises(NotFound):
        Pictures(inside).read("file:///x/../secret.png")


def test_what_cannot_be_read_is_unavailable(tmp_path: Path, pictures: Pictures) -> None:
    """A directory, a damaged tar, a scheme that nobody knows: the picture is named."""
    (tmp_path / "bad.tar").write_bytes(b"no tar at all")
    for uri in (
        tmp_path.as_uri(),
        f"{(tmp_path / 'bad.tar').as_uri()}#1.png",
        "nosuch://host/p.png",
    ):
        with pytest.raises(LocationUnavailable, match="cannot be read"):
            pictures.read(uri)
