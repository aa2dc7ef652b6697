"""``shoal model``: encoders: those of a server, and artefacts made, mixed, checked and shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from embedder.encoding.config import RuntimeConfig
from shoal.app.cli.command import Command, Group
from shoal.app.cli.options.derive import configured
from shoal.app.cli.options.option import Decorator, decorate, json_option, option
from shoal.app.cli.options.target import Target, target_options
from shoal.app.cli.printing.output import print_json, print_table, say, short_time, talk
from shoal.app.cli.train import DEFAULT_HEADS
from shoal.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from clusterer.heads.store import HeadManifest
    from embedder.encoding.artefact import Artefact, EncoderArtefact

FINGERPRINT_CHARS = 12


@click.group(cls=Group)
def model() -> None:
    """Encoders: list a server's; export, vary, mix, verify and show artefacts.

    Example:
      shoal model list
      shoal model export open_clip ViT-B-32-quickgelu --pretrained openai --output clip
    """


@model.command("list")
@option(
    "--heads",
    is_flag=False,
    flag_value="",
    metavar="[DIR|URL]",
    help="List the trained cluster heads there instead, newest first. Alone: where the "
    f"environment says, or {DEFAULT_HEADS}.",
)
@json_option
@target_options
@click.pass_context
def list_models(
    context: click.Context, *, heads: str | None, as_json: bool, target: Target
) -> None:
    """List a server's encoders, the default one first; or trained heads.

    Example:
      shoal model list --json
      shoal model list --heads s3://bucket/heads
    """
    # The environment says where heads are, also for other commands; not that they are to be listed.
    if context.get_parameter_source("heads") is ParameterSource.COMMANDLINE:
        (asked,) = (each for each in context.command.params if each.name == "heads")
        _list_heads(heads or asked.resolve_envvar_value(context) or DEFAULT_HEADS, as_json=as_json)
        return
    with target.connect() as client:
        info = client.info()
    if as_json:
        print_json(info)
        return
    print_table(
        ("encoder", "dim", "fingerprint", "provider", "loaded", "text", "licence", "source"),
        [
            (
                each.name,
                str(each.dim),
                each.fingerprint[:FINGERPRINT_CHARS],
                each.provider,
                "yes" if each.loaded else "no",
                "yes" if each.has_text else "no",
                each.license,
                each.source,
            )
            for each in info.encoders
        ],
    )


def _artefact_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))(function)


def _list_heads(place: str, *, as_json: bool) -> None:
    """Prints the heads that are whole; damaged ones are an error at the end."""
    from clusterer.heads.store import HeadStore

    found, damaged = HeadStore(place).survey()
    if as_json:
        print_json([{"id": each.id, **each.model_dump(exclude={"curves"})} for each in found])
    else:
        _print_heads(found)
    if damaged:
        raise ArtefactError("\n".join(map(str, damaged.values())))


def _print_heads(heads: Sequence[HeadManifest]) -> None:
    print_table(
        ("head", "clusters", "objective", "pairs", "vector", "agreement", "made"),
        [
            (
                each.id,
                str(each.clusters),
                each.objective,
                each.pairs,
                each.vector.name,
                f"{each.metrics.get('agreement', float('nan')):.4f}",
                short_time(datetime.fromtimestamp(each.created_at, UTC)),
            )
            for each in heads
        ],
    )


@model.command(cls=Command)
@_artefact_argument
@json_option
def show(*, directory: Path, as_json: bool) -> None:
    """Show what an artefact says of itself, having checked its files.

    Example:
      shoal model show clip
    """
    from embedder.encoding.artefact import load_any_artefact

    _describe(load_any_artefact(directory), as_json=as_json)


@model.command(cls=Command)
@_artefact_argument
@configured(RuntimeConfig, as_="runtime", only=("provider", "device"))
def verify(*, directory: Path, runtime: RuntimeConfig) -> None:
    """Check an artefact's files, load it, and compare it with its reference vectors.

    Exit status 1, and one line, if it is damaged or gives other vectors here.

    Example:
      shoal model verify clip --provider cuda
    """
    from embedder.encoding.encoder import Encoder

    encoder = Encoder.open(directory, runtime)
    say(
        f"{encoder.name} ({encoder.fingerprint[:FINGERPRINT_CHARS]}): sound, gives its reference "
        f"vectors on {encoder.provider}"
    )


@model.group(cls=Group)
def export() -> None:
    """Make an artefact of a published model or of local weights. Needs the extra [export].

    Example:
      shoal model export timm vit_small_patch16_224.dino --output dino
    """


_OUTPUT: tuple[Decorator, ...] = (
    option(
        "--output",
        type=click.Path(path_type=Path),
        metavar="DIR",
        required=True,
        help="The directory to write; it must not exist.",
    ),
    option("--name", default="", help="The encoder's name. Default: made of the model's."),
    json_option,
)
_WEIGHTS: tuple[Decorator, ...] = (
    option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Local weights: safetensors, or a pickle that holds tensors only.",
    ),
    option(
        "--random-seed",
        type=click.IntRange(min=0),
        metavar="N",
        help="Random weights instead, to try and to measure with.",
    ),
    option(
        "--licence",
        "license",
        default="unknown",
        help="The license of the weights (SPDX); recorded, shown.",
    ),
    option(
        "--matte",
        default="#ffffff",
        metavar="#RRGGBB",
        help="The colour behind transparent pixels; empty: alpha is dropped.",
    ),
)


def _writing(*decorators: Decorator) -> Decorator:
    return lambda function: decorate(function, (*decorators, *_OUTPUT))


@export.command("open_clip", cls=Command)
@click.argument("architecture", metavar="MODEL")
@option("--pretrained", metavar="TAG", help="open_clip's tag of the weights.")
@option("--no-text", is_flag=True, help="Leave the text tower out.")
@_writing(*_WEIGHTS)
def export_open_clip(*, architecture: str, as_json: bool, **options: Any) -> None:
    """Export an open_clip model with its text tower and tokenizer.

    MODEL is open_clip's name, with -quickgelu where the weights want that. The export is
    compared with PyTorch and with open_clip's own preprocessing, and refused if it differs.

    Example:
      shoal model export open_clip ViT-B-32-quickgelu --pretrained openai --output clip
    """
    with _extra():
        from embedder.export.open_clip import OpenClipRequest
        from embedder.export.open_clip import export_open_clip as make

        made = make(OpenClipRequest(architecture, **options))
    _describe(made, as_json=as_json)


@export.command("timm", cls=Command)
@click.argument("architecture", metavar="MODEL")
@option("--pretrained", is_flag=True, help="Take timm's own weights.")
@option(
    "--image-size",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Side of the input, pixels. 0: the model's own.",
)
@_writing(*_WEIGHTS)
def export_timm(*, architecture: str, as_json: bool, **options: Any) -> None:
    """Export a timm model: DINO, DINOv2, ResNet, EfficientNet and the rest.

    With --checkpoint, local weights of it: SimCLR, BYOL and MoCo backbones are found behind the
    usual prefixes, and heads are left out.

    Example:
      shoal model export timm resnet50 --checkpoint byol.pth --output byol
    """
    with _extra():
        from embedder.export.timm import TimmRequest
        from embedder.export.timm import export_timm as make

        made = make(TimmRequest(architecture, **options))
    _describe(made, as_json=as_json)


@model.command(cls=Command)
@_artefact_argument
@click.argument("kind", type=click.Choice(["float16", "int8"]))
@option(
    "--images",
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="Folder or tar of CLASS/NAME images to measure on. Default: crops of two photographs.",
)
@_writing()
def variant(*, directory: Path, kind: Any, as_json: bool, **options: Any) -> None:
    """Make a float16 or int8 variant of an artefact, measured against it.

    Its vectors are others, so it is an encoder of its own. It is refused if its lowest cosine,
    its ten nearest or its clusters are too far from those of the float32 artefact.

    Example:
      shoal model variant clip float16 --output clip-fp16 --images photos.tar
    """
    with _extra():
        from embedder.export.variants import VariantRequest, make_variant

        made = make_variant(VariantRequest(directory, kind, **options))
    _describe(made, as_json=as_json)


@model.command(cls=Command)
@click.argument("parts", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@_writing()
def mix(*, parts: tuple[Path, ...], output: Path, name: str, as_json: bool) -> None:
    """Mix artefacts: the vector is the concatenation of theirs, from one decode.

    Example:
      shoal model mix clip dino --output clip-dino
    """
    from embedder.export.mix import MixRequest, make_mix

    _describe(make_mix(MixRequest(parts, output, name)), as_json=as_json)


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Says what to install where the packages of exporting are missing."""
    try:
        yield
    except ImportError as exc:
        msg = f"{exc.name} is not installed: exporting needs pip install 'shoal[export]'"
        raise ConfigError(msg, package=str(exc.name)) from exc


def _describe(artefact: Artefact, *, as_json: bool) -> None:
    """What an artefact says of itself, on stdout."""
    facts: dict[str, object] = {
        "name": artefact.name,
        "directory": str(artefact.directory),
        "dim": artefact.dim,
        "fingerprint": artefact.fingerprint,
        "source": artefact.source,
        "licence": artefact.license,
    }
    if len(artefact.parts) > 1:
        facts["parts"] = [part.name for part in artefact.parts]
    else:
        facts |= _details(artefact.parts[0])
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        say(f"{name:<12} {', '.join(value) if isinstance(value, list) else value}")
    talk(f"shoal: use it with shoal up --encoder {artefact.directory}")


def _details(artefact: EncoderArtefact) -> dict[str, object]:
    manifest = artefact.manifest
    resize, measured = manifest.preprocessing.resize, manifest.measured
    facts: dict[str, object] = {
        "precision": manifest.precision,
        "input": f"{manifest.input.height}x{manifest.input.width}, {resize.mode} {resize.size}, "
        f"{resize.interpolation}",
        "matte": manifest.preprocessing.matte or "none: alpha is dropped",
        "text": "no" if manifest.text is None else f"yes, {manifest.text.context_length} tokens",
    }
    if measured is not None:
        found = measured.model_dump(exclude_none=True)
        images = found.pop("images")
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        facts["measured"] = f"{shown} on {images}"
    return facts
