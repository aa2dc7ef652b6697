"""The engine as the gateway needs it, and how a server or the in-memory engine is opened.

``Engine`` is the part of ``QdrantClient`` that the gateway uses, so a client is an engine as it
is; ``EdgeEngine`` (``shoal.store.edge``) has the same methods.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import RLock
from typing import Any, Protocol, TypeAlias

from qdrant_client import QdrantClient, models
from qdrant_client.common import client_warnings
from qdrant_client.conversions.common_types import PointId
from qdrant_client.http.models import QueryResponse

from shoal.channels import channel_options
from shoal.store.config import StoreConfig
from shoal.vectors import Vectors

IndexSchema: TypeAlias = (
    models.PayloadSchemaType | models.KeywordIndexParams | models.IntegerIndexParams
)
WithFields: TypeAlias = bool | list[str]

# Warnings of the client about its in-memory engine, which Shoal offers for tests only. They are put
# into the client's own "already shown" set: warning filters are global and not thread-safe.
_EXPECTED_IN_MEMORY = (
    "large-local-collection",
    "create-local-payload-indexes",
    "local_query_points_search_params_ignored",
)


class CollectionConfig(Protocol):
    """The part of a collection's configuration that the gateway reads."""

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The metadata that Shoal noted at creation."""


class CollectionInfo(Protocol):
    """An engine's description of a collection."""

    @property
    def config(self) -> CollectionConfig:
        """Its configuration."""

    @property
    def payload_schema(self) -> Mapping[str, object]:
        """Its payload indexes by field; empty where the engine has none."""


class CollectionName(Protocol):
    """One row of a list of collections."""

    @property
    def name(self) -> str:
        """The collection's name."""


class CollectionNames(Protocol):
    """A list of collections."""

    @property
    def collections(self) -> Sequence[CollectionName]:
        """The rows."""


class EngineRecord(Protocol):
    """A point as an engine reads it."""

    @property
    def id(self) -> object:
        """An integer, or an object that prints as a UUID."""

    @property
    def payload(self) -> dict[str, Any] | None:
        """The fields that were asked for."""

    @property
    def vector(self) -> object:
        """The named vectors that were asked for: lists of numbers, or arrays (D,)."""


class Engine(Protocol):
    """The methods of ``QdrantClient`` that the gateway calls, with the arguments that it passes."""

    def get_collections(self) -> CollectionNames:
        """Every collection."""

    def get_collection(self, collection_name: str) -> CollectionInfo:
        """One collection."""

    def create_collection(
        self,
        collection_name: str,
        *,
        vectors_config: Mapping[str, models.VectorParams],
        metadata: dict[str, Any],
    ) -> object:
        """Makes a collection; fails if it exists."""

    def update_collection(self, collection_name: str, *, metadata: dict[str, Any]) -> object:
        """Merges ``metadata`` into the collection's, top-level key by key."""

    def delete_collection(self, collection_name: str) -> object:
        """Drops a collection."""

    def create_payload_index(
        self, collection_name: str, field_name: str, *, field_schema: IndexSchema, wait: bool
    ) -> object:
        """Indexes a payload field."""

    def delete_payload_index(self, collection_name: str, field_name: str, *, wait: bool) -> object:
        """Drops the index of a payload field."""

    def upsert(
        self,
        collection_name: str,
        points: list[models.PointStruct],
        *,
        wait: bool,
        update_mode: models.UpdateMode,
    ) -> object:
        """Writes whole points."""

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[str],
        *,
        with_payload: WithFields,
        with_vectors: WithFields,
    ) -> Sequence[EngineRecord]:
        """The points with these ids, in any order, without the missing."""

    def scroll(  # noqa: PLR0913 - QdrantClient's signature
        self,
        collection_name: str,
        *,
        scroll_filter: models.Filter,
        limit: int,
        offset: PointId | None,
        with_payload: WithFields,
        with_vectors: WithFields,
    ) -> tuple[Sequence[EngineRecord], PointId | None]:
        """Up to ``limit`` points from ``offset`` on, by id, and the next id."""

    def query_points(  # noqa: PLR0913 - QdrantClient's signature
        self,
        collection_name: str,
        *,
        query: Vectors,
        using: str,
        query_filter: models.Filter,
        search_params: models.SearchParams,
        limit: int,
        with_payload: WithFields,
        with_vectors: WithFields,
    ) -> QueryResponse:
        """The nearest points."""

    def count(
        self, collection_name: str, *, count_filter: models.Filter, exact: bool
    ) -> models.CountResult:
        """The number of points."""

    def facet(
        self,
        collection_name: str,
        *,
        key: str,
        facet_filter: models.Filter,
        limit: int,
        exact: bool,
    ) -> models.FacetResponse:
        """The most frequent values of an indexed field."""

    def set_payload(  # noqa: PLR0913 - QdrantClient's signature
        self,
        collection_name: str,
        payload: dict[str, Any],
        *,
        points: models.Filter,
        key: str | None,
        wait: bool,
        ordering: models.WriteOrdering,
    ) -> object:
        """Merges ``payload`` into that of the points."""

    def delete_payload(
        self,
        collection_name: str,
        keys: Sequence[str],
        *,
        points: models.Filter,
        wait: bool,
        ordering: models.WriteOrdering,
    ) -> object:
        """Removes payload fields of the points."""

    def delete(
        self,
        collection_name: str,
        points_selector: list[PointId],
        *,
        wait: bool,
        ordering: models.WriteOrdering,
    ) -> object:
        """Deletes the points with these ids."""

    def close(self) -> None:
        """Releases the engine's files or connection."""


OLDEST_ADVISED = (1, 19)
"""The first version of the server that notes the points of a conditional write (qdrant#9678)."""


def _nothing() -> None:
    """Flushes nothing: the engine acknowledges a write once it is kept."""


def _no_advice() -> str:
    """Nothing that an operator should know."""
    return ""


def _no_version(name: str) -> None:
    """No version: another process may write to the collection."""
    del name


@dataclass(frozen=True, slots=True)
class Backend:
    """An open engine and how to treat it.

    Attributes:
        kind: ``"embedded"``, ``"server"`` or ``"memory"``.
        engine: The engine.
        guard: A lock held during each call, for an engine that is not thread-safe.
        flush: Makes acknowledged writes safe against a power cut.
        refusal: Tells why the engine refuses writes now; empty if it does not.
        version: Tells a collection's version, which changes with it; None where others may write.
        advice: Tells, in a sentence or not at all, what an operator should know of the engine.
    """

    kind: str
    engine: Engine
    guard: AbstractContextManager[object]
    flush: Callable[[], None] = _nothing
    advice: Callable[[], str] = _no_advice
    refusal: Callable[[], str] = _no_advice
    version: Callable[[str], int | None] = _no_version


def open_server(config: StoreConfig) -> Backend:
    """A client of the server at ``config.url``; connects at the first call."""
    engine = QdrantClient(
        url=config.url,
        api_key=config.api_key.get_secret_value() if config.api_key else None,
        grpc_port=config.grpc_port,
        prefer_grpc=True,
        timeout=math.ceil(config.timeout_s),
        check_compatibility=False,  # else a background thread probes the server and warns
        grpc_options=channel_options(via_proxy=config.via_proxy),
        trust_env=False,  # its HTTP client is not used; a proxy of a kind unknown to it would raise
    )
    return Backend(
        "server", engine, nullcontext(), advice=lambda: version_advice(engine.info().version)
    )


def version_advice(version: str) -> str:
    """What an operator should know of a server of this ``version``; empty if nothing."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) >= OLDEST_ADVISED:
        return ""
    return (
        f"the Qdrant server has version {version}: upgrade to "
        f"{'.'.join(map(str, OLDEST_ADVISED))} or later. Before it, a server that is killed during "
        "a flush can lose writes that other programs make under a condition on an indexed field "
        "(qdrant#9424); Shoal makes none"
    )


def open_memory() -> Backend:
    """An empty engine in this process's memory, behind one lock: it is not thread-safe."""
    client_warnings.SEEN_MESSAGES.update(_EXPECTED_IN_MEMORY)
    return Backend("memory", QdrantClient(location=":memory:"), RLock())
