"""The open engine behind a store: every call goes through here, locked and translated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shoal.errors import StoreUnavailable
from shoal.store.engines import Backend, Engine
from shoal.store.failures import engine_errors


class Session:
    """Hands out the engine for one call, until it is closed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._closed = False

    @property
    def kind(self) -> str:
        """``"embedded"``, ``"server"`` or ``"memory"``."""
        return self._backend.kind

    @contextmanager
    def engine(self, subject: str) -> Iterator[Engine]:
        """The engine for calls about ``subject``, locked if it must be, with its errors as ours.

        Raises:
            StoreUnavailable: the store is closed.
            ShoalError: as ``engine_errors``.
        """
        with self._backend.guard:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            with engine_errors(subject):
                yield self._backend.engine

    def flush(self) -> None:
        """Makes every acknowledged write safe against a power cut."""
        with self.engine("flush"):
            self._backend.flush()

    def close(self) -> None:
        """Releases the engine. Idempotent."""
        with self._backend.guard:
            if not self._closed:
                self._closed = True
                with engine_errors("close"):
                    self._backend.engine.close()
