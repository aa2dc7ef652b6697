"""What an encoder does on real images: its vectors, their neighbours, their clusters."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_SEEDS = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """Images to measure on, encoded. ``classes``: the true class of each, or None."""

    name: str
    images: list[bytes]
    classes: list[str] | None


def read_sample(place: Path | None, *, most: int) -> Sample:
    """Images of a folder or a tar laid out as ``CLASS/NAME``; by default crops of photographs.

    At most ``most``, evenly spread. Classes are taken from the folders, if there are several.

    Raises:
        ExportRefused: there are fewer than 20 images, which show nothing.
    """
    if place is None:
        return Sample("crops of scikit-learn's photographs", _crops(), None)
    try:
        found = sorted(_of_tar(place) if place.is_file() else _of_folder(place))
    except (OSError, tarfile.TarError) as exc:
        msg = f"{place}: expected a folder or a tar of images: {exc}"
        raise ExportRefused(msg) from exc
    step = max(1, -(-len(found) // most))
    kept = found[::step]
    if len(kept) < 20:  # noqa: PLR2004
        msg = f"{place}: expected at least 20 images, got {len(kept)}"
        raise ExportRefused(msg)
    classes = [PurePosixPath(name).parent.name for name, _ in kept]
    several = len(set(classes)) > 1 and all(classes)
    return Sample(place.name, [data for _, data in kept], classes if several else None)


def neighbours_kept(before: Float32, after: Float32, *, k: int = 10) -> float:
    """The share of each image's ``k`` nearest others by ``before`` (N, D) that ``after`` keeps."""
    k = min(k, len(before) - 1)
    first, second = _nearest(before, k), _nearest(after, k)
    kept = [len(set(a) & set(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    return float(np.mean(kept)) / k


def _nearest(vectors: Float32, k: int) -> npt.NDArray[np.intp]:
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def clusters_kept(vectors: Float32, classes: Sequence[str]) -> float:
    """Mean normalised mutual information of k-means over five seeds with the true classes."""
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
    made = []
    for number in range(_CROPS):
        photo = photographs()[number % 2]
        side = int(rng.integers(120, 400))
        left = int(rng.integers(0, photo.width - side))
        top = int(rng.integers(0, photo.height - side))
        made.append(encoded(photo.crop((left, top, left + side, top + side)), "JPEG", quality=92))
    return made


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
