"""Tars: every image in them, links too; and damage that is told."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.client import IngestItem
from shoal.sources import SourceConfig, SourceItem, count_items, read_items
from shoal.sources.items import failed

JPEG = b"\xff\xd8\xff"


def member(name: str, data: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, data


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def symbolic(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def tar_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def read(path: Path, config: SourceConfig | None = None) -> tuple[list[SourceItem], SourceConfig]:
    config = config or SourceConfig()
    return list(read_items([path], config)), config


def contents(found: list[SourceItem]) -> dict[str, bytes | None]:
    """The data of the items by their names in the tar; all must be items."""
    assert all(isinstance(each, IngestItem) for each in found), found
    return {
        each.name.partition("#")[2]: each.data for each in found if isinstance(each, IngestItem)
    }


def failures(found: list[SourceItem]) -> list[tuple[str, str]]:
    return [
        (each.name.rpartition("/")[2], each.failure.message)
        for each in found
        if not isinstance(each, IngestItem) and each.failure
    ]


FORTY = tar_of(*(member(f"{n:02}.jpg", JPEG + bytes([n]) * 900) for n in range(40)))


def has_zstd() -> bool:
    """A dependency of the project, which an older environment may lack."""
    try:
        import backports.zstd  # noqa: F401, PLC0415 - whether it can be
    except ImportError:
        return False
    return True


def zstd(data: bytes) -> bytes:
    from backports.zstd import compress  # noqa: PLC0415 - in these tests only

    return compress(data)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.tar", bytes),
        ("a.TGZ", gzip.compress),
        ("a.tar.bz2", bz2.compress),
        ("a.tbz", bz2.compress),
        ("a.tar.xz", lzma.compress),
        ("a.tlz", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
        ("content.tar", gzip.compress),
        ("content.tar.gz", bytes),
        pytest.param(
            "a.tar.zst",
            zstd,
            marks=pytest.mark.skipif(not has_zstd(), reason="needs backports.zstd"),
        ),
    ],
)
def test_compression_is_told_by_content(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    """All members are read, whole, however the file is compressed, and whatever it is called."""
    (tmp_path / name).write_bytes(pack(FORTY))
    found, _ = read(tmp_path / name)
    assert contents(found) == {f"{n:02}.jpg": JPEG + bytes([n]) * 900 for n in range(40)}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_many_streams_are_one_tar(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """As pigz, pbzip2, bgzip and xz with blocks write them: cut anywhere."""
    parts = [FORTY[at : at + 7000] for at in range(0, len(FORTY), 7000)]
    (tmp_path / "a.tgz").write_bytes(b"".join(map(pack, parts)))
    assert len(contents(read(tmp_path / "a.tgz")[0])) == 40


def test_damage_after_the_last_member_is_told(tmp_path: Path) -> None:
    """A wrong check sum, or a file that was cut within it: the images stand, the tar is named."""
    packed = gzip.compress(FORTY)
    wrong = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]
    for data, why in ((wrong, "damaged gzip data"), (packed[:-3], "data stop before their end")):
        (tmp_path / "a.tgz").write_bytes(data)
        found, _ = read(tmp_path / "a.tgz")
        assert len(contents(found[:-1])) == 40
        ((name, message),) = failures(found)
        assert name == "a.tgz"
        assert why in message


def test_tars_one_after_the_other_are_one(tmp_path: Path) -> None:
    """As with GNU tar's --ignore-zeros: an end mark ends one, not all."""
    data = tar_of(member("a.jpg", b"a")) + tar_of(member("b.jpg", b"b"), hard("c.jpg", "a.jpg"))
    (tmp_path / "a.tar").write_bytes(data)
    found, _ = read(tmp_path / "a.tar")
    assert contents(found) == {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"a"}
    assert count_items([tmp_path / "a.tar"]) == 3


def test_what_follows_the_end_and_is_no_tar_is_told(tmp_path: Path) -> None:
    """It may have been one: the images before it stand, and the tar is a failure."""
    (tmp_path / "a.tar").write_bytes(FORTY + b"what is this?" * 100)
    found, _ = read(tmp_path / "a.tar")
    assert len(contents(found[:-1])) == 40
    assert failures(found)[0][1].startswith(f"cannot be read: damaged after {len(FORTY):,} bytes")


def test_links_have_the_content_of_what_they_lead_to(tmp_path: Path) -> None:
    """Hard links, symbolic ones, links to links, through linked directories, and before it all."""
    data = tar_of(
        symbolic("early.jpg", "d/a.jpg"),
        member("./d", type=tarfile.DIRTYPE),
        member("./d/a.jpg", b"a"),
        hard("./hard.jpg", "./d/a.jpg"),
        symbolic("d/near.jpg", "a.jpg"),
        symbolic("e", "d"),
        symbolic("f/deep/far.jpg", "../../e/near.jpg"),
        hard("again.jpg", "hard.jpg"),
        member("no suffix", JPEG),
        symbolic("also none", "no suffix"),
        hard("./d/a.jpg", "d/a.jpg"),
    )
    (tmp_path / "a.tar").write_bytes(data)
    found, config = read(tmp_path / "a.tar")
    assert contents(found) == {
        "./d/a.jpg": b"a",
        "no suffix": JPEG,
        "early.jpg": b"a",
        "./hard.jpg": b"a",
        "d/near.jpg": b"a",
        "f/deep/far.jpg": b"a",
        "again.jpg": b"a",
        "also none": JPEG,
    }
    assert len(found) == 8
    assert config.left_out.counts == {"link_to_directory": 1}
    assert {item.uri for item in found if isinstance(item, IngestItem)} >= {
        f"{(tmp_path / 'a.tar').as_uri()}#also%20none"
    }


def test_a_link_to_what_is_there_twice_has_what_tar_extracts(tmp_path: Path) -> None:
    """A hard link means the last file before it, a symbolic one the last of all, which wins."""
    data = tar_of(
        member("a.jpg", b"1"),
        hard("h.jpg", "a.jpg"),
        symbolic("s.jpg", "a.jpg"),
        member("a.jpg", b"2"),
    )
    (tmp_path / "a.tar").write_bytes(data)
    assert contents(read(tmp_path / "a.tar")[0]) == {"a.jpg": b"2", "h.jpg": b"1", "s.jpg": b"2"}


def test_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    """Those called images are failures, the others are counted; nothing outside is ever read."""
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    data = tar_of(
        symbolic("out.jpg", "../secret.jpg"),
        symbolic("abs.jpg", str(tmp_path / "secret.jpg")),
        symbolic("loop.jpg", "loop.jpg"),
        hard("gone.jpg", "nothing.jpg"),
        symbolic("plain", "nothing"),
        symbolic(".hidden.jpg", "nothing"),
        member("text.txt", b"text"),
        hard("link.txt", "text.txt"),
    )
    (tmp_path / "a.tar").write_bytes(data)
    found, config = read(tmp_path / "a.tar")
    assert [name for name, _ in failures(found)] == [
        f"a.tar#{name}.jpg" for name in ("out", "abs", "loop", "gone")
    ]
    assert "a link to '../secret.jpg', which is no file of the archive" in failures(found)[0][1]
    assert config.left_out.counts == {"broken_link": 1, "hidden": 1, "not_an_image": 2}


def test_links_of_a_damaged_tar_are_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """The damage is told once."""
    data = tar_of(member("a.jpg", b"a"), hard("h.jpg", "a.jpg"), member("b.jpg", b"b"))
    (tmp_path / "a.tar").write_bytes(data[:1700])
    found, _ = read(tmp_path / "a.tar")
    assert [each.name.rpartition("/")[2] for each in found] == [
        "a.tar#a.jpg",
        "a.tar",
        "a.tar#h.jpg",
    ]
    assert len(failures(found)) == 1


def test_links_of_a_pipe_are_failures(tmp_path: Path) -> None:
    """It can be read only once; the other members are items."""
    pipe = tmp_path / "a.tar"
    os.mkfifo(pipe)
    data = tar_of(member("a.jpg", b"a"), hard("h.jpg", "a.jpg"))
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    found, _ = read(pipe)
    writer.join()
    assert [name for name, _ in failures(found)] == ["a.tar#h.jpg"]
    assert len(found) == 2


def test_links_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit each is a failure by its name."""
    monkeypatch.setattr("shoal.sources.tars.MOST_LINKS", 2)
    links = [hard(f"{n}.jpg", "a.jpg") for n in range(3)]
    (tmp_path / "a.tar").write_bytes(tar_of(member("a.jpg", b"a"), *links))
    found, _ = read(tmp_path / "a.tar")
    assert (
        failed(
            f"{tmp_path}/a.tar#2.jpg",
            "UNREADABLE",
            "cannot be read: expected at most 2 links in an archive, got more",
        )
        in found
    )
    assert len(found) == 4


def test_members_are_images_by_their_content(tmp_path: Path) -> None:
    """What is left out is counted by reason, with an example of each."""
    data = tar_of(
        member("x", JPEG),
        member("x.HEIC", JPEG),
        member("readme", b"no"),
        member("notes.md", b"no"),
        member("d/.x.jpg", JPEG),
        member("pipe.jpg", type=tarfile.FIFOTYPE),
        member("d", type=tarfile.DIRTYPE),
        member("label", type=b"V"),
        member("d", b"Yx\0\0", type=b"D"),
    )
    (tmp_path / "a.tar").write_bytes(data)
    found, config = read(tmp_path / "a.tar")
    assert list(contents(found)) == ["x", "x.HEIC"]
    assert config.left_out.counts == {"not_an_image": 2, "hidden": 1, "not_a_file": 1}
    assert config.left_out.examples["not_an_image"] == f"{tmp_path}/a.tar#readme"
    assert count_items([tmp_path / "a.tar"]) == 2


def test_a_large_file_that_is_no_image_is_not_refused(tmp_path: Path) -> None:
    """Only what would be sent can be too large to be sent."""
    (tmp_path / "a.tar").write_bytes(tar_of(member("a.txt", bytes(50)), member("b.jpg", bytes(50))))
    found, config = read(tmp_path / "a.tar", SourceConfig(max_bytes=49))
    assert [name for name, _ in failures(found)] == ["a.tar#b.jpg"]
    assert config.left_out.total == 1
