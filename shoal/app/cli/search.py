"""``shoal search``: the stored images nearest to one."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from shoal.app.cli.command import Command
from shoal.app.cli.options.derive import configured
from shoal.app.cli.options.fields import parse_fields
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.options.target import CLUSTER_ID, Target, target_options
from shoal.app.cli.printing.describe import amount, short
from shoal.app.cli.printing.hits import hit_json, print_hits
from shoal.app.cli.printing.output import print_json, talk
from shoal.app.cli.root import DomainError
from shoal.client import AnyOf, Empty, Filter, Json, SearchOptions, StoredId, Test, Text
from shoal.sources.files import to_path

if TYPE_CHECKING:
    from shoal.client import Query


class WithinType(click.ParamType[Any]):
    """``any``, ``auto`` or a cluster's id."""

    name = "any|auto|id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """The word, or the number."""
        if value in {"any", "auto"}:
            return str(value)
        try:
            return int(CLUSTER_ID.convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"expected any, auto or the number of a cluster, got {value!r}", param, ctx)


@click.command(cls=Command)
@click.argument("image", required=False, metavar="[IMAGE]")
@option("--id", "point", metavar="ID", help="Search by a stored image: its id or key.")
@option("--text", metavar="TEXT", help="Search by a text, with an encoder that reads texts.")
@option(
    "--within",
    type=WithinType(),
    default="any",
    metavar="any|auto|ID",
    help="Everywhere, in the query's own cluster, or in a cluster.",
)
@option("-n", "--limit", type=click.IntRange(1, 10_000), default=10, help="Most hits.")
@configured(SearchOptions, as_="options", only=("vector", "offset", "min_score"))
@option(
    "--where",
    multiple=True,
    callback=parse_fields,
    metavar="FIELD=VALUE",
    help="Only images whose field equals this; a JSON list means one of these, null none. "
    "Repeatable.",
)
@json_option
@target_options
def search(
    *,
    image: str | None,
    point: str | None,
    text: str | None,
    within: str | int,
    limit: int,
    options: SearchOptions,
    where: dict[str, Json],
    as_json: bool,
    target: Target,
) -> None:
    """Find the stored images nearest to one.

    The query is IMAGE (a file, or - for stdin), --id or --text. Inside a cluster the answer is
    exact.

    Example:
      shoal search photo.jpg --within auto -n 20
      shoal search --id 6f1e1a52-6d0c-5c0e-9d7b-5a0a1c0f7e11 --where source=holiday
      shoal search --text "a red bicycle" --vector vit-b-32-quickgelu-openai
    """
    query = _query(image, point, text)
    conditions = Filter(must=tuple((name, _test(name, value)) for name, value in where.items()))
    with target.connect() as client:
        result = client.search(
            query,
            collection=target.collection,
            within=within,
            limit=limit,
            options=replace(options, clustering=target.clustering, where=conditions),
        )
    if as_json:
        hits = [hit_json(hit) for hit in result.hits]
        print_json({"run": result.run, "cluster": result.cluster, "hits": hits})
        return
    print_hits(result.hits)
    searched = "everywhere" if result.cluster is None else f"cluster {result.cluster}"
    talk(f"shoal: {amount(len(result.hits), 'hit')}, {searched}, run {short(result.run)}")


def _query(image: str | None, point: str | None, text: str | None) -> Query:
    if [image, point, text].count(None) != 2:  # noqa: PLR2004 - one of three
        msg = "expected exactly one of IMAGE, --id and --text"
        raise click.UsageError(msg)
    if point is not None:
        return StoredId(point)
    if text is not None:
        return Text(text)
    if image is None or image == "-":
        return sys.stdin.buffer.read()
    try:
        return to_path(image).read_bytes()
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        msg = f"{image} cannot be read: {why}"
        raise DomainError(msg) from exc


def _test(name: str, value: Json) -> Test:
    """What the field ``name`` must be; UsageError for a value that no field can be asked for."""
    if value is None:
        return Empty()
    if isinstance(value, list):
        known = [each for each in value if isinstance(each, (str, int))]
        if len(known) < len(value):
            msg = f"--where {name}: expected strings and whole numbers in the list, got {value}"
            raise click.UsageError(msg)
        return AnyOf(known)
    if isinstance(value, dict):
        expected = "expected a string, number, boolean, list or null, got an object"
        raise click.UsageError(f"--where {name}: {expected}")
    return value
