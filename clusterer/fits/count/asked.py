"""A number of clusters that is given, or to be estimated from the vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from shoal.errors import InvalidArgument
from shoal.vectors import Vectors

MAX_CLUSTERS: Final = 100_000
"""The most clusters that a request can name."""

DEFAULT_LEAST: Final = 2
DEFAULT_MOST: Final = 200
"""The default upper end of the range: past it the estimators have not been measured."""

LARGEST_MOST: Final = 1000
"""The largest upper end that a request can name."""


@dataclass(frozen=True, slots=True)
class Auto:
    """The number of clusters is estimated: at least ``least``, at most ``most``."""

    least: int = DEFAULT_LEAST
    most: int = DEFAULT_MOST


AskedCount: TypeAlias = int | Auto
"""A number of clusters, or the range in which to estimate one."""


def check_count(count: AskedCount, *, method: str) -> None:
    """Checks the number of clusters that a request for ``method`` names.

    Raises:
        InvalidArgument: the number or the range is outside the limits.
    """
    field = f"config.{method}"
    if isinstance(count, Auto):
        if not DEFAULT_LEAST <= count.least <= count.most <= LARGEST_MOST:
            msg = (
                f"auto: expected {DEFAULT_LEAST} <= min <= max <= {LARGEST_MOST}, "
                f"got min {count.least} and max {count.most}"
            )
            raise InvalidArgument(msg, field=f"{field}.auto")
    elif not 1 <= count <= MAX_CLUSTERS:
        raise InvalidArgument(f"k: expected 1 to {MAX_CLUSTERS}, got {count}", field=f"{field}.k")


def fewest(count: AskedCount) -> int:
    """The least number of clusters that ``count`` allows."""
    return count.least if isinstance(count, Auto) else count


def count_clusters(vectors: Vectors, count: AskedCount, *, seed: int) -> tuple[int, dict[str, Any]]:
    """The number of clusters for ``vectors`` (N, D), and how it was estimated, as facts.

    An estimate is at most N / 4, but never less than ``count.least``. A given number has no facts.
    """
    if not isinstance(count, Auto):
        return count, {}
    from clusterer.fits.count.vote import estimate_count  # noqa: PLC0415 - it imports scikit-learn

    found = estimate_count(vectors, least=count.least, most=count.most, seed=seed)
    return found.k, {"count": asdict(found)}
