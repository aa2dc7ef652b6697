"""Which directories ``shoal up`` takes, and what it leaves alone in them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shoal.app.data_directory import check_data_directory, scratch_in
from shoal.errors import ConfigError, OperatorError
from shoal.ownership import mark, temporary


def make(root: Path, *names: str) -> None:
    """Makes files, and directories where a name ends in a slash."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text(name)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["lost+found/"],
        ["heads/h-1/head.json", "train/views-1/views.npy"],  # by `shoal train`
        ["contact-sheet.png", "scratch/"],
        ["store/", "shoal.json.shoal-new"],  # a start that was killed
        ["store/collections/", "store/shoal.json"],
        # Earlier versions: with a store, whatever people have put beside it.
        ["store/LOCK", "store/collections/photos/shard/x", "scratch/shoal-fit-x/a", "notes"],
    ],
)
def test_empty_and_own_directories_are_taken(tmp_path: Path, names: list[str]) -> None:
    """So are those that earlier versions, other commands or a killed start left."""
    make(tmp_path, *names)
    check_data_directory(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["scratch/notes.txt"],
        ["store/milk.txt"],
        ["store/LOCK", "store/milk.txt"],
        ["store/collections/", "store/milk.txt"],
        ["store"],
        ["scratch"],
        ["heads/", ".profile"],
        ["a", "b", "c", "d", "e"],
    ],
)
def test_directory_of_somebody_else_is_refused(tmp_path: Path, names: list[str]) -> None:
    """The message has the directory and up to three names; nothing is changed."""
    make(tmp_path, *names)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="expected an empty directory, a new one") as caught:
        check_data_directory(tmp_path)
    assert str(tmp_path) in caught.value.message
    if len(names) == 5:
        assert "with 'a', 'b', 'c' and 2 more; choose" in caught.value.message
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_directory_is_made(tmp_path: Path) -> None:
    """With those above it."""
    check_data_directory(tmp_path / "deep" / "data")
    assert (tmp_path / "deep" / "data").is_dir()


def test_marked_directory_is_taken_whatever_is_in_it(tmp_path: Path) -> None:
    """People put notes and logs beside the store; a damaged marker is reported."""
    make(tmp_path, "notes", "scratch/theirs")
    mark(tmp_path)
    check_data_directory(tmp_path)
    (tmp_path / "shoal.json").write_text("{")
    with pytest.raises(OperatorError, match=r"shoal\.json"):
        check_data_directory(tmp_path)


@pytest.mark.parametrize("stream", ["__stdout__", "__stderr__"])
def test_log_of_this_process_is_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """``shoal up --data d 2> d/log`` makes the log before the process starts."""
    make(tmp_path, "other.log")
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, stream, log)
        with pytest.raises(ConfigError, match=r"got one with 'other\.log'; choose"):
            check_data_directory(tmp_path)
    (tmp_path / "other.log").unlink()
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, stream, log)
        check_data_directory(tmp_path)
    with pytest.raises(ConfigError, match="'log'"):  # closed by now
        check_data_directory(tmp_path)


def test_path_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """A file where the directory should be, by the system's words."""
    make(tmp_path, "file")
    with pytest.raises(ConfigError, match="file: cannot be used: File exists"):
        check_data_directory(tmp_path / "file")
    make(tmp_path, "data/scratch")
    with (
        pytest.raises(ConfigError, match="scratch cannot be used: File exists"),
        scratch_in(tmp_path / "data", tmp_path / "data" / "scratch"),
    ):
        pass


def test_scratch_deletes_its_own_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a killed process left is deleted; everything else stays, and a warning has its path."""
    scratch = tmp_path / "scratch"
    make(tmp_path, "scratch/notes.txt", "scratch/shoal-fit-abc/sample.npy")
    left = temporary(scratch, owner=mark(tmp_path), purpose="fits")
    make(left, "shoal-fit-1/sample.npy")
    with scratch_in(tmp_path, scratch) as own:
        assert sorted(scratch.iterdir()) == sorted(
            [own, scratch / "notes.txt", scratch / "shoal-fit-abc"]
        )
        make(own, "shoal-fit-2/sample.npy")
    strangers = [scratch / "notes.txt", scratch / "shoal-fit-abc"]
    assert [vars(record)["path"] for record in caplog.records] == list(map(str, strangers))
    assert (scratch / "notes.txt").read_text() == "scratch/notes.txt"
    assert sorted(scratch.iterdir()) == strangers
