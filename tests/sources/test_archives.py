"""Archives that somebody broke: an item or a clear failure, no hang, and little memory."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from shoal.client import IngestItem, IngestOutcome
from shoal.sources import SourceConfig, SourceItem, count_items, read_items

JPEG = b"\xff\xd8\xff"


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One block that claims ``size`` bytes, which may be anything."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_of(**contents: bytes) -> bytes:
    blocks = [header(name, len(data)) + data.ljust(512, b"\0") for name, data in contents.items()]
    return b"".join(blocks) + bytes(1024)


def read(path: Path, data: bytes) -> list[SourceItem]:
    path.write_bytes(data)
    return list(read_items([path], SourceConfig(max_bytes=2**20)))


def message(item: SourceItem) -> str:
    assert isinstance(item, IngestOutcome)
    assert item.failure is not None
    return item.failure.message


def test_each_of_several_tars_needs_its_end_mark(tmp_path: Path) -> None:
    """The end mark of the first does not stand for that of the second."""
    second = tar_of(b=JPEG)
    *good, bad = read(tmp_path / "a.tar", tar_of(a=JPEG) + second[:-1024])
    assert len(good) == 1 + 1
    assert "damaged after 3,072 bytes" in message(bad)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.DIRTYPE])
def test_a_negative_size_is_damage(tmp_path: Path, kind: bytes) -> None:
    """Without a check, tarfile goes back to the same header for ever (CVE-2025-8194)."""
    data = tar_of(a=JPEG)[:-1024] + header("b.jpg", -1024, kind) + bytes(1024)
    good, bad = read(tmp_path / "a.tar", data)
    assert isinstance(good, IngestItem)
    assert "damaged after 1,024 bytes: a header that claims -1,024 bytes" in message(bad)
    assert count_items([tmp_path / "a.tar"]) == 1


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_take_little_memory(tmp_path: Path, kind: bytes) -> None:
    """One that describes another is read whole: 100 MB of it, in 100 kB of gzip, are refused."""
    size = 100_000_000
    data = gzip.compress(header("x", size, kind) + b"1" * size + bytes(1024), compresslevel=1)
    tracemalloc.start()
    try:
        (bad,) = read(tmp_path / "a.tgz", data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "a header that claims 100,000,000 bytes" in message(bad)
    assert peak < 20_000_000


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["a.txt", "a.jpg"])
def test_a_member_that_stops_early_is_damage(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    """Skipped or not; to skip terabytes, tarfile would read at the end of the file for years."""
    *_, bad = read(tmp_path / "a.tar", pack(header(name, 2**42) + bytes(20_000)))
    assert message(bad) == "cannot be read: unexpected end of data"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_larger_than_any_file_is_damage(tmp_path: Path, form: int) -> None:
    """Also where a pax header says so."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 2**42 + 1
        tar.addfile(info)
    (bad,) = read(tmp_path / "a.tar", data.getvalue())
    assert "a header that claims 4,398,046,511,105 bytes" in message(bad)


def test_the_list_of_a_sparse_file_may_be_cut(tmp_path: Path) -> None:
    """It says that it goes on, where the file ends."""
    block = bytearray(header("sparse.jpg", 512, tarfile.GNUTYPE_SPARSE))
    block[386:483] = b"00000000000\x0000000000512\x00" * 4 + b"\1"
    _sign(block, 0)
    (bad,) = read(tmp_path / "a.tar", bytes(block))
    assert message(bad) == "cannot be read: damaged after 0 bytes"


def test_headers_without_end_are_damage(tmp_path: Path) -> None:
    """Each describes the next one, which tarfile reads by recursion."""
    data = (header("x", 1, tarfile.GNUTYPE_LONGNAME) + b"y".ljust(512, b"\0")) * 3000
    (bad,) = read(tmp_path / "a.tar", data)
    assert "recursion" in message(bad)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_zeros_after_the_end_cost_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    """They are not looked at block by block; what comes after them is found, and told where."""
    blocks: list[int] = []
    parse = tarfile.TarInfo.frombuf.__func__  # type: ignore[attr-defined]

    def count(cls: Any, block: bytes, *more: Any) -> Any:
        blocks.append(len(block))
        return parse(cls, block, *more)

    monkeypatch.setattr(tarfile.TarInfo, "frombuf", classmethod(count))
    gap = bytes(16 * 2**20 + 512)
    found = read(tmp_path / "a.tar", pack(tar_of(a=JPEG) + gap + tar_of(**{"b.jpg": JPEG}) + gap))
    assert len(found) == 2
    assert all(isinstance(each, IngestItem) for each in found)
    assert len(blocks) < 1000
    *_, bad = read(tmp_path / "a.tar", pack(tar_of(a=JPEG) + gap + b"x" * 700))
    assert f"damaged after {2048 + len(gap):,} bytes" in message(bad)


def test_a_large_member_is_not_read(tmp_path: Path) -> None:
    """One of 64 MiB is refused by its name, without being held."""
    size = 2**26
    data = header("a.jpg", size) + bytes(size) + bytes(1024)
    packed = gzip.compress(data, compresslevel=1)
    tracemalloc.start()
    try:
        (bad,) = read(tmp_path / "a.tgz", packed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "expected at most 1,048,576 bytes, got 67,108,864" in message(bad)
    assert peak < 20_000_000


def whole_tars() -> list[bytes]:
    """Tars with long names, links, sparse files and every form of header."""
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=form) as tar:
            for name in ("a.jpg", "d/é.png", f"{'long' * 20}/{'er' * 40}.gif"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 700, 1.5 if form == tarfile.PAX_FORMAT else 1
                tar.addfile(info, io.BytesIO(JPEG + bytes(697)))
            for name, kind in (("h.jpg", tarfile.LNKTYPE), ("s.jpg", tarfile.SYMTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "a.jpg"
                tar.addfile(info)
        found.append(data.getvalue()[: -tarfile.RECORDSIZE] + bytes(1024))
    sparse = bytearray(header("sparse.jpg", 512, tarfile.GNUTYPE_SPARSE))
    sparse[386:482] = b"00000000000\x0000000000512\x00" * 4
    found.append(bytes(sparse) + JPEG.ljust(512, b"\0") + bytes(1024))
    return found


TARS = whole_tars()
PACKS = (bytes, lambda data: gzip.compress(data, 1), lambda data: lzma.compress(data, preset=0))


@fuzz(300)
@given(data=st.data())
def test_any_tar_gives_items_or_failures(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, cut, doubled, before compression or after: nothing is raised, all ends."""
    tar = bytearray(data.draw(st.sampled_from(TARS)))
    packed = bytearray(data.draw(st.sampled_from(PACKS))(bytes(_mutated(data, tar))))
    if data.draw(st.booleans()):
        packed = _mutated(data, packed)
    found = read(tmp_path / "a.tar", bytes(packed))
    assert all(isinstance(each, IngestItem | IngestOutcome) for each in found)
    assert len(found) <= 100
    for each in found:
        if isinstance(each, IngestItem):
            assert len(each.data or b"") <= 2**20
        else:
            assert message(each)
    count_items([tmp_path / "a.tar"], limit_s=60)


def _mutated(data: st.DataObject, content: bytearray) -> bytearray:
    """``content`` with some bytes changed, and a part of it cut out or doubled."""
    for _ in range(data.draw(st.integers(0, 4))):
        if not content:
            break
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            at = at // 512 * 512 + data.draw(st.sampled_from([124, 135, 156, 157, 257, 386, 483]))
        fresh = data.draw(st.binary(min_size=1, max_size=12))
        content[at : at + len(fresh)] = fresh
        if data.draw(st.booleans()):
            _sign(content, at // 512 * 512)
    change = data.draw(st.sampled_from(["none", "cut", "out", "double"]))
    if change != "none" and content:
        start = data.draw(st.integers(0, len(content) - 1))
        end = data.draw(st.integers(start, len(content)))
        part = content[start:end]
        content = {
            "cut": content[:start],
            "out": content[:start] + content[end:],
            "double": content[:end] + part + content[end:],
        }[change]
    return content


def _sign(content: bytearray, at: int) -> None:
    """Makes the check sum of the header at ``at`` right, so that what it says is believed."""
    block = content[at : at + 512]
    if len(block) == 512:
        block[148:156] = b" " * 8
        content[at + 148 : at + 156] = b"%06o\0 " % sum(block)
