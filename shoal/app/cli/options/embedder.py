"""Options of the commands that run an embedder: ``up`` and ``serve embedder``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.app.cli.options.target import Decorator, decorate, option

if TYPE_CHECKING:
    from embedder.config import EmbedderConfig

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino", "coreml", "directml")
"""Those of ``embedder.encoding.runtime``, repeated: --help must not import it. A test compares."""

_OPTIONS: tuple[Decorator, ...] = (
    option(
        "--encoder",
        "encoders",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="DIR",
        help="Encoder artefact; repeatable, the first is the default, the others are loaded when "
        "asked for. Default: the one that ships with Shoal.",
    ),
    option(
        "--provider",
        type=click.Choice(PROVIDERS),
        default="cpu",
        help="What runs the models. There is no falling back from it to another.",
    ),
    option("--device", type=click.IntRange(min=0), default=0, metavar="N", help="Which GPU."),
    option(
        "--require-gpu/--no-require-gpu",
        default=False,
        help="Refuse to start with --provider cpu; the GPU image sets it.",
    ),
    option(
        "--max-batch",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Most images that a worker takes at once. 0: 8 on a CPU, else 64.",
    ),
    option(
        "--run-size",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Most images of one run of a model. 0: on a CPU what is measured to be fastest at "
        "the start, which takes a second or so; else all that a worker took.",
    ),
    option(
        "--inference-workers",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Runs of a model at the same time. 0: one per core on a CPU, else 2.",
    ),
    option(
        "--threads",
        type=click.IntRange(min=0),
        default=1,
        metavar="N",
        help="Threads of one run on a CPU, 0 for one per core. 1 and a run per core is never "
        "slower where there are callers enough.",
    ),
    option(
        "--decode-workers",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Images decoded at the same time where a GPU runs the model. 0: one per core.",
    ),
    option(
        "--max-image-bytes",
        type=click.IntRange(min=1),
        default=20 * 2**20,
        metavar="N",
        help="Largest encoded image.",
    ),
    option(
        "--max-image-pixels",
        type=click.IntRange(min=1),
        default=50_000_000,
        metavar="N",
        help="Largest image in pixels, by its header; at most 89,478,485.",
    ),
    option(
        "--max-call-images",
        type=click.IntRange(min=1),
        default=512,
        metavar="N",
        help="Images that all Embed calls together may have in process; more are refused.",
    ),
    option(
        "--max-call-mib",
        type=click.IntRange(min=1),
        default=256,
        metavar="MIB",
        help="MiB of encoded images that they may have in process.",
    ),
    option(
        "--stream-images",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Images that one Ingest stream may have in process; more wait. 0: 64 on a CPU, else "
        "256.",
    ),
    option(
        "--max-stream-images",
        type=click.IntRange(min=1),
        default=1024,
        metavar="N",
        help="Images that all Ingest streams together may have in process; more wait.",
    ),
    option(
        "--max-stream-mib",
        type=click.IntRange(min=1),
        default=256,
        metavar="MIB",
        help="MiB of encoded images that they may have in process.",
    ),
    option(
        "--engine-cache",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Where TensorRT keeps the engines that it builds, which takes it minutes.",
    ),
    option(
        "--idle-encoder",
        "idle_encoder_s",
        type=click.FloatRange(min=0, min_open=True),
        default=600.0,
        metavar="SECONDS",
        help="Unload an encoder, but the default one, that nobody has used for so long.",
    ),
    option(
        "--give-up",
        "give_up_s",
        type=click.FloatRange(min=0, min_open=True),
        default=300.0,
        metavar="SECONDS",
        help="End the process, to be started anew, once a model has failed its self-test, or taken "
        "for one run, so long. inf: never.",
    ),
    option(
        "--allow-files",
        "roots",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="DIR",
        help="Let callers name files under DIR as file:// URIs; repeatable. Default: none.",
    ),
    option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="HOST[:PORT]",
        help="Let callers name images on HOST as https:// URLs; repeatable; *.HOST for its "
        "subdomains. Default: none.",
    ),
    option(
        "--allow-objects",
        "prefixes",
        multiple=True,
        metavar="URI",
        help="Let callers name objects whose URI begins so (s3://bucket/photos); repeatable; needs "
        "shoal[objects]. Default: none.",
    ),
    option(
        "--allow-http",
        is_flag=True,
        help="Ask the allowed hosts by http:// too.",
    ),
    option(
        "--allow-private-hosts",
        "allow_private",
        is_flag=True,
        help="Ask the allowed hosts even where their addresses are not public.",
    ),
    option(
        "--read-timeout",
        "read_timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        metavar="SECONDS",
        help="Longest time to read one image from where a caller says that it is, without waits "
        "for memory.",
    ),
)


def embedder_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of an embedder; it gets an EmbedderConfig as ``embedder``."""

    @functools.wraps(function)
    def command(
        *,
        encoders: tuple[Path, ...],
        provider: str,
        device: int,
        require_gpu: bool,
        max_batch: int,
        run_size: int,
        inference_workers: int,
        threads: int,
        decode_workers: int,
        max_image_bytes: int,
        max_image_pixels: int,
        max_call_images: int,
        max_call_mib: int,
        stream_images: int,
        max_stream_images: int,
        max_stream_mib: int,
        engine_cache: Path | None,
        idle_encoder_s: float,
        give_up_s: float,
        roots: tuple[Path, ...],
        hosts: tuple[str, ...],
        prefixes: tuple[str, ...],
        allow_http: bool,
        allow_private: bool,
        read_timeout_s: float,
        **options: Any,
    ) -> Any:
        from embedder.config import EmbedderConfig
        from embedder.encoding.config import RuntimeConfig
        from embedder.flow.admission import Capacity
        from embedder.images.limits import ImageLimits
        from embedder.locations.config import LocationsConfig

        runtime = RuntimeConfig(
            provider=provider,
            threads=threads,
            device=device,
            require_gpu=require_gpu,
            engine_cache=engine_cache,
        )
        embedder: EmbedderConfig = EmbedderConfig(
            encoders=encoders,
            runtime=runtime,
            max_batch=max_batch,
            run_size=run_size,
            inference_workers=inference_workers,
            decode_workers=decode_workers,
            limits=ImageLimits(max_image_bytes, max_image_pixels),
            calls=Capacity(max_call_images, max_call_mib * 2**20),
            streams=Capacity(max_stream_images, max_stream_mib * 2**20),
            stream_images=stream_images,
            idle_encoder_s=idle_encoder_s,
            give_up_s=give_up_s,
            locations=LocationsConfig(
                roots=roots,
                hosts=hosts,
                prefixes=prefixes,
                allow_http=allow_http,
                allow_private=allow_private,
                timeout_s=read_timeout_s,
            ),
        )
        return function(**options, embedder=embedder)

    return decorate(command, _OPTIONS)
