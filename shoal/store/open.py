"""Opening a store: the one place that chooses an engine."""

from __future__ import annotations

from shoal.store.config import StoreConfig
from shoal.store.engines import Backend, open_memory, open_server
from shoal.store.gateway import Store


def open_store(config: StoreConfig) -> Store:
    """The store that ``config`` describes; close it when done.

    A server is not contacted until the first call.

    Raises:
        StoreLocked: another process owns the directory.
        ConfigError: the directory cannot be used.
        OperatorError: files in the directory are damaged.
    """
    return Store(_backend(config))


def _backend(config: StoreConfig) -> Backend:
    if config.url is not None:
        return open_server(config)
    if config.path is None:
        return open_memory()
    from shoal.store.edge import open_embedded  # noqa: PLC0415 - a server needs no embedded engine

    return open_embedded(config.path, least_free=config.min_free_mib << 20)
