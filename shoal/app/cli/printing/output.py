"""Printing: JSON and tables on stdout, talk on stderr.

Every command prints through here: what comes from outside never reaches a terminal as it is.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import datetime

import click
import numpy as np

from shoal.printable import printable


def print_json(value: object) -> None:
    """Print ``value`` (JSON values, the SDK's dataclasses) as one object, indented."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Shallow: json comes back here for what is inside.
        names = (each.name for each in dataclasses.fields(value))
        return {name: getattr(value, name) for name in names}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.ndarray):
        return value.tolist()
    msg = f"{type(value).__name__} cannot be printed as JSON"
    raise TypeError(msg)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns; columns whose cells all look like numbers align right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    for row in (header, *rows):
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        say("  ".join(cells).rstrip())


def _is_number(cell: str) -> bool:
    digits = cell.replace(",", "").replace(".", "").lstrip("-").rstrip("%")
    return digits.isdigit() or cell == "-"


def say(line: str = "") -> None:
    """Print a line on stdout; control characters in it are escaped, line breaks too."""
    click.echo(printable(line), file=sys.stdout)  # click itself would write UTF-8 to ASCII


def talk(line: str) -> None:
    """Print a line on stderr, escaped likewise."""
    click.echo(printable(line), file=sys.stderr)


def short_time(time: datetime | None) -> str:
    """``time`` in the local zone, to the second; "-" for none."""
    return "-" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
