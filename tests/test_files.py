from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.files import put_in_place, replacing, sync_tree


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, list[str]]]:
    """The paths given to fsync, each with the names that were in the directory then."""
    calls: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        names = sorted(each.name for each in tmp_path.iterdir())
        calls.append((str(path.relative_to(tmp_path.parent)), names))

    monkeypatch.setattr(os, "fsync", record)
    return calls


def test_replacing_leaves_the_new_file_only(tmp_path: Path) -> None:
    """The old content stays until the end of the block, then the new one is there, alone."""
    path = tmp_path / "state.json"
    path.write_text("old")
    with replacing(path) as fresh:
        fresh.write_text("new")
        assert (path.read_text(), fresh.parent) == ("old", tmp_path)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_leaves_other_files_alone(tmp_path: Path) -> None:
    """A file that somebody called NAME.new is not written over."""
    (tmp_path / "state.json.new").write_text("theirs")
    with replacing(tmp_path / "state.json") as fresh:
        fresh.write_text("new")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "state.json": "new",
        "state.json.new": "theirs",
    }


def test_replacing_makes_a_file_that_was_not_there(tmp_path: Path) -> None:
    """No old file is needed."""
    with replacing(tmp_path / "first") as fresh:
        fresh.write_text("new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_replacing_that_fails_leaves_the_old_file_only(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """A block that raises leaves the old file, and no other."""
    path = tmp_path / "state.json"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as fresh:
            fresh.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_writes_over_what_a_crash_left(tmp_path: Path) -> None:
    """The remains of a process that was killed are written over."""
    path = tmp_path / "state.json"
    with replacing(path) as fresh:
        fresh.write_text("old")
    fresh.write_text("half, and longer than the new one")
    with replacing(path) as fresh:
        fresh.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_survives_a_power_cut(
    tmp_path: Path, synced: list[tuple[str, list[str]]]
) -> None:
    """The file is on disk before it gets its name; the name is on disk at the end."""
    with replacing(tmp_path / "x") as fresh:
        fresh.write_text("new")
    place = tmp_path.name
    assert synced == [(f"{place}/{fresh.name}", [fresh.name]), (place, ["x"])]


def test_directory_is_put_in_place_whole(
    tmp_path: Path, synced: list[tuple[str, list[str]]]
) -> None:
    """Every file and every name of a directory is on disk before it gets its name."""
    fresh = tmp_path / "fresh"
    (fresh / "deep").mkdir(parents=True)
    (fresh / "deep" / "file").write_text("x")
    put_in_place(fresh, tmp_path / "done")
    assert (tmp_path / "done" / "deep" / "file").read_text() == "x"
    place = tmp_path.name
    before = {path for path, names in synced if names == ["fresh"]}
    assert before >= {f"{place}/fresh{tail}" for tail in ("", "/deep", "/deep/file")}
    assert synced[-1] == (place, ["done"])


def test_sync_tree_reaches_every_name(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    """Files, directories and the one that the tree lies in; a file that goes meanwhile is fine."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "gone").symlink_to("nowhere")
    sync_tree(tmp_path)
    place = tmp_path.name
    assert {path for path, _ in synced} == {".", place, f"{place}/deep", f"{place}/file"}
