"""``shoal model``: the encoders that a server has loaded."""

from __future__ import annotations

import click

from shoal.cli.command import Group
from shoal.cli.options import Target, json_option, target_options
from shoal.cli.output import print_json, print_table

FINGERPRINT_CHARS = 12


@click.group(cls=Group)
def model() -> None:
    """Show the encoders that a server has loaded.

    Example:
      shoal model list
    """


@model.command("list")
@json_option
@target_options
def list_models(*, as_json: bool, target: Target) -> None:
    """List the encoders, the default one first.

    Example:
      shoal model list --json
    """
    with target.connect() as client:
        info = client.info()
    if as_json:
        print_json(info)
        return
    print_table(
        ("encoder", "dim", "fingerprint", "provider", "text", "licence", "source"),
        [
            (
                each.name,
                str(each.dim),
                each.fingerprint[:FINGERPRINT_CHARS],
                each.provider,
                "yes" if each.has_text else "no",
                each.license,
                each.source,
            )
            for each in info.encoders
        ],
    )
