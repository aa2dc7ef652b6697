"""Every error that Shoal raises on purpose, as one tree.

    ShoalError
    +-- CallerError                the caller must change the request
    |   +-- InvalidArgument        a field is missing, malformed or out of range
    |   |   +-- ImageInvalid       the bytes are not an image that Shoal accepts
    |   |       +-- ImageEmpty, ImageTooLarge, ImageTooManyPixels,
    |   |           ImageUnsupportedFormat, ImageCorrupt
    |   +-- NotFound               no such collection, clustering, cluster, run or point
    |   +-- Conflict               the state of the collection forbids the request
    |   |   +-- EncoderMismatch    the collection was made with another encoder
    |   |   +-- LeaseHeld          another run owns the clustering
    |   |   +-- LeaseLost          this run's lease expired and was taken
    |   |   +-- NotEnoughPoints    more clusters than points
    |   |   +-- NothingToRollBack  no earlier assignment is intact
    |   |   +-- TooManyCollections the store holds as many as it can
    |   +-- Unauthenticated        no bearer token, or a wrong one
    |   +-- Unsupported            this deployment cannot do what was asked
    |       +-- ServiceMissing     no server with the service is known to the client
    +-- OperatorError              whoever runs the service must act
    |   +-- ConfigError            a setting is wrong; raised before a port opens
    |   +-- ArtefactError          an encoder directory is damaged or incomplete
    |   +-- SelfTestFailed         the encoder does not reproduce its reference vectors
    |   +-- ExportRefused          a model cannot be exported, or its export is not faithful
    |   +-- StoreLocked            another process owns the embedded store
    |   +-- DiskFull               the embedded store's disk has no room for writes
    |   +-- FitFailed              the child process of a fit died
    |   +-- Unrecoverable          the process cannot recover; it ends, to be started anew
    +-- TransientError             the same request may succeed later
        +-- Overloaded             queues are full; retry after ``retry_after_s``
        +-- StoreUnavailable       the store cannot be reached
        +-- ServiceUnavailable     the server cannot be reached
        +-- LocationUnavailable    the place of an image cannot be read now
        +-- DeadlineExceeded       the caller's deadline passed before the work began
        +-- Cancelled              the caller has gone, or the run was cancelled

Each class has a stable upper-snake ``reason``, which travels on the wire. Each instance carries
``metadata``: the facts of its message as strings, for programs. ``shoal.rpc.status`` has the table
from class to gRPC code. This module imports nothing of ours.
"""

from __future__ import annotations

from typing import ClassVar


class ShoalError(Exception):
    """The root of the tree. ``message`` says what was wrong, what was expected, what was got."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class CallerError(ShoalError):
    """The caller must change the request."""


class InvalidArgument(CallerError):
    """A field is missing, malformed or out of range."""

    reason = "INVALID_ARGUMENT"


class ImageInvalid(InvalidArgument):
    """The bytes are not an image that Shoal accepts."""

    reason = "IMAGE_INVALID"


class ImageEmpty(ImageInvalid):
    """There are no bytes."""

    reason = "IMAGE_EMPTY"


class ImageTooLarge(ImageInvalid):
    """More bytes than the limit."""

    reason = "IMAGE_TOO_LARGE"


class ImageTooManyPixels(ImageInvalid):
    """The header claims more pixels than the limit; nothing was decoded."""

    reason = "IMAGE_TOO_MANY_PIXELS"


class ImageUnsupportedFormat(ImageInvalid):
    """The bytes are not in an accepted format."""

    reason = "IMAGE_UNSUPPORTED_FORMAT"


class ImageCorrupt(ImageInvalid):
    """The format is accepted, but the bytes do not decode."""

    reason = "IMAGE_CORRUPT"


class NotFound(CallerError):
    """No such collection, clustering, cluster, run or point."""

    reason = "NOT_FOUND"


class Conflict(CallerError):
    """The state of the collection forbids the request."""

    reason = "CONFLICT"


class EncoderMismatch(Conflict):
    """The collection was made with another encoder."""

    reason = "ENCODER_MISMATCH"


class LeaseHeld(Conflict):
    """Another run owns the clustering."""

    reason = "LEASE_HELD"


class LeaseLost(Conflict):
    """This run's lease expired and another run took it."""

    reason = "LEASE_LOST"


class NotEnoughPoints(Conflict):
    """More clusters were asked for than there are points."""

    reason = "NOT_ENOUGH_POINTS"


class NothingToRollBack(Conflict):
    """No earlier assignment is intact."""

    reason = "NOTHING_TO_ROLL_BACK"


class TooManyCollections(Conflict):
    """The store holds as many collections as it can."""

    reason = "TOO_MANY_COLLECTIONS"


class Unauthenticated(CallerError):
    """No bearer token, or a wrong one."""

    reason = "UNAUTHENTICATED"


class Unsupported(CallerError):
    """This deployment cannot do what was asked."""

    reason = "UNSUPPORTED"


class ServiceMissing(Unsupported):
    """No server with the service that a call is for is known to the client."""

    reason = "SERVICE_MISSING"


class OperatorError(ShoalError):
    """Whoever runs the service must act."""

    reason = "OPERATOR_ERROR"


class ConfigError(OperatorError):
    """A setting is wrong. Raised before a port opens."""

    reason = "CONFIG_INVALID"


class ArtefactError(OperatorError):
    """An encoder directory is damaged or incomplete."""

    reason = "ARTEFACT_INVALID"


class SelfTestFailed(OperatorError):
    """The encoder does not reproduce its reference vectors."""

    reason = "SELF_TEST_FAILED"


class ExportRefused(OperatorError):
    """A model cannot be exported, or its export does not give the vectors that it gives."""

    reason = "EXPORT_REFUSED"


class StoreLocked(OperatorError):
    """Another process owns the embedded store."""

    reason = "STORE_LOCKED"


class DiskFull(OperatorError):
    """The embedded store's disk has no room for writes; reads go on."""

    reason = "DISK_FULL"


class FitFailed(OperatorError):
    """The child process of a fit died or reported an error."""

    reason = "FIT_FAILED"


class Unrecoverable(OperatorError):
    """The process cannot recover: it ends, and whoever runs it starts it anew."""

    reason = "UNRECOVERABLE"


class TransientError(ShoalError):
    """The same request may succeed later, ``retry_after_s`` seconds from now if that is known."""

    reason = "UNAVAILABLE"
    retry_after_s: float | None = None


class Overloaded(TransientError):
    """Queues are full. Retry after ``retry_after_s`` seconds."""

    reason = "OVERLOADED"
    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


class StoreUnavailable(TransientError):
    """The store cannot be reached, or failed."""

    reason = "STORE_UNAVAILABLE"
    retry_after_s = 1.0  # one that starts anew is found within a second of being ready


class ServiceUnavailable(TransientError):
    """The server cannot be reached."""

    reason = "SERVICE_UNAVAILABLE"


class LocationUnavailable(TransientError):
    """The place where an image lies cannot be read now."""

    reason = "LOCATION_UNAVAILABLE"


class DeadlineExceeded(TransientError):
    """The caller's deadline passed before the work was done."""

    reason = "DEADLINE_EXCEEDED"


class Cancelled(TransientError):
    """The caller has gone, or the run was cancelled."""

    reason = "CANCELLED"


def by_reason(reason: str) -> type[ShoalError] | None:
    """The class with this ``reason`` that is nearest to the root; None if there is none."""
    level: list[type[ShoalError]] = [ShoalError]
    while level:
        for cls in level:
            if cls.reason == reason:
                return cls
        level = [child for cls in level for child in cls.__subclasses__()]
    return None
