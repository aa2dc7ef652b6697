"""The asynchronous client, for programs that run an event loop.

``AsyncClient`` has the methods of ``Client``, with the same arguments and values: one answer is
awaited, several are iterated over with ``async for``.
"""

from __future__ import annotations

from shoal.client.aio.client import AsyncClient

__all__ = ["AsyncClient"]
