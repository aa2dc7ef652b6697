"""One Spark cluster and one store for all tests here; a collection for each."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from pond import Pond
from reclustering import DIM, VECTOR
from stand_in import qdrant_server
from standalone import SETTINGS, Standalone, java_home, standalone

from shoal.spark.cluster import SparkCluster, open_spark
from shoal.spark.config import SparkConfig
from shoal.store import Store, StoreConfig, VectorInfo, open_store


@pytest.fixture(scope="session")
def spark_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of every process here: with a Java, and this checkout."""
    with pytest.MonkeyPatch.context() as patch:
        home = java_home(tmp_path_factory.mktemp("jdk"))
        if home is not None:
            patch.setenv("JAVA_HOME", home)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        yield dict(os.environ)


@pytest.fixture(scope="session")
def machines(
    tmp_path_factory: pytest.TempPathFactory, spark_environment: dict[str, str]
) -> Iterator[Standalone]:
    """A standalone cluster of two workers."""
    with standalone(tmp_path_factory.mktemp("spark"), spark_environment) as found:
        yield found


@pytest.fixture(scope="session")
def spark(machines: Standalone) -> Iterator[SparkCluster]:
    """An application on it."""
    config = SparkConfig(machines.master, SETTINGS)
    with open_spark(config, name="tests") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def place() -> Iterator[StoreConfig]:
    """A Qdrant server, or what stands in for one."""
    with qdrant_server() as (url, port):
        yield StoreConfig(url=url, grpc_port=port, timeout_s=20)


@pytest.fixture(scope="session")
def store(place: StoreConfig) -> Iterator[Store]:
    """The open store."""
    with open_store(place) as opened:
        yield opened


@pytest.fixture
def pond(store: Store, place: StoreConfig) -> Iterator[Pond]:
    """An empty collection of DIM-d vectors."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    store.create_collection(name, [VectorInfo(VECTOR, DIM, "f" * 64)])
    yield Pond(store, place, name)
    store.drop_collection(name)
