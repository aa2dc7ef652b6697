"""The embedder's Prometheus metrics, all of them; defined once, at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import Counter, Gauge, Histogram

IMAGES = Counter(
    "shoal_embedder_images_total",
    "Images answered, by call and by what became of them (a status or an error's reason).",
    ["rpc", "outcome"],
)
TEXTS = Counter(
    "shoal_embedder_texts_total",
    'Texts answered, by what became of them ("embedded" or an error\'s reason).',
    ["outcome"],
)
REFUSED = Counter(
    "shoal_embedder_calls_refused_total",
    "Embed and EmbedText calls refused because too much was in process.",
)
BATCH = Histogram(
    "shoal_embedder_batch_items",
    "Items of one batch, by stage.",
    ["stage"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
WAITING = Gauge(
    "shoal_embedder_queue_items",
    "Items waiting for a worker when the last batch was taken, by stage.",
    ["stage"],
)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
QUEUE_SECONDS = Histogram(
    "shoal_embedder_queue_seconds",
    "How long an item waited until a worker took it, by stage.",
    ["stage"],
    buckets=(*_SECONDS, 10, 30, 60),
)
DECODE_SECONDS = Histogram(
    "shoal_embedder_decode_seconds", "Decoding and resizing one image.", buckets=_SECONDS
)
INFERENCE_SECONDS = Histogram(
    "shoal_embedder_inference_seconds", "One run of the model.", buckets=_SECONDS
)
READ_SECONDS = Histogram(
    "shoal_embedder_read_seconds",
    "Reading one image from the place that its sender named.",
    buckets=(*_SECONDS, 10, 30),
)
LOADED = Gauge(
    "shoal_embedder_encoder_loaded",
    "1 while the encoder is open, by the execution provider in use.",
    ["encoder", "provider"],
)


def queue(stage: str) -> Callable[[Sequence[float], int], None]:
    """A watch for the batcher of ``stage`` (``embedder.flow.batching.Watch``).

    It counts the items of each batch, the items that wait on, and how long each item waited.
    """

    def taken(waited_s: Sequence[float], left: int) -> None:
        BATCH.labels(stage).observe(len(waited_s))
        WAITING.labels(stage).set(left)
        seconds = QUEUE_SECONDS.labels(stage)
        for waited in waited_s:
            seconds.observe(waited)

    return taken
