"""Settings of processes that serve: the services, store and server together. Light to import.

Importing it raises ConfigError where another module has the name of one of Shoal's packages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from shoal.app.packages import check_packages
from shoal.rpc.config import ServerConfig
from shoal.settings import Setting
from shoal.spark.config import SparkConfig
from shoal.store.config import StoreConfig
from shoal.telemetry import OFF

check_packages()
from embedder.config import EmbedderConfig  # noqa: E402 - not before it is known to be Shoal's

_METRICS = Setting(metavar="HOST:PORT|off")


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """All of Shoal in one process."""

    data: Annotated[Path, Setting(path="directory")] = Path("shoal-data")
    """Directory of the store: a new one, an empty one, or one that Shoal made. One process at a
    time owns it."""
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    """Settings of the embedder."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """Where the process listens, and whom it lets in."""
    metrics_address: Annotated[str, _METRICS] = OFF
    """Where Prometheus metrics are served."""
    min_free_mib: Annotated[int, Ge(0)] = 128
    """Free MiB on the store's disk below which writes are refused, while reads go on. The engine
    needs some 64 MiB at most between two looks at the disk."""

    @property
    def store(self) -> Path:
        """The store's directory."""
        return self.data / "store"

    @property
    def scratch(self) -> Path:
        """The directory of fits: each process makes a directory of its own in it."""
        return self.data / "scratch"

    @property
    def heads(self) -> Path:
        """The directory of trained heads."""
        return self.data / "heads"


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """One service as a process of its own."""

    server: ServerConfig
    """Where the process listens, and whom it lets in."""
    store: StoreConfig
    """Where the vectors are."""
    metrics_address: Annotated[str, _METRICS] = "127.0.0.1:9464"
    """Where Prometheus metrics are served."""


@dataclass(frozen=True, slots=True)
class SparkChoice:
    """Where a Spark application does the work, and how everybody there opens the store."""

    store: StoreConfig
    """The store, as the executors reach it."""
    spark: SparkConfig = field(default_factory=SparkConfig)
    """How Spark is started."""
