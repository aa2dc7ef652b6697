"""Sources: what becomes an item, what it is called, and that no file stops the others."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shoal.client import IngestItem, IngestOutcome
from shoal.errors import InvalidArgument, NotFound
from shoal.sources import SourceConfig, SourceItem, check_paths, count_items, read_items

CONFIG = SourceConfig()


def read(*paths: Path | str, config: SourceConfig = CONFIG, stdin: bytes = b"") -> list[SourceItem]:
    return list(read_items([str(path) for path in paths], config, stdin=io.BytesIO(stdin)))


def items(found: Sequence[SourceItem]) -> list[IngestItem]:
    assert all(isinstance(each, IngestItem) for each in found), found
    return [each for each in found if isinstance(each, IngestItem)]


def failures(found: Sequence[SourceItem]) -> list[tuple[str, str]]:
    return [
        (each.name, each.failure.reason)
        for each in found
        if isinstance(each, IngestOutcome) and each.failure is not None
    ]


def write_tar(path: Path, members: dict[str, bytes], *, mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", ".hidden.png", ".git/d.png"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return root


def test_directory_gives_its_images_in_order(tree: Path) -> None:
    """A directory is searched for images; other files, and hidden ones, are counted."""
    config = SourceConfig()
    found = items(read(tree, config=config))
    assert [item.data for item in found] == [b"a.png", b"b.JPG", b"sub/c.webp"]
    assert count_items([str(tree)]) == 3
    assert config.left_out.counts == {"hidden_directory": 1, "hidden": 1, "not_an_image": 1}
    assert str(config.left_out) == (
        f"left out 3: 1 a hidden directory (such as {tree}/.git); "
        f"1 hidden (such as {tree}/.hidden.png); 1 not an image (such as {tree}/notes.txt)"
    )


def test_content_makes_an_image(tmp_path: Path) -> None:
    """Whatever a file of a directory is called; what it is not, is counted by reason."""
    jpeg = b"\xff\xd8\xff"
    for name in ("none", "x.dat", "x.HEIC", "x.jfif"):
        (tmp_path / name).write_bytes(jpeg)
    (tmp_path / "linked").symlink_to("none")
    (tmp_path / "raw.nef").write_bytes(b"II*\0")
    (tmp_path / "old.tgz").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "nowhere").symlink_to("nothing")
    (tmp_path / "directory").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    config = SourceConfig()
    found = items(read(tmp_path, config=config))
    names = [Path(item.name).name for item in found]
    assert names == ["linked", "none", "x.HEIC", "x.dat", "x.jfif"]
    assert config.left_out.counts == {
        "link_to_directory": 1,
        "camera_raw": 1,
        "broken_link": 1,
        "archive": 1,
        "not_a_file": 1,
        "unreadable": 1,
    }
    assert count_items([tmp_path]) == 5


def test_named_file_is_always_an_item(tree: Path) -> None:
    """A file that is named on the line is sent whatever its suffix is."""
    assert [item.data for item in items(read(tree / "notes.txt"))] == [b"notes.txt"]


def test_content_says_what_a_named_file_is(tmp_path: Path) -> None:
    """A tar without a tar's suffix, compressed or not; an image with the suffix of another kind."""
    plain = write_tar(tmp_path / "backup", {"1.png": b"one"})
    packed = write_tar(tmp_path / "backup.2024", {"2.png": b"two"}, mode="w:xz")
    jpeg = tmp_path / "photo.tar"
    jpeg.write_bytes(b"\xff\xd8\xff")
    assert [item.data for item in items(read(plain, packed, jpeg))] == [
        b"one",
        b"two",
        b"\xff\xd8\xff",
    ]
    assert count_items([plain, jpeg]) == 2
    assert count_items([packed]) is None


def test_key_uri_is_the_absolute_place(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys=uri, the key is the file's URI, however the path was written."""
    monkeypatch.chdir(tree / "sub")
    (by_relative,) = items(read("../a.png"))
    (by_absolute,) = items(read(tree / "a.png"))
    assert by_relative.key == by_relative.uri == (tree / "a.png").as_uri() == by_absolute.key


def test_key_name_does_not_depend_on_where_the_directory_is(tree: Path, tmp_path: Path) -> None:
    """With keys=name, the key is the path under the argument, with the argument's own name."""
    config = dataclasses.replace(CONFIG, keys="name")
    keys = [item.key for item in items(read(tree, config=config))]
    assert keys == ["photos/a.png", "photos/b.JPG", "photos/sub/c.webp"]
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    tree.rename(moved)
    assert [item.key for item in items(read(moved, config=config))] == keys


def test_key_content_is_left_to_the_server(tree: Path) -> None:
    """With keys=content, no key is sent: the server hashes the bytes."""
    config = dataclasses.replace(CONFIG, keys="content")
    assert {item.key for item in items(read(tree, config=config))} == {""}


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_tar_gives_its_image_members(tmp_path: Path, suffix: str, mode: str) -> None:
    """A tar's image members come in its order, each with the tar's URI and its own name."""
    path = tmp_path / f"set{suffix}"
    write_tar(path, {"n/2.png": b"two", "n/readme.txt": b"no", "n/1 a.jpg": b"one"}, mode=mode)
    found = items(read(path))
    assert [item.data for item in found] == [b"two", b"one"]
    assert [item.key for item in found] == [
        f"{path.as_uri()}#n/2.png",
        f"{path.as_uri()}#n/1%20a.jpg",
    ]
    named = items(read(path, config=dataclasses.replace(CONFIG, keys="name")))
    assert [item.key for item in named] == [f"set{suffix}/n/2.png", f"set{suffix}/n/1 a.jpg"]


def test_count_is_known_where_it_is_cheap(tmp_path: Path) -> None:
    """A plain tar is counted by its headers; a compressed one and stdin are not counted."""
    members = {f"{i}.png": b"x" * 2000 for i in range(7)}
    plain = write_tar(tmp_path / "a.tar", members)
    packed = write_tar(tmp_path / "a.tgz", members, mode="w:gz")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"path": "1"}\n\n{"path": "2"}\n')
    assert count_items([str(plain), str(manifest)]) == 9
    assert count_items([str(plain), str(packed)]) is None
    assert count_items(["-"]) is None


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_tar_ends_with_one_failure_in_its_name(tmp_path: Path, mode: str) -> None:
    """Members before the damage are items; the damage is one failed outcome."""
    path = tmp_path / ("a.tar" if mode == "w" else "a.tar.gz")
    data = random.Random(1).randbytes(5000)  # does not compress
    write_tar(path, {"1.png": data, "2.png": data[::-1]}, mode=mode)
    path.write_bytes(path.read_bytes()[: 7000 if mode == "w" else 6000])
    found = read(path)
    assert [each.data for each in found if isinstance(each, IngestItem)] == [data]
    assert failures(found) == [(str(path), "UNREADABLE")]


def spoil(data: bytes, how: str) -> bytes:
    """A tar of members of one block each, damaged after two of them."""
    third = 2 * 1024
    match how:
        case "header":
            return data[: third + 10] + bytes([data[third + 10] ^ 0xFF]) + data[third + 11 :]
        case "cut in a header":
            return data[: third + 100]
        case _:
            return data[:third]


@pytest.mark.parametrize("how", ["header", "cut in a header", "cut between members"])
def test_damaged_tar_does_not_end_in_silence(tmp_path: Path, how: str) -> None:
    """A bad or cut header, or no end mark, is a failed outcome that says where."""
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": bytes([i]) * 512 for i in range(4)})
    path.write_bytes(spoil(path.read_bytes(), how))
    *good, bad = read(path)
    assert [item.data for item in items(good)] == [bytes(512), b"\1" * 512]
    assert failures([bad]) == [(str(path), "UNREADABLE")]
    assert isinstance(bad, IngestOutcome)
    assert bad.failure is not None
    assert "damaged after 2,048 bytes" in bad.failure.message


def test_tar_with_long_names_is_whole(tmp_path: Path) -> None:
    """Headers that are spread over several members are no damage."""
    name = f"{'d' * 90}/{'e' * 90}/1.png"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            for prefix in ("", "x"):
                member = tarfile.TarInfo(f"{prefix}{name}")
                member.size = 3
                tar.addfile(member, io.BytesIO(b"abc"))
        assert [item.data for item in items(read(tmp_path / "a.tar"))] == [b"abc", b"abc"]


def test_file_that_is_no_tar_is_one_failure(tmp_path: Path) -> None:
    """A wrong .tar is a failed outcome; what comes after it is read."""
    wrong = tmp_path / "x.tar"
    wrong.write_bytes(b"not a tar at all")
    good = tmp_path / "y.png"
    good.write_bytes(b"y")
    found = read(wrong, good)
    assert failures(found) == [(str(wrong), "UNREADABLE")]
    assert isinstance(found[1], IngestItem)


def test_unreadable_file_is_a_failure_by_name(tmp_path: Path) -> None:
    """A broken link among the files fails alone; the others are items."""
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    found = read(tmp_path)
    assert failures(found) == [(str(tmp_path / "b.png"), "UNREADABLE")]
    assert [each.data for each in found if isinstance(each, IngestItem)] == [b"a"]


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    """A pipe without a writer and a link to a device fail at once; the others are items."""
    (tmp_path / "a.png").write_bytes(b"a")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    found = read(tmp_path, tmp_path / "b.png")
    assert [each.data for each in found if isinstance(each, IngestItem)] == [b"a"]
    assert failures(found) == [
        (str(tmp_path / name), "UNREADABLE") for name in ("b.png", "c.png", "b.png")
    ]
    messages = {
        each.failure.message for each in found if not isinstance(each, IngestItem) and each.failure
    }
    assert messages == {"cannot be read: not a regular file"}


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux's /proc")
def test_file_with_more_bytes_than_its_size_is_bounded() -> None:
    """What a file has when it is read counts, not what it claimed to have."""
    assert Path("/proc/version").stat().st_size == 0
    found = read("/proc/version", config=SourceConfig(max_bytes=5))
    assert failures(found) == [("/proc/version", "IMAGE_TOO_LARGE")]


def test_larger_files_than_the_limit_are_not_read(tmp_path: Path) -> None:
    """A file or member over max_bytes is reported; one of exactly max_bytes is an item."""
    (tmp_path / "a.png").write_bytes(b"12345")
    (tmp_path / "b.png").write_bytes(b"123456")
    tar = write_tar(tmp_path / "t.tar", {"c.png": b"123456", "d.png": b"1"})
    found = read(tmp_path / "a.png", tmp_path / "b.png", tar, config=SourceConfig(max_bytes=5))
    assert [each.data for each in found if isinstance(each, IngestItem)] == [b"12345", b"1"]
    assert failures(found) == [
        (str(tmp_path / "b.png"), "IMAGE_TOO_LARGE"),
        (f"{tar}#c.png", "IMAGE_TOO_LARGE"),
    ]


def test_empty_file_is_an_item(tmp_path: Path) -> None:
    """An empty file is sent: what an image is, is the server's to say."""
    (tmp_path / "a.png").touch()
    assert [item.data for item in items(read(tmp_path))] == [b""]


def test_items_are_read_when_asked_for(tmp_path: Path) -> None:
    """Reading is lazy: a file that goes away before its turn is that item's failure."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    found = read_items([str(tmp_path)], CONFIG, stdin=io.BytesIO())
    assert isinstance(next(found), IngestItem)
    (tmp_path / "b.png").unlink()
    assert failures(list(found)) == [(str(tmp_path / "b.png"), "UNREADABLE")]


def test_file_uri_is_the_file(tmp_path: Path) -> None:
    """A file: URI as an argument is what its path is, read here; also of a directory."""
    (tmp_path / "a b.png").write_bytes(b"x")
    uri = (tmp_path / "a b.png").as_uri()
    check_paths([uri])
    found = items(list(read_items([uri, tmp_path.as_uri()], CONFIG, stdin=io.BytesIO())))
    assert [(item.data, item.uri) for item in found] == [(b"x", uri)] * 2
    assert count_items([uri, tmp_path.as_uri()]) == 2
    with pytest.raises(NotFound, match="no such file or directory: file:///no/such"):
        check_paths(["file:///no/such"])


def test_names_of_any_bytes_have_keys(tmp_path: Path) -> None:
    """By place and by name, of files and of members: each key can be sent."""
    folder = os.fsencode(tmp_path / "p")
    os.mkdir(folder)  # noqa: PTH102 - bytes
    with open(folder + b"/caf\xe9 #1.png", "wb") as file:  # noqa: PTH123 - bytes
        file.write(b"x")
    write_tar(tmp_path / "p" / "t.tar", {"caf\udce9 #2.png": b"y"})
    for keys, expected in (
        ("uri", ["caf%E9%20%231.png", "t.tar#caf%E9%20%232.png"]),
        ("name", ["caf%E9 #1.png", "caf%E9 #2.png"]),
    ):
        config = SourceConfig(keys=keys)  # type: ignore[arg-type]  # of two
        found = items(read(tmp_path / "p", tmp_path / "p" / "t.tar", config=config))
        root = {"uri": (tmp_path / "p").as_uri(), "name": "p"}[keys]
        second = {"uri": f"{root}/", "name": "t.tar/"}[keys]
        assert [item.key for item in found] == [f"{root}/{expected[0]}", f"{second}{expected[1]}"]
        assert all(item.key.encode() for item in found)


def test_a_malformed_file_uri_is_one_failure(tmp_path: Path) -> None:
    """Of another machine, with a query, of a member: named, and what comes after it is read."""
    (tmp_path / "1.png").write_bytes(b"x")
    for uri, expected in (
        ("file://elsewhere/x", "expected file:///path, got file://elsewhere/x"),
        ("file:///x?y", "expected ? in a path as %3F, got file:///x?y"),
        ("file:///x.tar#y", "expected a file (# in a path as %23), got file:///x.tar#y"),
    ):
        (bad, good) = read(uri, tmp_path / "1.png")
        assert failures([bad]) == [(uri, "UNREADABLE")]
        assert isinstance(bad, IngestOutcome)
        assert bad.failure is not None
        assert bad.failure.message == expected
        assert isinstance(good, IngestItem)
        with pytest.raises(InvalidArgument, match=re.escape(expected)):
            check_paths([uri])
        assert count_items([uri, tmp_path / "1.png"]) == 2
        line = json.dumps({"uri": uri}).encode()
        (wrong,) = read("-", stdin=line)
        assert isinstance(wrong, IngestOutcome)
        assert wrong.failure is not None
        assert (wrong.name, wrong.failure.message) == ("stdin:1", f"uri: {expected}")


def test_the_kind_of_a_file_uri_is_that_of_its_path(tmp_path: Path) -> None:
    """A tar whose URI says localhost, or has letters that are encoded, is a tar."""
    tar = write_tar(tmp_path / "a b.tar", {"1.png": b"x"})
    uri = tar.as_uri().replace("file:///", "FILE://localhost/").replace(".tar", ".t%61r")
    assert [item.data for item in items(read(uri))] == [b"x"]
    assert count_items([uri]) == 1


def test_remote_uri_is_left_to_the_server() -> None:
    """An argument that is a URI, whatever its ending, is one item without bytes."""
    uris = ["https://images.test/a.tar", "s3://b/c.jsonl"]
    check_paths(uris)
    found = list(read_items(uris, CONFIG, stdin=io.BytesIO()))
    assert [(item.data, item.key, item.uri) for item in items(found)] == [
        (None, uri, uri) for uri in uris
    ]
    assert count_items(uris) == 2


def test_manifest_gives_key_source_uri_and_payload(tmp_path: Path) -> None:
    """A manifest's line may say all of an item; its path is relative to the manifest."""
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "1.png").write_bytes(b"one")
    manifest = tmp_path / "m.jsonl"
    line = {
        "path": "img/1.png",
        "key": "k",
        "uri": "s3://b/1.png",
        "source": "cam",
        "payload": {"n": 1, "shared": "mine"},
    }
    manifest.write_text(json.dumps(line) + "\n\n")
    config = SourceConfig(source="batch", payload={"shared": "all", "year": 2024})
    (item,) = items(read(manifest, config=config))
    assert (item.data, item.key, item.uri, item.source) == (b"one", "k", "s3://b/1.png", "cam")
    assert item.payload == {"shared": "mine", "year": 2024, "n": 1}


def test_manifest_uri_is_the_servers_unless_it_is_a_file(tmp_path: Path) -> None:
    """A file: URI is read here; any other is sent as a place for the server to read."""
    file = tmp_path / "a b.png"
    file.write_bytes(b"x")
    lines = f'{{"uri": "{file.as_uri()}"}}\n{{"uri": "s3://b/1.png"}}\n'
    local, remote = items(read("-", stdin=lines.encode()))
    assert (local.data, local.key) == (b"x", file.as_uri())
    assert (remote.data, remote.key, remote.uri) == (None, "s3://b/1.png", "s3://b/1.png")


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1]",
        "{}",
        '{"path": 3}',
        '{"path": "a", "lable": "b"}',
        '{"key": "a"}',
        "\xff",
        '{"uri": "http://[bad/x.jpg"}',
        '{"path": "\\ud800.jpg"}',
        "[" * 100_000,
        '{"path": "' + "x" * 2**20 + '"}',
    ],
    ids=range(11),
)
def test_wrong_manifest_line_is_a_failure_by_number(tmp_path: Path, line: str) -> None:
    """A wrong line is a failed outcome called MANIFEST:LINE; the others are read."""
    (tmp_path / "1.png").write_bytes(b"x")
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(f'{line}\n{{"path": "1.png"}}\n'.encode("latin-1"))
    found = read(manifest)
    assert failures(found) == [(f"{manifest}:1", "MANIFEST_INVALID")]
    assert isinstance(found[1], IngestItem)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_image_in_place_of_a_manifest_is_one_failure(kind: str) -> None:
    """Piped into ``shoal ingest -``, it is not told line by line what is wrong with it."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, kind)
    found = read("-", stdin=image.getvalue())
    assert failures(found) == [("stdin", "MANIFEST_INVALID")]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_in_place_of_a_manifest_is_one_failure(tmp_path: Path, mode: str) -> None:
    """The message says what to do with it."""
    tar = write_tar(tmp_path / "a.tar", {"1.png": b"x"}, mode=mode)
    (found,) = read("-", stdin=tar.read_bytes())
    assert isinstance(found, IngestOutcome)
    assert found.failure is not None
    assert found.failure.message.endswith("got a tar: give its path")


class Endless(io.RawIOBase):
    """A stream of ``size`` bytes on one line, which counts the most that was asked for at once."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.most = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        wanted = self.left if size is None or size < 0 else min(size, self.left)
        self.most = max(self.most, wanted)
        self.left -= wanted
        return b"x" * wanted

    def __next__(self) -> bytes:
        if line := self.readline():
            return line
        raise StopIteration


def test_manifest_line_without_end_is_not_held_in_memory() -> None:
    """A line over the limit is refused in pieces of at most the limit."""
    stdin: Any = Endless(20 * 2**20)
    assert failures(list(read_items(["-"], CONFIG, stdin=stdin))) == [
        ("stdin:1", "MANIFEST_INVALID")
    ]
    assert stdin.left == 0
    assert stdin.most <= 2**20 + 1


def test_manifest_rows_with_the_same_path_are_told_apart(tmp_path: Path) -> None:
    """What a line describes is called MANIFEST:LINE and its path, sent or not."""
    (tmp_path / "1.png").write_bytes(b"x")
    manifest = tmp_path / "m.jsonl"
    lines = ['{"path": "1.png"}', '{"path": "no.png"}', "", '{"path": "no.png"}']
    manifest.write_text("\n".join(lines))
    assert [each.name for each in read(manifest)] == [
        f"{manifest}:1: {tmp_path / '1.png'}",
        f"{manifest}:2: {tmp_path / 'no.png'}",
        f"{manifest}:4: {tmp_path / 'no.png'}",
    ]


def test_manifest_on_a_broken_stdin_is_a_failure(tmp_path: Path) -> None:
    """A stdin that cannot be read is one failed outcome, and ends nothing else."""
    (tmp_path / "1.png").write_bytes(b"x")

    class Broken(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            raise IsADirectoryError(21, "Is a directory")

        def __next__(self) -> bytes:
            return self.readline()

    found = list(read_items(["-", str(tmp_path)], CONFIG, stdin=Broken()))
    assert failures(found) == [("stdin", "UNREADABLE")]
    assert isinstance(found[1], IngestItem)


def test_items_are_read_with_the_defaults_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths may be of pathlib; settings and standard input need not be given."""
    (tmp_path / "1.png").write_bytes(b"one")
    lines = tmp_path / "lines"
    lines.write_text('{"path": "1.png"}\n')
    monkeypatch.chdir(tmp_path)
    with lines.open("rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        found = items(list(read_items([tmp_path, tmp_path / "1.png", "-"])))
    assert [item.data for item in found] == [b"one"] * 3
    assert {item.key for item in found} == {(tmp_path / "1.png").as_uri()}
    assert count_items([tmp_path, tmp_path / "1.png"]) == 2
    check_paths([tmp_path])
    with pytest.raises(NotFound, match=r"nowhere"):
        check_paths([tmp_path / "nowhere"])


def test_stdin_that_is_not_there_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without standard input has no items on it."""
    monkeypatch.setattr("sys.stdin", None)
    assert list(read_items(["-"])) == []


def test_source_and_payload_go_with_every_item(tmp_path: Path) -> None:
    """Of files, tars and remote URIs alike."""
    (tmp_path / "a.png").write_bytes(b"a")
    tar = write_tar(tmp_path / "t.tar", {"b.png": b"b"})
    config = SourceConfig(source="cam", payload={"year": 2024})
    found = items(read(tmp_path / "a.png", tar, "s3://b/c.png", config=config))
    assert [(item.source, item.payload) for item in found] == [("cam", {"year": 2024})] * 3


@pytest.mark.parametrize("keys", ["uri", "name", "content"])
def test_manifest_key_is_the_lines_own_or_made_as_of_any_item(tmp_path: Path, keys: Any) -> None:
    """A key that is given wins; a given URI is the place; a path alone is a file's."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.png").write_bytes(b"x")
    manifest = tmp_path / "m.jsonl"
    lines = ['{"path": "d/1.png", "key": "k"}', '{"path": "d/1.png", "uri": "s3://b/1"}']
    lines += ['{"path": "d/1.png"}', '{"uri": "s3://b/2"}', '{"uri": "s3://b/2", "key": "l"}']
    manifest.write_text("\n".join(lines))
    found = items(read(manifest, config=SourceConfig(keys=keys)))
    place = (tmp_path / "d" / "1.png").as_uri()
    assert [item.key for item in found] == {
        "uri": ["k", "s3://b/1", place, "s3://b/2", "l"],
        "name": ["k", "d/1.png", "d/1.png", "s3://b/2", "l"],
        "content": ["k", "", "", "", "l"],
    }[keys]
    assert [item.uri for item in found] == [place, "s3://b/1", place, "s3://b/2", "s3://b/2"]


def test_fields_of_every_item_may_be_merged(tmp_path: Path) -> None:
    """Of files, members, lines and URIs; by default of none."""
    (tmp_path / "a.png").write_bytes(b"a")
    tar = write_tar(tmp_path / "t.tar", {"b.png": b"b"})
    lines = b'{"path": "a.png"}\n{"uri": "s3://b/d.png", "payload": {"x": 1}}\n'
    (tmp_path / "m.jsonl").write_bytes(lines)
    paths = (tmp_path / "a.png", tar, tmp_path / "m.jsonl", "s3://b/c.png")
    for merge in (True, False):
        found = items(read(*paths, config=SourceConfig(merge_fields=merge)))
        assert [item.merge_fields for item in found] == [merge] * 5


def test_paths_must_exist(tmp_path: Path) -> None:
    """A missing path is refused by name before anything is read; stdin always exists."""
    check_paths([str(tmp_path), "-"])
    with pytest.raises(NotFound, match=r"no such file or directory: .*nowhere"):
        check_paths([str(tmp_path), str(tmp_path / "nowhere")])
