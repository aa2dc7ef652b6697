"""Settings of the embedder service."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from embedder.encoding.config import RuntimeConfig
from embedder.flow.admission import Capacity
from embedder.images.limits import DecodeMemory, ImageLimits
from embedder.locations.config import LocationsConfig
from shoal.cores import usable_cores
from shoal.settings import INTERNAL, Setting, check_ranges

MAX_CALL_IMAGES = 256
"""Most images or texts of one call, as the contract says."""


@dataclass(frozen=True, slots=True)
class EmbedderConfig:
    """Settings of the embedder service.

    Raises:
        ConfigError: a value is out of range.
    """

    encoders: Annotated[tuple[Path, ...], Setting("--encoder", metavar="DIR")] = ()
    """Encoder artefact. The first is the default; the others are loaded when they are asked for.
    Default: the one that ships with Shoal."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Provider and threads of inference."""
    max_batch: Annotated[int, Ge(0)] = 0
    """Most images that a worker takes at once. 0: 8 on a CPU, else 64.

    More on a CPU would only delay the images that come next.
    """
    run_size: Annotated[int, Ge(0)] = 0
    """Most images of one run of a model. 0: on a CPU the size that is measured to be the fastest
    at the start, which takes about a second; else all images that a worker took.

    ``embedder.encoding.tuning`` measures it.
    """
    inference_workers: Annotated[int, Ge(0)] = 0
    """Runs of a model at the same time. 0: one per core on a CPU, else 2.

    With two, one batch is copied while another computes.
    """
    decode_workers: Annotated[int, Ge(0)] = 0
    """Images decoded at the same time where a GPU runs the model. 0: one per core."""
    max_decode_memory_mib: Annotated[int, Ge(0)] = 0
    """MiB that all images which are being decoded may take together. 0: 1024, and 64 for each core.

    Slow images wait for it; one alone that takes more is refused. 50 megapixels take 70 to 930 MiB,
    by their format.
    """
    limits: ImageLimits = field(default_factory=ImageLimits)
    """Bytes, pixels and formats of one image."""
    max_call_images: Annotated[int, Ge(1)] = 512
    """Images that all Embed calls together may have in process; calls beyond that are refused.

    Two calls of the largest batch: a few seconds of work on a small machine.
    """
    max_call_mib: Annotated[int, Ge(1)] = 256
    """MiB of encoded images that all Embed calls together may have in process."""
    max_call_decode_s: Annotated[float, Gt(0)] = 60.0
    """Seconds of one core that the slow images of one Embed call may take to decode, estimated by
    their headers; the images beyond that are refused. All calls together may have twice this in
    process, and so may all streams.

    Slow are images above 50 ms or 64 MiB of memory: a PNG of 4 megapixels, a photograph of 14.
    """
    stream_images: Annotated[int, Ge(0)] = 0
    """Images that one Ingest stream may have in process; more wait. 0: 64 on a CPU, else 256.

    With 256, two full batches are in the model while others are decoded and stored.
    """
    max_stream_images: Annotated[int, Ge(1)] = 1024
    """Images that all Ingest streams together may have in process; more wait."""
    max_stream_mib: Annotated[int, Ge(1)] = 256
    """MiB of encoded images that all Ingest streams together may have in process."""
    idle_encoder_s: Annotated[float, Gt(0)] = 600.0
    """Unload an encoder, but the default one, that nobody has used for this long.

    A model takes seconds to open and up to gigabytes to keep.
    """
    give_up_s: Annotated[float, Gt(0)] = 300.0
    """End the process, to be started anew, once a model has failed its self-test, or one run of it
    has taken, this long. inf: never.

    Nothing else mends a GPU's context that has failed, or stops a run that hangs.
    """
    locations: LocationsConfig = field(default_factory=LocationsConfig)
    """Places from which images that come as URIs may be read; none by default."""
    store_workers: Annotated[int, Ge(1), INTERNAL] = 2
    """Lookups under way at the same time, and as many writes."""
    canary_interval_s: Annotated[float, Ge(0), INTERNAL] = 30.0
    """How long a right answer of the model vouches for the next."""
    canary_timeout_s: Annotated[float, Gt(0), INTERNAL] = 60.0
    """How long an answer may take; the last answer counts meanwhile.

    It waits behind the batches that are under way: a large ViT takes half a minute for a batch of
    eight on two cores.
    """

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)

    @property
    def calls(self) -> Capacity:
        """The most that all Embed calls together may have in process."""
        return Capacity(self.max_call_images, self.max_call_mib * 2**20)

    @property
    def streams(self) -> Capacity:
        """The most that all Ingest streams together may have in process."""
        return Capacity(self.max_stream_images, self.max_stream_mib * 2**20)

    @property
    def slow_calls(self) -> Capacity:
        """The most slow images of all Embed calls in process: ms of decoding, and bytes."""
        return Capacity(round(2000 * self.max_call_decode_s), self.max_call_mib * 2**20)

    @property
    def slow_streams(self) -> Capacity:
        """The most slow images of all Ingest streams in process: ms of decoding, and bytes."""
        return Capacity(round(2000 * self.max_call_decode_s), self.max_stream_mib * 2**20)

    def among(self, processes: int) -> EmbedderConfig:
        """These settings for each of ``processes`` servers that share the cores of a machine."""
        share = math.ceil(usable_cores() / processes)
        return replace(
            self,
            decode_workers=self.decode_workers or share,
            inference_workers=self.inference_workers or (share if self.runtime.on_cpu else 0),
            max_decode_memory_mib=math.ceil(self.max_decode_memory_mib / processes),
        )

    @property
    def batch(self) -> int:
        """``max_batch`` with its default worked out."""
        return self.max_batch or (8 if self.runtime.on_cpu else 64)

    @property
    def stream_window(self) -> int:
        """``stream_images`` with its default worked out."""
        return self.stream_images or (64 if self.runtime.on_cpu else 256)

    @property
    def inferences(self) -> int:
        """``inference_workers`` with its default worked out."""
        return self.inference_workers or (usable_cores() if self.runtime.on_cpu else 2)

    @property
    def decode_memory(self) -> DecodeMemory:
        """The memory for decoding, as it is shared out."""
        threads = max(self.decoders, self.inferences if self.runtime.on_cpu else 0)
        total = self.max_decode_memory_mib or 1024 + 64 * threads
        return DecodeMemory.of(total * 2**20, threads)

    @property
    def decoders(self) -> int:
        """``decode_workers`` with its default worked out."""
        return self.decode_workers or usable_cores()
