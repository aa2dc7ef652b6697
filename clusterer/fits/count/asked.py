"""A number of clusters that is given, or to be estimated from the vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from shoal.errors import InvalidArgument
from shoal.v1 import clusterer_pb2 as pb
from shoal.vectors import Vectors

MAX_CLUSTERS: Final = 100_000
DEFAULT_LEAST: Final = 2
DEFAULT_MOST: Final = 200
"""Past this the estimators have not been measured."""
LARGEST_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Count:
    """``k`` clusters; with k 0, as many as are estimated between ``least`` and ``most``."""

    k: int
    least: int = 0
    most: int = 0


def checked_count(message: pb.KMeans | pb.GaussianMixture, method: str) -> Count:
    """The count that ``message`` asks for.

    Raises:
        InvalidArgument: neither k nor auto, or out of range.
    """
    field = f"config.{method}"
    match message.WhichOneof("count"):
        case "k":
            if not 1 <= message.k <= MAX_CLUSTERS:
                msg = f"k: expected 1 to {MAX_CLUSTERS}, got {message.k}"
                raise InvalidArgument(msg, field=f"{field}.k")
            return Count(message.k)
        case "auto":
            least, most = message.auto.min or DEFAULT_LEAST, message.auto.max or DEFAULT_MOST
            if not DEFAULT_LEAST <= least <= most <= LARGEST_MOST:
                msg = (
                    f"auto: expected {DEFAULT_LEAST} <= min <= max <= {LARGEST_MOST}, "
                    f"got min {least} and max {most}"
                )
                raise InvalidArgument(msg, field=f"{field}.auto")
            return Count(0, least, most)
        case _:
            msg = f"{method}: expected k, a number of clusters, or auto; got neither"
            raise InvalidArgument(msg, field=f"{field}.k")


def decide(vectors: Vectors, count: Count, *, seed: int) -> tuple[int, dict[str, Any]]:
    """The number of clusters for ``vectors`` (N, D), at most N, and what led to it, as facts."""
    if count.k:
        return count.k, {}
    from clusterer.fits.count.vote import estimate_count  # noqa: PLC0415 - it imports scikit-learn

    most = min(count.most, max(count.least, len(vectors) - 1))
    found = estimate_count(vectors, least=count.least, most=most, seed=seed)
    return found.k, {"count": asdict(found)}
