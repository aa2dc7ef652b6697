"""``shoal duplicates``: near-duplicates among the stored images."""

from __future__ import annotations

import itertools

import click

from shoal.app.cli.command import Command
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.options.target import Target, target_options
from shoal.app.cli.printing.output import print_json, print_table, say


@click.command(cls=Command)
@option(
    "--min-cosine",
    type=click.FloatRange(0.9, 1),
    help="Least cosine of two near-duplicates. Default: 0.95.",
)
@option("--vector", default="", metavar="NAME", help="Which named vector. Default: the first.")
@option("-n", "--limit", type=click.IntRange(min=1), default=100, help="Most groups to list.")
@json_option
@target_options
def duplicates(
    *, min_cosine: float | None, vector: str, limit: int, as_json: bool, target: Target
) -> None:
    """List groups of near-duplicates, largest first.

    The first image of a group stands for it, and all others are near-duplicates of that one.
    What cosine means "the same picture" depends on the encoder: 0.95 finds images saved anew,
    cropped a little or mirrored with the bundled one.

    Example:
      shoal duplicates
      shoal duplicates --min-cosine 0.99 --json
    """
    with target.connect() as client:
        found = client.duplicates(
            collection=target.collection, vector=vector, min_cosine=min_cosine
        )
        groups = list(itertools.islice(found, limit))
        found.close()
    if as_json:
        print_json(groups)
        return
    rows = [
        (str(number), f"{each.cosine:.4f}", each.id, each.uri or each.key or "-")
        for number, group in enumerate(groups, 1)
        for each in group.members
    ]
    print_table(("group", "cosine", "id", "image"), rows)
    copies = sum(group.size - 1 for group in groups)
    say(f"{len(groups):,} groups, {copies:,} images are near-duplicates of another")
