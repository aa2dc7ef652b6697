"""Options of the thresholds past which a run's plan is refused: of one run, and of a service."""

from __future__ import annotations

import click

from shoal.app.cli.options.option import Decorator, option

GATES: tuple[Decorator, ...] = (
    option(
        "--max-moved-share",
        type=click.FloatRange(0, 1),
        help="Gate: largest share of points that change cluster.",
    ),
    option("--max-noise-share", type=click.FloatRange(0, 1), help="Gate: largest share of noise."),
    option(
        "--min-agreement",
        type=click.FloatRange(-1, 1),
        help="Gate: least adjusted Rand index against the active run.",
    ),
    option(
        "--max-cluster-share",
        type=click.FloatRange(0, 1),
        help="Gate: largest share of points in one cluster.",
    ),
)
