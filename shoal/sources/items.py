"""The items that every source yields, and how an item gets its key or its failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from shoal.client import IngestItem, IngestOutcome, IngestStatus, ItemFailure, Json
from shoal.file_uris import readable_name
from shoal.settings import INTERNAL, Setting
from shoal.sources.left_out import LeftOut

Keys: TypeAlias = Literal["uri", "name", "content"]
"""What makes an item itself: its place, its name under the argument, or its bytes."""
SourceItem: TypeAlias = IngestItem | IngestOutcome
"""An item to send, or the failed outcome of one that cannot be sent."""

UNREADABLE = "UNREADABLE"
IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
MANIFEST_INVALID = "MANIFEST_INVALID"


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """The settings that all items share."""

    keys: Keys = "uri"
    """What tells images apart: their place, their name under PATH, or their bytes.

    ``content`` is the server's hash of the bytes. An item with a known key replaces the stored one.
    """
    source: Annotated[str, Setting(metavar="NAME")] = ""
    """A name for the batch, camera or feed.

    A manifest's line may give another.
    """
    payload: Annotated[Mapping[str, Json], INTERNAL] = field(default_factory=dict)
    """The caller's fields; a manifest's line may add some and replace others."""
    merge_fields: bool = False
    """Keep the stored fields that an image is not sent with again; null removes one. Default:
    an image that is sent again has the fields of that time, and no others."""
    max_bytes: Annotated[int | None, INTERNAL] = None
    """Larger files are not read, but reported. None means no limit.

    ``Client.info().max_image_bytes`` is the server's.
    """
    left_out: Annotated[LeftOut, INTERNAL] = field(default_factory=LeftOut, compare=False)
    """Counts the files of directories and tars that are not sent."""

    def key(self, *, uri: str, name: str) -> str:
        """The key of the item with this ``uri`` and ``name``; empty for the hash of its content."""
        return {"uri": uri, "name": readable_name(name), "content": ""}[self.keys]

    def too_large(self, name: str, size: int) -> IngestOutcome | None:
        """The failed outcome of an item of ``size`` bytes, if the server would refuse it."""
        if self.max_bytes is None or size <= self.max_bytes:
            return None
        message = f"expected at most {self.max_bytes:,} bytes, got {size:,}; not sent"
        return failed(name, IMAGE_TOO_LARGE, message)


def remote_item(uri: str, config: SourceConfig, *, key: str = "") -> IngestItem:
    """The item of an image that the server reads at ``uri``."""
    return IngestItem(
        data=None,
        key=key or config.key(uri=uri, name=uri),
        uri=uri,
        source=config.source,
        payload=config.payload,
        name=key or uri,
        merge_fields=config.merge_fields,
    )


def failed(name: str, reason: str, message: str) -> IngestOutcome:
    """The outcome of an item that is not sent."""
    return IngestOutcome(name, IngestStatus.FAILED, failure=ItemFailure(reason, message))


def unreadable(name: str, error: Exception) -> IngestOutcome:
    """The outcome of an item that cannot be read."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return failed(name, UNREADABLE, f"cannot be read: {why or type(error).__name__}")
