"""The calls of the embedder, but for an ingestion, which is no call with one request."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.client import messages
from shoal.client.calls import Call
from shoal.client.values import Embedding, Info
from shoal.v1 import common_pb2, embedder_pb2


def info() -> Call[Info]:
    """What the server can embed, and its limits."""
    return Call("embedder", "GetInfo", embedder_pb2.GetInfoRequest(), messages.from_info)


def embed(
    images: Sequence[bytes], *, encoder: str = "", fingerprint: str = ""
) -> Call[list[Embedding]]:
    """One Embedding per image (an encoded file), in order; nothing is stored.

    ``fingerprint``: a collection's, whose vectors may be older than its encoder's matte.
    """
    request = embedder_pb2.EmbedRequest(
        images=[common_pb2.Image(data=data) for data in images],
        encoder=encoder,
        fingerprint=fingerprint,
    )
    return Call("embedder", "Embed", request, _embeddings)


def embed_text(
    texts: Sequence[str], *, encoder: str = "", fingerprint: str = ""
) -> Call[list[Embedding]]:
    """One Embedding per text, in order; nothing is stored. ``fingerprint``: see ``embed``."""
    request = embedder_pb2.EmbedTextRequest(texts=texts, encoder=encoder, fingerprint=fingerprint)
    return Call("embedder", "EmbedText", request, _embeddings)


def _embeddings(
    response: embedder_pb2.EmbedResponse | embedder_pb2.EmbedTextResponse,
) -> list[Embedding]:
    return [messages.from_embed_result(result) for result in response.results]
