"""Nothing is deleted that Shoal cannot prove it made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shoal.errors import OperatorError
from shoal.ownership import mark, read_mark, remove_directory, remove_temporary, temporary


def test_mark_stays(tmp_path: Path) -> None:
    """A directory gets one id for good; another directory has another."""
    assert read_mark(tmp_path) is None
    made = mark(tmp_path)
    assert (mark(tmp_path), read_mark(tmp_path)) == (made, made)
    assert [each.name for each in tmp_path.iterdir()] == ["shoal.json"]
    (tmp_path / "other").mkdir()
    assert mark(tmp_path / "other") != made


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"format": 2, "id": "ab"}', '{"format": 1}', '{"format":1,"id":"-"}']
)
def test_damaged_mark_is_reported_and_stays(tmp_path: Path, damage: str) -> None:
    """A marker that cannot be read is the operator's business: it is named, and not replaced."""
    (tmp_path / "shoal.json").write_text(damage)
    for look in (read_mark, mark):
        with pytest.raises(OperatorError, match=str(tmp_path / "shoal.json")):
            look(tmp_path)
    assert (tmp_path / "shoal.json").read_text() == damage


def test_only_names_with_the_id_are_deleted(tmp_path: Path) -> None:
    """Another's directory, a link and a name without the id stay; they come back by name."""
    place = tmp_path / "place"
    place.mkdir()
    owner = mark(tmp_path)
    own = temporary(place, owner=owner, purpose="new")
    (own / "deep").mkdir(parents=True)
    others = [
        temporary(place, owner="0" * 32, purpose="new"),
        place / "notes",
        place / f"new-{owner}-1",
    ]
    for each in others:
        each.mkdir()
    link = temporary(place, owner=owner, purpose="new")
    link.symlink_to(tmp_path)
    assert list(remove_temporary(place, owner=owner)) == sorted([*others, link])
    assert sorted(place.iterdir()) == sorted([*others, link])
    assert (tmp_path / "shoal.json").exists()


def test_names_differ(tmp_path: Path) -> None:
    """Two directories of one owner for one purpose do not meet."""
    assert len({temporary(tmp_path, owner="ab", purpose="new") for _ in range(50)}) == 50


def test_only_the_named_parts_are_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What somebody else has put beside them keeps the directory, which is reported."""
    directory = tmp_path / "photos"
    outside = tmp_path / "outside"
    for each in (directory / "shard" / "deep", outside):
        each.mkdir(parents=True)
    (directory / "link").symlink_to(outside)
    (outside / "file").touch()
    (directory / "notes.txt").touch()
    remove_directory(directory, parts=("shard", "link", "never there"))
    assert list(directory.iterdir()) == [directory / "notes.txt"]
    assert (outside / "file").exists()
    assert [vars(record)["path"] for record in caplog.records] == [str(directory)]
    (directory / "notes.txt").unlink()
    caplog.clear()
    remove_directory(directory, parts=("shard",))
    assert not directory.exists()
    assert not caplog.records


def test_directory_that_cannot_be_deleted_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no error: the next start tries again."""
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    (tmp_path / "own").mkdir()
    remove_directory(tmp_path / "own")
    assert [vars(record)["path"] for record in caplog.records] == [str(tmp_path / "own")]


def test_marker_is_json(tmp_path: Path) -> None:
    """Its format is written down."""
    made = mark(tmp_path)
    assert json.loads((tmp_path / "shoal.json").read_text()) == {"format": 1, "id": made}
