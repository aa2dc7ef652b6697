"""The open engine behind a store: every call goes through here, locked and translated."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import cast

from shoal.errors import ShoalError, StoreUnavailable
from shoal.store.engines import Backend, Engine
from shoal.store.failures import engine_errors
from shoal.store.patience import Patience, PatientEngine

_LOG = logging.getLogger(__name__)


class Session:
    """Hands out the engine for one call, until it is closed."""

    def __init__(self, backend: Backend, patience: Patience | None = None) -> None:
        self._backend = backend
        self._patience = patience
        self._closed = Event()
        self._advised = False

    @property
    def kind(self) -> str:
        """``"embedded"``, ``"server"`` or ``"memory"``."""
        return self._backend.kind

    def patient(self, patience: Patience) -> Session:
        """A session of the same engine that makes calls again; it is closed with this one."""
        other = Session(self._backend, patience)
        other._closed = self._closed
        other._advised = True
        return other

    @contextmanager
    def engine(self, subject: str) -> Iterator[Engine]:
        """The engine for calls about ``subject``, locked if it must be, with its errors as ours.

        Raises:
            StoreUnavailable: the store is closed.
            ShoalError: as ``engine_errors``.
        """
        with self._backend.guard:
            if self._closed.is_set():
                raise StoreUnavailable("the store is closed")
            engine = self._backend.engine
            if self._patience is not None:
                engine = cast("Engine", PatientEngine(engine, self._patience, subject))
            with engine_errors(subject):
                yield engine
            if not self._advised:
                self._advised = True
                self._advise()

    @property
    def refusal(self) -> str:
        """Why the engine refuses writes; empty if it does not."""
        return self._backend.refusal()

    def version(self, name: str) -> int | None:
        """The version of a collection; None where others may write."""
        return self._backend.version(name)

    def flush(self) -> None:
        """Makes every acknowledged write safe against a power cut."""
        with self.engine("flush"):
            self._backend.flush()

    def _advise(self) -> None:
        """Logs what an operator should know of the engine, which has just answered a call."""
        try:
            with engine_errors("version"):
                advice = self._backend.advice()
        except ShoalError as exc:
            _LOG.debug("the version of the store is not known: %s", exc)
            return
        if advice:
            _LOG.warning("%s", advice)

    def close(self) -> None:
        """Releases the engine. Idempotent."""
        with self._backend.guard:
            if not self._closed.is_set():
                self._closed.set()
                with engine_errors("close"):
                    self._backend.engine.close()
