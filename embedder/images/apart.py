"""Decodes slow images in processes of their own, below the priority of everything else.

Pillow decodes a WebP with the interpreter's lock held: 49 megapixels of it stop a process for 0.3
to 2 s, with all its callers. And a thread cannot be told to give way to others; a process can. The
processes start with the first slow image and end when there was none for a while, and all of their
memory goes back then. A decoder that crashes takes one image with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Final

from embedder import metrics
from embedder.flow.admission import Capacity, Gate
from embedder.flow.batching import Batcher, Patience, Portion
from embedder.images.cost import Cost
from shoal.errors import ImageCorrupt, ImageTooManyPixels, OperatorError, ShoalError

if TYPE_CHECKING:
    from embedder.encoding.manifest import Preprocessing
    from embedder.images.limits import ImageLimits
    from embedder.images.preprocess import UInt8

_LOG = logging.getLogger(__name__)

GIVE_UP_S: Final = 120.0
"""An image that is not decoded after this long never will be: the slowest take a few seconds of a
core, and longer behind others."""
IDLE_S: Final = 30.0
"""A process without an image for this long ends. A start takes about half a second."""
_LEAVE_S: Final = 5.0
_CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
)
"""The signals of a decoder that an image has brought down."""


@dataclass(frozen=True, slots=True)
class SlowImage:
    """An encoded image, what it costs, and the preprocessings to prepare it for."""

    data: bytes
    cost: Cost
    specs: tuple[Preprocessing, ...]


class Apart:
    """Decodes slow images within ``limits``, one for each process at a time."""

    def __init__(self, limits: ImageLimits, *, processes: int, memory: int) -> None:
        """Prepares; no process starts before the first image.

        ``memory`` bounds the bytes of all images that are being decoded.
        """
        self._limits = limits
        self._memory = memory
        self._room = Gate("decoding", Capacity(processes, memory))
        self._threads = ThreadPoolExecutor(processes, "shoal-apart")
        self._idle: list[_Process] = []
        self._all: list[_Process] = []
        self._jobs: Batcher[SlowImage, tuple[UInt8, ...]] = Batcher(
            self._decode_job,
            name="slow decoding",
            workers=processes,
            portion=Portion(1, weigh=lambda job: job.cost.ms),
            watch=metrics.queue("slow decoding"),
        )

    def start(self) -> None:
        """Starts the tasks that wait for images."""
        self._jobs.start()

    async def close(self) -> None:
        """Decodes the images that wait, then ends the processes."""
        try:
            await self._jobs.close()
        finally:
            for process in self._all:
                process.end()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def decode(self, image: SlowImage, patience: Patience) -> tuple[UInt8, ...]:
        """The pixels for each of the image's preprocessings, when it is its caller's turn.

        Raises:
            ImageInvalid: the bytes are not an image within the limits, or they need more memory.
            DeadlineExceeded: its turn came too late.
            ServiceUnavailable: the service is shutting down.
        """
        if image.cost.memory > self._memory:
            most, needed = self._memory >> 20, image.cost.memory >> 20
            msg = (
                f"image: expected one that takes at most {most} MiB to decode, got "
                f"{image.cost.pixels} pixels in a format that takes about {needed} MiB "
                "(--max-decode-memory-mib)"
            )
            raise ImageTooManyPixels(msg, pixels=str(image.cost.pixels))
        return await self._jobs.submit(image, patience)

    async def _decode_job(self, batch: Sequence[SlowImage]) -> list[tuple[UInt8, ...] | Exception]:
        (job,) = batch
        await self._room.enter(job.cost.memory)
        try:
            process = self._taken()
            try:
                loop = asyncio.get_running_loop()
                return [await loop.run_in_executor(self._threads, process.decode, job)]
            finally:
                self._give_back(process)
        finally:
            self._room.leave(job.cost.memory)

    def _taken(self) -> _Process:
        """A process that has nothing to do."""
        if not self._idle:
            self._idle.append(_Process(self._limits))
            self._all.append(self._idle[-1])
        process = self._idle.pop()
        process.keep()
        return process

    def _give_back(self, process: _Process) -> None:
        self._idle.append(process)
        process.end_after(IDLE_S)


class _Process:
    """A process that decodes, started when it is first needed."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._ending: asyncio.TimerHandle | None = None

    def decode(self, job: SlowImage) -> tuple[UInt8, ...] | Exception:
        """The pixels, or why there are none; blocks."""
        with metrics.DECODE_SECONDS.time():
            try:
                pipe = self._started()
                pipe.send((job.data, self._limits, job.specs))
                if pipe.poll(GIVE_UP_S):
                    answer: tuple[UInt8, ...] | ShoalError = pipe.recv()
                    return answer
            except (EOFError, OSError):
                return self._died()
            self.end()
            msg = f"image: expected one that decodes, got none within {GIVE_UP_S:g} s"
            return ImageCorrupt(msg)

    def _started(self) -> Connection:
        if self._pipe is None:
            here, there = Pipe()
            with there:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    # -P imports nothing from the working directory; a group of its own gets no
                    # Ctrl-C. In a session of its own its niceness would count for nothing, where
                    # the kernel shares time among sessions first (sched_autogroup).
                    [sys.executable, "-P", "-m", "embedder.images.apart_main", str(there.fileno())],
                    pass_fds=[there.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    process_group=0,
                )
            self._pipe = here
            _LOG.info("a process for slow images starts", extra={"pid": self._process.pid})
        return self._pipe

    def _died(self) -> ShoalError:
        """The error of the image during which the process died."""
        status = self._process.wait(_LEAVE_S) if self._process is not None else 0
        self.end()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        _LOG.error("a process for slow images died", extra={"how": how})
        if -status in _CRASHES:
            return ImageCorrupt(f"image: expected one that decodes, its decoder ended with {how}")
        return OperatorError(f"the process that decoded this image ended with {how}")

    def keep(self) -> None:
        """Takes back ``end_after``."""
        if self._ending is not None:
            self._ending.cancel()

    def end_after(self, idle_s: float) -> None:
        """Ends the process after a while."""
        self._ending = asyncio.get_running_loop().call_later(idle_s, self.end)

    def end(self) -> None:
        """Ends the process, if there is one; it has nothing to keep."""
        self.keep()
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_S)
