"""Augmented views of pictures: what they are, and how they are kept."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusterer.heads.augment import open_picture, random_view, to_file
from clusterer.heads.views import ViewCache, drop_oldest, with_views
from shoal.errors import InvalidArgument, NotFound


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_view_is_a_part_of_the_picture() -> None:
    """A crop keeps 0.4 to 0.9 of the area and the shape; half are not cropped; seeds decide."""
    whole = open_picture(picture(0))
    views = [random_view(whole, np.random.default_rng(seed)) for seed in range(200)]
    cropped = [view for view in views if view.size != whole.size]
    assert 70 <= len(cropped) <= 130
    for view in cropped:
        assert 0.35 <= view.width * view.height / (60 * 40) <= 0.95
        assert view.width / view.height == pytest.approx(1.5, abs=0.06)
    again = random_view(whole, np.random.default_rng(7))
    assert again.tobytes() == views[7].tobytes()
    assert open_picture(to_file(views[7])).size == views[7].size


def test_caches_of_views_are_bounded_together(tmp_path: Path) -> None:
    """The one that was used longest ago goes first, whichever was made first."""
    size = {"views": 2, "pictures": 100, "dim": 10}
    for name in ("one", "two", "three"):
        ViewCache(tmp_path / name, **size)
    for age, name in enumerate(("two", "three")):
        os.utime(tmp_path / name, (time.time() - 100 + age,) * 2)
    ViewCache(tmp_path / "two", **size)
    drop_oldest(list(tmp_path.iterdir()), most=20_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    drop_oldest(list(tmp_path.iterdir()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_directory_of_somebody_else_is_no_cache(tmp_path: Path) -> None:
    """A directory with another file in it stays, however large it is; so does an empty one."""
    ViewCache(tmp_path / "views-holiday", views=2, pictures=10, dim=100)
    (tmp_path / "views-holiday" / "beach.jpg").write_bytes(b"theirs")
    (tmp_path / "views-empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    drop_oldest(list(tmp_path.iterdir()), most=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_views_are_made_once_and_go_on_after_a_kill(tmp_path: Path) -> None:
    """What was embedded stays; the same seed gives the same views; unreadable ones are left out."""
    pictures, views, dim = 70, 2, 3
    asked: list[int] = []

    def embed(files: Sequence[bytes]) -> list[np.ndarray]:
        asked.append(len(files))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [np.full(dim, sum(file) % 251, np.float32) for file in files]

    def read(row: int) -> bytes:
        if row == 5:
            raise NotFound("gone")
        return picture(row) if row != 6 else b"no picture"

    def cache(name: str) -> ViewCache:
        return ViewCache(tmp_path / name, views=views, pictures=pictures, dim=dim)

    def read_later(row: int) -> bytes:
        return picture(row)

    silent = {"seed": 3, "progress": lambda _done, _of: None}
    with pytest.raises(KeyboardInterrupt):
        cache("a").fill(read, embed, **silent)  # type: ignore[arg-type]
    found = cache("a").fill(read, embed, **silent)  # type: ignore[arg-type]
    assert asked == [30 * views, 32 * views, 30 * views, 8 * views]
    assert np.flatnonzero(~found.there).tolist() == [5, 6]
    whole = cache("b").fill(read, embed, **silent)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.vectors, whole.vectors)
    asked.clear()
    assert cache("b").fill(read_later, embed, **silent).there.all()  # type: ignore[arg-type]
    assert asked == [2 * views]  # only those that could not be had before
    base = np.arange(pictures * dim, dtype=np.float32).reshape(pictures, dim)
    every, rows = with_views(base, found)
    assert every.shape == ((views + 1) * 68, dim)
    np.testing.assert_array_equal(every[:68], base[rows])
    np.testing.assert_array_equal(every[68 : 2 * 68], found.vectors[0][rows])
    with pytest.raises(InvalidArgument, match="expected views of shape"):
        ViewCache(tmp_path / "a", views=3, pictures=pictures, dim=dim)
    with pytest.raises(InvalidArgument, match="at most 8 GiB"):
        ViewCache(tmp_path / "c", views=16, pictures=10**6, dim=1280)


def test_half_of_the_views_are_blurred() -> None:
    """By themselves: about half of the views that are not cropped; a faint blur changes nothing."""
    whole = open_picture(picture(0))
    views = [random_view(whole, np.random.default_rng(seed)) for seed in range(200)]
    full = [np.asarray(view, np.float64) for view in views if view.size == whole.size]
    same = [view for view in full if (view == np.asarray(whole)).all()]
    assert 0.5 <= len(same) / len(full) <= 0.8
    sharp = np.asarray(whole, np.float64).std()
    blurred = [view.std() for view in full if not (view == np.asarray(whole)).all()]
    assert max(blurred) <= sharp
    assert min(blurred) < 0.9 * sharp  # up to 0.4 pixels, on noise
    assert min(blurred) > 0.5 * sharp


def test_crops_are_anywhere_in_the_picture() -> None:
    """Up to each of its borders, and never beyond."""
    ramp = np.stack(np.meshgrid(np.arange(60), np.arange(40)), axis=2).astype(np.uint8)
    whole = Image.fromarray(np.dstack([ramp, np.zeros((40, 60), np.uint8)]))
    corners = []
    for seed in range(400):
        view = np.asarray(random_view(whole, np.random.default_rng(seed)))
        if view.shape != (40, 60, 3):
            corners.append((view[0, 0, :2].tolist(), view[-1, -1, :2].tolist()))
    lefts, uppers = zip(*(first for first, _ in corners), strict=True)
    rights, lowers = zip(*(last for _, last in corners), strict=True)
    assert (min(lefts), min(uppers)) == (0, 0)
    assert max(rights) >= 57
    assert max(lowers) >= 37
    assert len(set(lefts)) > 10


def test_a_picture_is_opened_upright_and_in_colour() -> None:
    """As its EXIF says; grey ones and ones with transparency become RGB."""
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0] = 255
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # its top is at the right
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    opened = open_picture(buffer.getvalue())
    assert (opened.mode, opened.size) == ("RGB", (4, 6))
    assert np.asarray(opened)[:, -1].min() == 255
    with pytest.raises(Image.UnidentifiedImageError):
        open_picture(b"no picture")


def test_a_view_is_a_file_with_full_colour() -> None:
    """A JPEG without subsampling: neighbours of different colours stay different."""
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    again = np.asarray(open_picture(to_file(Image.fromarray(stripes))), np.int64)
    assert np.abs(again - stripes).max() < 60


def test_a_picture_with_a_view_that_failed_is_left_out(tmp_path: Path) -> None:
    """All of its views count: one that the encoder refuses is tried again next time."""
    cache = ViewCache(tmp_path / "a", views=2, pictures=3, dim=1)
    refused = {3}  # the second view of the second picture

    def embed(files: Sequence[bytes]) -> list[np.ndarray | None]:
        return [None if at in refused else np.full(1, at, np.float32) for at in range(len(files))]

    silent = {"seed": 3, "progress": lambda _done, _of: None}
    found = cache.fill(picture, embed, **silent)  # type: ignore[arg-type]
    assert found.there.tolist() == [True, False, True]
    assert found.vectors[:, [0, 2], 0].tolist() == [[0, 4], [1, 5]]
    refused.clear()
    told: list[tuple[int, int]] = []
    again = cache.fill(picture, embed, seed=3, progress=lambda *done: told.append(done))
    assert again.there.all()
    assert again.vectors[:, :, 0].tolist() == [[0, 0, 4], [1, 1, 5]]
    assert told[0] == (2, 3)
