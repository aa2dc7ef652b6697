"""Images from files, directories, tars and JSONL manifests, read lazily, for ``Client.ingest``.

    from shoal.client import Client
    from shoal.sources import read_items

    with Client() as shoal:
        for outcome in shoal.ingest(read_items(["photos", "more.tar", "images.jsonl"])):
            print(outcome.name, outcome.status)

An item that cannot be read becomes a failed outcome with a name and a reason; it raises nothing,
and the items after it are read. ``SourceConfig`` says what all items have in common, and what
their keys are; its ``left_out`` counts what is not sent. Knows files, and nothing of servers.
"""

from __future__ import annotations

from shoal.sources.items import Keys, SourceConfig, SourceItem
from shoal.sources.left_out import LeftOut
from shoal.sources.reading import STDIN, check_paths, count_items, open_stdin, read_items

__all__ = [
    "STDIN",
    "Keys",
    "LeftOut",
    "SourceConfig",
    "SourceItem",
    "check_paths",
    "count_items",
    "open_stdin",
    "read_items",
]
