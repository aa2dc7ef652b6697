"""Images to measure an encoder on, and how well two encoders' neighbours and clusters agree."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from embedder.export.pictures import encoded, photographs
from shoal.errors import ExportRefused

Float32 = npt.NDArray[np.float32]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_CROPS = 96
"""How many crops of photographs there are when no images are given."""
_SEEDS = 5
"""How many runs of k-means are averaged."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Encoded images to measure on. ``classes``: the true class of each image, or None."""

    name: str
    images: list[bytes]
    classes: list[str] | None


def read_sample(place: Path | None, *, most: int) -> Sample:
    """The images of ``place``, a folder or a tar laid out as ``CLASS/NAME``.

    Without a place, crops of photographs. If there are more than ``most`` images, evenly spread
    ones are taken. The classes are the folders' names, if there are several folders.

    Raises:
        ExportRefused: the place cannot be read, or has fewer than 20 images, which show nothing.
    """
    if place is None:
        return Sample("crops of scikit-learn's photographs", _crops(), None)
    try:
        found = sorted(_of_tar(place) if place.is_file() else _of_folder(place))
    except (OSError, tarfile.TarError) as exc:
        raise ExportRefused(f"{place}: expected a folder or a tar of images: {exc}") from exc
    step = max(1, -(-len(found) // most))
    kept = found[::step]
    if len(kept) < 20:  # noqa: PLR2004 - fewer say nothing
        raise ExportRefused(f"{place}: expected at least 20 images, got {len(kept)}")
    classes = [PurePosixPath(name).parent.name for name, _ in kept]
    several = len(set(classes)) > 1 and all(classes)
    return Sample(place.name, [data for _, data in kept], classes if several else None)


def neighbours_kept(before: Float32, after: Float32, *, k: int = 10) -> float:
    """The share of each image's ``k`` nearest others by ``before`` (N, D) that ``after`` keeps.

    The mean over all images, 0 to 1.
    """
    k = min(k, len(before) - 1)
    first, second = _nearest(before, k), _nearest(after, k)
    kept = [len(set(a) & set(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    return float(np.mean(kept)) / k


def _nearest(vectors: Float32, k: int) -> npt.NDArray[np.intp]:
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def clusters_kept(vectors: Float32, classes: Sequence[str]) -> float:
    """The normalised mutual information of k-means with the true classes, mean of five seeds."""
    count = len(set(classes))
    scores = [
        normalized_mutual_info_score(
            classes, KMeans(count, n_init=3, random_state=seed).fit_predict(vectors)
        )
        for seed in range(_SEEDS)
    ]
    return float(np.mean(scores))


def _crops() -> list[bytes]:
    rng = np.random.default_rng(0)
    crops = []
    for _, photo in zip(range(_CROPS), cycle(photographs()), strict=False):
        side = int(rng.integers(120, 400))
        left = int(rng.integers(0, photo.width - side))
        top = int(rng.integers(0, photo.height - side))
        crops.append(encoded(photo.crop((left, top, left + side, top + side)), "JPEG", quality=92))
    return crops


def _of_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in folder.rglob("*"):
        if file.suffix.lower() in _SUFFIXES and file.is_file():
            yield str(file.relative_to(folder)), file.read_bytes()


def _of_tar(file: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(file) as tar:
        for member in tar:
            opened = tar.extractfile(member) if member.isfile() else None
            if opened is not None and PurePosixPath(member.name).suffix.lower() in _SUFFIXES:
                yield member.name, opened.read()
