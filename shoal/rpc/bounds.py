"""The most that one request of each method may have: the table, and nothing else.

The numbers lie above those of the contract (``proto/shoal/v1``): of a request that is a little too
large the service says how much it has. Here is where reading ends of one that is far too large.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from shoal.rpc.wire import Bounds

_KIB: Final = 2**10
_MIB: Final = 2**20

NO_MORE: Final = 2**31
"""The bytes of a request that only the limit of the server's messages bounds."""


@dataclass(frozen=True, slots=True)
class MethodBounds:
    """The most that one request of a method may have.

    Attributes:
        size: the most bytes, after decompression.
        inside: what the bytes may say.
        item_by_item: True for a stream whose requests are refused one by one: a request past a
            bound reaches the handler as an ``Excess``.
    """

    size: int = 64 * _KIB
    inside: Bounds = field(default_factory=Bounds)
    item_by_item: bool = False


_IMAGE: Final = {
    "shoal.v1.Image.data": NO_MORE,  # the embedder refuses a large image by itself
    "shoal.v1.Image.uri": _MIB,
}
_EMBED: Final = MethodBounds(
    NO_MORE, Bounds(fields=4_000, items={"shoal.v1.EmbedRequest.images": 1_000}, sizes=_IMAGE)
)
_EMBED_TEXT: Final = MethodBounds(
    # 256 texts of 10,000 characters, which may have 4 bytes each
    12 * _MIB,
    Bounds(
        fields=4_000,
        items={"shoal.v1.EmbedTextRequest.texts": 1_000},
        sizes={"shoal.v1.EmbedTextRequest.texts": _MIB},
    ),
)
_INGEST: Final = MethodBounds(
    NO_MORE,
    # A payload of 64 KiB as JSON has at most 240 KiB: a digit and ", " take 11 bytes.
    Bounds(fields=100, sizes={**_IMAGE, "shoal.v1.IngestRequest.payload": 320 * _KIB}),
    item_by_item=True,
)
_SEARCH: Final = MethodBounds(
    NO_MORE,
    Bounds(
        # 7,500 values of all conditions together, of two fields each, and what is around them
        fields=16_000,
        items={
            # 100 conditions, 1,000 values
            "google.protobuf.ListValue.values": 2_000,
        },
        sizes={**_IMAGE, "shoal.v1.SearchRequest.text": _MIB, "shoal.v1.Vector.values": _MIB},
    ),
)
_RUN: Final = MethodBounds(
    NO_MORE,  # 10,000 words with their vectors
    Bounds(
        fields=20_000,
        items={"shoal.v1.Naming.vocabulary": 12_000},
        sizes={"shoal.v1.Naming.vocabulary": 128 * _KIB},
    ),
)

_LIST_CLUSTERS: Final = MethodBounds(
    # The token has the clusters that are left: 5 bytes for each of some 100,000.
    4 * _MIB,
    Bounds(sizes={"shoal.v1.ListClustersRequest.page_token": 4 * _MIB}),
)

_BY_METHOD: Final = {
    "shoal.v1.EmbedderService.Embed": _EMBED,
    "shoal.v1.EmbedderService.EmbedText": _EMBED_TEXT,
    "shoal.v1.EmbedderService.Ingest": _INGEST,
    "shoal.v1.SearchService.Search": _SEARCH,
    "shoal.v1.SearchService.ListClusters": _LIST_CLUSTERS,
    "shoal.v1.ClustererService.CreateRun": _RUN,
    "shoal.v1.ClustererService.SetSchedule": _RUN,
}
_OTHER: Final = MethodBounds()


def bounds_of(method: str, *, max_bytes: int) -> MethodBounds:
    """The bounds of the method of this full name, ``package.Service.Method``.

    ``max_bytes`` is the limit of the server's messages.
    """
    found = _BY_METHOD.get(method, _OTHER)
    return replace(found, size=min(found.size, max_bytes))
