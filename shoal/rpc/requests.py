"""The bytes of a request become a message, within the bounds of its method.

gRPC would decompress and parse a request before anything else sees it. Both happen here, after its
bytes were looked at.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from shoal.errors import InvalidArgument
from shoal.rpc.bounds import bounds_of
from shoal.rpc.load import LARGE_BYTES
from shoal.rpc.wire import Malformed, Scanner, TooMuch, short_fields

LOOKED_AT_BYTES: Final = 4 * 2**10
"""A request of at most this many bytes becomes so few objects that they need not be counted."""

_GZIP: Final = b"\x1f\x8b"
"""No message begins so: its first field would be of a kind that does not exist."""
_ZLIB: Final = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
"""No request of ours begins so: its first field would have the number 15."""
_ANY_HEADER: Final = zlib.MAX_WBITS | 32
_FIRST_BYTES: Final = 128 * 2**10
"""What is decompressed before the first look; after each look as much again."""
_MOST_SHORT_FIELDS: Final = 64
_SHORT_BYTES: Final = 16 * 2**10

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Excess(Generic[M]):
    """A request of a stream that is past a bound, and was not read.

    Attributes:
        head: the message with its short fields only.
        error: what it has too much of.
    """

    head: M
    error: TooMuch


class RequestReader(Generic[M]):
    """Reads the requests of one method."""

    def __init__(
        self,
        method: str,
        parse: Callable[[bytes], M],
        *,
        max_bytes: int,
        large: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepares for ``method``, ``/package.Service/Method``.

        ``max_bytes`` bounds a message; ``large`` is called for one of LARGE_BYTES.
        """
        self._large = large
        name = method.removeprefix("/").replace("/", ".")
        self._parse = parse
        self._bounds = bounds_of(name, max_bytes=max_bytes)
        try:
            message = descriptor_pool.Default().FindMethodByName(name).input_type
        except KeyError:  # a service without a description: only its bytes are bounded
            self._scanner = None
        else:
            self._scanner = Scanner(message, self._bounds.inside)

    def read(self, data: bytes) -> M:
        """The message that ``data`` is.

        Raises:
            TooMuch: it has more of something than the method's bounds.
            Malformed: it is no message.
        """
        return self._parsed(self._checked(data))

    def read_one(self, data: bytes) -> M | Excess[M]:
        """As ``read``, of a stream.

        Where the method takes its requests one by one, one past a bound is an ``Excess``.
        """
        try:
            return self.read(data)
        except TooMuch as exc:
            return self._excess(data, exc)

    def _excess(self, data: bytes, error: TooMuch) -> Excess[M]:
        if not self._bounds.item_by_item:
            raise error
        head = short_fields(data, most=_MOST_SHORT_FIELDS, most_bytes=_SHORT_BYTES)
        if head is None:
            raise error
        return Excess(self._parsed(head), error.with_traceback(None))

    def _checked(self, data: bytes) -> bytes:
        if len(data) >= LARGE_BYTES:
            self._large()
        if data[:2] == _GZIP or data[:2] in _ZLIB:
            data = self._decompressed(data)
        self._check(data, whole=True)
        return data

    def _check(self, data: bytes, *, whole: bool) -> None:
        if len(data) > self._bounds.size:
            got = str(len(data)) if whole else "more"
            raise TooMuch(f"request: expected at most {self._bounds.size} bytes, got {got}")
        if self._scanner is not None and len(data) > LOOKED_AT_BYTES:
            self._scanner.check(data, whole=whole)

    def _decompressed(self, data: bytes) -> bytes:
        """The content of a request that gRPC's gzip or deflate made."""
        inflater = zlib.decompressobj(_ANY_HEADER)
        try:
            found = inflater.decompress(data, _FIRST_BYTES)
            while not inflater.eof and (tail := inflater.unconsumed_tail):
                self._check(found, whole=False)
                found += inflater.decompress(tail, len(found))
        except zlib.error as exc:
            raise Malformed(f"the request cannot be decompressed: {exc}") from exc
        if not inflater.eof or inflater.unused_data:
            why = "it is cut off" if not inflater.eof else "something follows its end"
            raise Malformed(f"the request cannot be decompressed: {why}")
        return found

    def _parsed(self, data: bytes) -> M:
        try:
            return self._parse(data)
        except DecodeError as exc:
            raise Malformed(f"the request cannot be read: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Messages(Generic[M]):
    """The messages of a stream of encoded ones; it raises as ``RequestReader.read``."""

    requests: AsyncIterator[bytes]
    reader: RequestReader[M]

    def __aiter__(self) -> Messages[M]:
        """Itself."""
        return self

    async def __anext__(self) -> M | Excess[M]:
        """The next message."""
        return self.reader.read_one(await anext(self.requests))


def encoded(message: Any, serialize: Callable[[Any], bytes] | None, *, max_bytes: int) -> bytes:
    """The bytes of an answer.

    Raises:
        InvalidArgument: it has more than ``max_bytes``, so that gRPC would not send it.
    """
    data: bytes = message if serialize is None else serialize(message)
    if len(data) > max_bytes:
        msg = (
            f"the answer has {len(data)} bytes, expected at most {max_bytes} in one message: "
            "ask for less at once (a smaller limit or page_size, fewer exemplars, no vectors)"
        )
        raise InvalidArgument(msg, bytes=str(len(data)), max_bytes=str(max_bytes))
    return data
