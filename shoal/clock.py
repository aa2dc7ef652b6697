"""Times that are stored, and clocks that were wrong when they were."""

from __future__ import annotations

from typing import Final

SKEW_S: Final = 600.0
"""How far the clocks of two machines may be apart. A time further ahead is of a wrong clock."""


def seen_through(at: float, now: float) -> float:
    """``at``, the time when something happened; 0 if it is ahead of ``now``, which cannot be.

    Whoever looks for the newest must not find that thing until the clock has caught up.
    """
    return at if at <= now + SKEW_S else 0.0
