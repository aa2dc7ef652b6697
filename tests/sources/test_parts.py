"""Sources cut into parts: each image in exactly one of them, named as if it were read whole."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest

from shoal.client import IngestItem, IngestOutcome
from shoal.errors import InvalidArgument
from shoal.sources import LeftOut, SourceConfig, SourceItem, read_items
from shoal.sources.parts import Part, read_part, split

NAMES = SourceConfig(keys="name", source="cam", payload={"year": 2024})


def parts_of(*paths: Path | str, least: int = 1) -> list[Part]:
    return list(split([str(path) for path in paths], least=least, left_out=LeftOut()))


def read(parts: list[Part], config: SourceConfig = NAMES) -> list[SourceItem]:
    return [item for part in parts for item in read_part(part, config)]


def whole(*paths: Path | str) -> list[SourceItem]:
    return list(read_items([str(path) for path in paths], NAMES))


def fill(directory: Path, count: int) -> Path:
    directory.mkdir()
    for number in range(count):
        (directory / f"{number:04}.png").write_bytes(str(number).encode())
    return directory


def test_parts_give_what_reading_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, directories, tars and URIs: the same items in the same order, from any directory."""
    photos = fill(tmp_path / "photos", 3)
    (photos / "deep").mkdir()
    (photos / "deep" / "x.jpg").write_bytes(b"x")
    tar = tmp_path / "set.tar"
    with tarfile.open(tar, "w") as archive:
        member = tarfile.TarInfo("y.png")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"y"))
    tar.rename(tmp_path / "set")  # by its content
    tar = tmp_path / "set"
    paths = [photos, photos / "0001.png", tar, "s3://bucket/z.png", tmp_path / "missing.png"]
    expected = whole(*paths)
    monkeypatch.chdir(tmp_path)
    relative = ["photos", "photos/0001.png", "set", "s3://bucket/z.png", "missing.png"]
    parts = parts_of(*relative)
    assert [part.kind for part in parts] == ["files", "files", "tar", "uris", "files"]
    monkeypatch.chdir(photos)
    assert read(parts) == expected
    assert len(expected) == 8


def test_large_directories_are_several_parts(tmp_path: Path) -> None:
    """At most 256 files each; none is empty, none is left out."""
    for count, sizes in ((255, [255]), (256, [256]), (257, [256, 1]), (512, [256, 256]), (0, [])):
        photos = fill(tmp_path / f"of{count}", count)
        parts = parts_of(photos)
        assert [len(part.places) for part in parts] == sizes
        assert [len(part.names) for part in parts] == sizes
        assert read(parts) == whole(photos)


def test_a_directory_that_cannot_be_listed_is_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its failure comes out when the part is read, beside the images that can be listed."""
    photos = fill(tmp_path / "photos", 2)

    def walk(directory: Path, *, on_error: object, left_out: LeftOut) -> object:
        assert callable(on_error)
        left_out.add("hidden", "x")
        yield directory / "0000.png"
        on_error(OSError(13, "Permission denied", str(directory / "locked")))

    monkeypatch.setattr("shoal.sources.parts.walk", walk)
    left_out = LeftOut()
    first, second = split([str(photos)], least=1, left_out=left_out)
    assert left_out.counts == {"hidden": 1}
    assert (second.kind, second.places, second.names) == (
        "unreadable",
        (str(photos / "locked"),),
        ("Permission denied",),
    )
    item, failure = read([first, second])
    assert isinstance(item, IngestItem)
    assert isinstance(failure, IngestOutcome)
    assert failure.name == str(photos / "locked")
    assert failure.failure is not None
    assert failure.failure.message == "cannot be read: Permission denied"


def write_manifest(path: Path, lines: int, *, last_newline: bool = True) -> Path:
    """Lines of different lengths, some longer than others by far, some empty."""
    texts = []
    for number in range(lines):
        line = json.dumps({"uri": f"s3://b/{number}", "payload": {"x": "y" * (number * 37 % 900)}})
        texts.append(line if number % 7 else f"{line}\n")
    path.write_text("\n".join(texts) + ("\n" if last_newline else ""))
    return path


@pytest.mark.parametrize("least", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("last_newline", [True, False])
def test_each_line_of_a_manifest_is_in_one_part(
    tmp_path: Path, least: int, *, last_newline: bool
) -> None:
    """However it is cut: in the middle of lines, between them, after the last."""
    manifest = write_manifest(tmp_path / "m.jsonl", 200, last_newline=last_newline)
    parts = parts_of(manifest, least=least)
    size = manifest.stat().st_size
    assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
    assert (parts[0].start, parts[-1].end) == (0, size)
    steps = [part.end - part.start for part in parts]
    assert all(step <= max(2**14, -(-size // least)) for step in steps)
    assert len(parts) == min(least, -(-size // 2**14))
    uris = [item.uri for item in read(parts) if isinstance(item, IngestItem)]
    assert uris == [f"s3://b/{number}" for number in range(200)]


def test_a_manifest_may_be_cut_anywhere(tmp_path: Path) -> None:
    """At every byte of it: what begins before the cut is before it, and nothing is twice."""
    manifest = write_manifest(tmp_path / "m.jsonl", 5)
    size = manifest.stat().st_size
    expected = [f"s3://b/{number}" for number in range(5)]
    for cut in range(1, size):
        halves = [
            Part("manifest", (str(manifest),), start=start, end=end)
            for start, end in ((0, cut), (cut, size))
        ]
        assert [item.uri for item in read(halves) if isinstance(item, IngestItem)] == expected


def test_lines_of_a_part_say_where_it_begins(tmp_path: Path) -> None:
    """Their numbers begin anew in each part, so its name tells the parts apart."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"uri": "s3://b/1"}\nwrong\n')
    first = Part("manifest", (str(manifest),), start=0, end=20)
    second = dataclasses.replace(first, start=20, end=26)
    assert [each.name for each in read([first, second])] == [
        f"{manifest}:1: s3://b/1",
        f"{manifest}@20:1",
    ]


def test_a_manifest_that_has_gone_is_a_failure(tmp_path: Path) -> None:
    """Of its part only: other parts are read."""
    manifest = write_manifest(tmp_path / "m.jsonl", 3)
    parts = parts_of(manifest, "s3://b/x")
    manifest.unlink()
    failure, item = read(parts)
    assert isinstance(failure, IngestOutcome)
    assert failure.name == str(manifest)
    assert isinstance(item, IngestItem)


def test_an_empty_manifest_has_no_parts(tmp_path: Path) -> None:
    """There is nothing to read."""
    (tmp_path / "m.jsonl").touch()
    assert parts_of(tmp_path / "m.jsonl") == []


def test_standard_input_cannot_be_cut() -> None:
    """One process only can read it; the answer says what to give instead."""
    with pytest.raises(InvalidArgument, match="reads manifests from files, not from stdin"):
        parts_of("-")
