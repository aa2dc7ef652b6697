"""Where images come from: files, directories, tars and JSONL manifests, read lazily.

What cannot be read becomes a failed outcome with a name and a reason: nothing is raised for the
sake of one item. Knows files, and nothing of servers.
"""

from __future__ import annotations

from shoal.sources.items import Found, Keys, SourceConfig
from shoal.sources.reading import STDIN, check_paths, count_items, open_stdin, read_items

__all__ = [
    "STDIN",
    "Found",
    "Keys",
    "SourceConfig",
    "check_paths",
    "count_items",
    "open_stdin",
    "read_items",
]
