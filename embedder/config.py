"""Settings of the embedder service."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from embedder.encoding.config import RuntimeConfig
from embedder.flow.admission import Capacity
from embedder.images.limits import ImageLimits
from embedder.locations.config import LocationsConfig
from shoal.cores import usable_cores
from shoal.errors import ConfigError

MAX_CALL_IMAGES = 256
"""Most images or texts of one call, as the contract says."""


@dataclass(frozen=True, slots=True)
class EmbedderConfig:
    """Settings of the embedder service.

    Raises:
        ConfigError: a value is out of range.
    """

    encoders: tuple[Path, ...] = ()
    """The artefacts' directories, the default encoder first; none is the one that ships with
    Shoal."""
    idle_encoder_s: float = 600.0
    """After how long without use an encoder, but the default one, is closed: a model takes
    seconds to open and up to gigabytes to keep."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Provider and threads of inference."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    """Bytes, pixels and formats of one image."""
    locations: LocationsConfig = field(default_factory=LocationsConfig)
    """Where images may be read that come as URIs; nowhere, by default."""
    max_batch: int = 0
    """Most images that a worker takes at once. 0: 8 on a CPU, where more would only delay whoever
    comes next; 64 elsewhere."""
    run_size: int = 0
    """Most images of one run of the model. 0: all that the worker took; on a CPU what is measured
    to be fastest when the encoder is opened (``embedder.encoding.tuning``)."""
    inference_workers: int = 0
    """Runs of the model at the same time. 0: one per core on a CPU, else 2, so that one batch is
    copied while another computes."""
    decode_workers: int = 0
    """Images decoded at the same time. 0: one per core."""
    calls: Capacity = field(default_factory=lambda: Capacity(512, 256 * 2**20))
    """What all Embed calls together may have in process; past it they are refused. Two calls of
    the largest batch, a few seconds of work on a small machine."""
    streams: Capacity = field(default_factory=lambda: Capacity(1024, 256 * 2**20))
    """What all Ingest streams together may have in process; past it they wait."""
    stream_images: int = 0
    """Images under way in one Ingest stream. 0: 64 on a CPU; 256 elsewhere, where two full batches
    are in the model while others are decoded and stored."""
    store_workers: int = 2
    """Lookups, and writes, under way at the same time (so many of each)."""
    canary_interval_s: float = 30.0
    """How long a right answer of the model vouches for the next."""
    canary_timeout_s: float = 60.0
    """How long an answer may take, behind the batches that are under way; the last one counts
    meanwhile. A batch of eight takes a large ViT on two cores half a minute."""
    give_up_s: float = 300.0
    """After how long of wrong answers, or of one run of a model, the process ends, to be started
    anew: nothing else mends a GPU's context that has failed, or stops a run that hangs."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {
            "max_batch": 0,
            "run_size": 0,
            "inference_workers": 0,
            "decode_workers": 0,
            "stream_images": 0,
            "store_workers": 1,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value < low:
                msg = f"embedder {name}: expected at least {low}, got {value}"
                raise ConfigError(msg, field=name)
        for name in ("calls", "streams"):
            capacity: Capacity = getattr(self, name)
            if capacity.max_items < 1 or capacity.max_bytes < 1:
                msg = f"embedder {name}: expected at least 1 item and 1 byte, got {capacity}"
                raise ConfigError(msg, field=name)
        if not self.canary_interval_s >= 0:
            msg = (
                "embedder canary_interval_s: expected 0 or more seconds, "
                f"got {self.canary_interval_s}"
            )
            raise ConfigError(msg, field="canary_interval_s")
        for name in ("idle_encoder_s", "canary_timeout_s", "give_up_s"):
            seconds = getattr(self, name)
            if not seconds > 0:
                msg = f"embedder {name}: expected more than 0 s, got {seconds}"
                raise ConfigError(msg, field=name)

    def among(self, processes: int) -> EmbedderConfig:
        """These settings for each of so many ``processes``, which share the cores."""
        share = math.ceil(usable_cores() / processes)
        return replace(
            self,
            decode_workers=self.decode_workers or share,
            inference_workers=self.inference_workers or (share if self.runtime.on_cpu else 0),
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
    def decoders(self) -> int:
        """``decode_workers`` with its default worked out."""
        return self.decode_workers or usable_cores()
