"""Manifests of any bytes: one item or one failure for each line, and nothing is raised."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.client import IngestItem, IngestOutcome
from shoal.client.messages_ingest import IngestTarget, prepared
from shoal.sources import SourceConfig
from shoal.sources.manifests import MAX_LINE_BYTES, read_manifest
from shoal.sources.parts import Part, read_part

CONFIG = SourceConfig(max_bytes=2**20)
TARGET = IngestTarget("photos", (), 2**26)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(["path", "uri", "key", "source", "payload", "other"])
PLACES = st.sampled_from(
    ["1.png", "none.png", ".", "a\0b", "", "\ud800.png", "file:///x?", "file:1.png", "s3://b/1"]
) | st.text(max_size=12)
ENTRIES = st.dictionaries(NAMES, PLACES | JSON, max_size=4)


def mutated(line: bytes, at: int, fresh: bytes) -> bytes:
    """``line`` with some bytes put into it, and no line break."""
    at %= len(line) + 1
    return (line[:at] + fresh + line[at:]).replace(b"\n", b" ")


LINES = st.one_of(
    ENTRIES.map(lambda entry: json.dumps(entry).encode()),
    st.builds(
        mutated,
        ENTRIES.map(lambda entry: json.dumps(entry, ensure_ascii=True).encode()),
        st.integers(0, 200),
        st.binary(min_size=1, max_size=4),
    ),
    st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")),
)


@fuzz(300)
@given(lines=st.lists(LINES, max_size=6), cut=st.integers(0, 400))
@example(lines=[b"[" * 100_000, b'{"path": ' * 5000], cut=0)
@example(lines=[b'{"uri": "http://[x"}', b'{"payload": {"n": 1e999}, "uri": "s3://b/1"}'], cut=3)
@example(lines=[b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b'{"path": "1.png"}\r'], cut=9)
@example(lines=[b'{"uri": "s3://b/1", "payload": {"n": ' + b"9" * 5000 + b"}}"], cut=1)
def test_each_line_is_an_item_or_a_failure(tmp_path: Path, lines: list[bytes], cut: int) -> None:
    """Read whole or in two parts; what is an item can be made a message, or fails by its name."""
    (tmp_path / "1.png").write_bytes(b"\xff\xd8\xff")
    manifest = tmp_path / "m.jsonl"
    content = b"\n".join(lines)
    manifest.write_bytes(content)
    whole = list(read_manifest(io.BytesIO(content), CONFIG, base=tmp_path, name="m"))
    assert len(whole) == sum(1 for line in content.split(b"\n") if line.strip())
    for each in whole:
        assert each.name.startswith("m:")
        if isinstance(each, IngestItem):
            prepared(each, TARGET, sequence=1)
        else:
            assert each.failure is not None
            assert each.failure.message
    cut = min(cut, len(content))
    parts = [
        Part("manifest", (str(manifest),), start=start, end=end)
        for start, end in ((0, cut), (cut, len(content)))
        if start < end
    ]
    found = [item for part in parts for item in read_part(part, CONFIG)]
    assert [kind_of(each) for each in found] == [kind_of(each) for each in whole]


def kind_of(item: IngestItem | IngestOutcome) -> Any:
    """What an item or failure is, but for its name, which says where the part begins."""
    if isinstance(item, IngestItem):
        return item.data, item.key, item.uri, item.source, repr(item.payload)
    return item.failure


@pytest.mark.parametrize("size", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_a_line_may_have_a_mebibyte(tmp_path: Path, size: int) -> None:
    """With its line break; the one after it is read in any case."""
    line = b'{"uri": "s3://b/1", "source": "'
    line += b"x" * (size - len(line) - 3) + b'"}\n'
    assert len(line) == size
    content = line + b'{"uri": "s3://b/2"}'
    first, second = read_manifest(io.BytesIO(content), CONFIG, base=tmp_path, name="m")
    assert isinstance(first, IngestItem) is (size <= MAX_LINE_BYTES)
    assert isinstance(second, IngestItem)
