"""Makes float16 and int8 variants of an artefact: smaller, and faster on some hardware.

A variant gives other vectors, so it is an encoder of its own, with a name and a fingerprint. It is
measured, and written only if it is close enough to its float32 artefact (``THRESHOLDS``).

float16 (onnxruntime.transformers) is for GPUs: the image tower's weights and arithmetic are
float16, its input and output stay as they are. Whether the activations fit is checked with a
float32 graph that rounds them (``halves``). int8 (onnxruntime.quantization): a tower of matrix
products gets int8 weights, and its activations are scaled at each run; a convolutional tower needs
fixed scales, which are calibrated on the sample. The text tower stays in float32.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)

from embedder.encoding.artefact import EncoderArtefact, load_artefact
from embedder.encoding.manifest import Measured
from embedder.export import artefacts, halves
from embedder.export.gates import open_graph
from embedder.export.graphs import Graph
from embedder.export.measuring import Sample, clusters_kept, neighbours_kept, read_sample
from embedder.images.limits import ImageLimits
from embedder.images.preprocess import UInt8, decode
from shoal.errors import ExportRefused, ShoalError

Kind = Literal["float16", "int8"]
SUFFIX: Final = {"float16": "fp16", "int8": "int8"}
"""The end of a variant's default name."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The bounds that a variant must keep.

    Attributes:
        min_cosine: The lowest cosine of an image's vector with its float32 vector.
        min_recall: The lowest share of an image's ten nearest that stay the same, over all images.
        max_nmi_loss: The largest loss of k-means' mutual information with the classes; two runs of
            k-means on the same vectors differ by that much.
    """

    min_cosine: float
    min_recall: float
    max_nmi_loss: float


THRESHOLDS: Final[dict[Kind, Thresholds]] = {
    "float16": Thresholds(min_cosine=0.999, min_recall=0.97, max_nmi_loss=0.01),
    "int8": Thresholds(min_cosine=0.95, min_recall=0.85, max_nmi_loss=0.02),
}
CALIBRATION: Final = 64
"""About this many images calibrate int8 and try float16's activations."""
MOST: Final = 1000
"""The most images to measure on."""


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """Which artefact to vary, how, and the directory to write.

    ``images``: a folder or a tar (``CLASS/NAME``) to measure on. By default crops of photographs,
    which show cosines and neighbours but have no classes.
    """

    artefact: Path
    kind: Kind
    output: Path
    images: Path | None = None
    name: str = ""


def make_variant(request: VariantRequest) -> EncoderArtefact:
    """Writes the variant that ``request`` describes.

    Raises:
        ArtefactError: the artefact is damaged.
        ExportRefused: the variant is below a threshold; the artefact is a variant itself or a mix;
            ``output`` exists; or an encoder cannot have the name.
    """
    artefacts.check_request(request.output, name=request.name)
    mixes = "a mix cannot be varied; vary its parts, and mix the variants"
    source = artefacts.read_encoder(request.artefact, mixes=mixes)
    manifest = source.manifest
    if manifest.precision != "float32":
        msg = f"{source.name} is in {manifest.precision}: expected the float32 artefact"
        raise ExportRefused(msg)
    sample = read_sample(request.images, most=MOST)
    pixels, classes = _pixels(source, sample)
    with artefacts.new_directory(request.output) as directory:
        file = directory / "image.onnx"
        some = pixels[:: max(1, len(pixels) // CALIBRATION)]  # of all classes
        graph = _convert(source, request.kind, file, some)
        measured = _measure(source, graph, pixels, classes, sample.name)
        _check_measured(measured, THRESHOLDS[request.kind], f"{source.name} in {request.kind}")
        if request.kind == "float16":
            _check_activations(source, some)
        embed = open_graph(graph, names=(manifest.input.name, manifest.output.name))
        files = {"image": file.name}
        if graph.data is not None:
            files["image_data"] = graph.data.name
        for field in ("text", "text_data", "tokenizer"):
            entry = manifest.files.entries().get(field)
            if entry is not None:
                shutil.copy2(source.directory / entry.path, directory / entry.path)
                files[field] = entry.path
        draft = artefacts.Draft(
            label=artefacts.Label(
                name=request.name or _default_name(source.name, request.kind),
                description=f"{manifest.description} In {request.kind}.",
                license=manifest.license,
                source=manifest.source,
            ),
            dim=source.dim,
            preprocessing=manifest.preprocessing,
            input=manifest.input.name,
            output=manifest.output.name,
            files=files,
            # The self-test expects the variant's own vectors: how close they are to float32's was
            # measured on the sample.
            reference=embed,
            measured=measured,
            text=manifest.text,
            precision=request.kind,
        )
        artefacts.write_manifest(directory, draft)
    return load_artefact(request.output)


def _pixels(source: EncoderArtefact, sample: Sample) -> tuple[UInt8, list[str] | None]:
    """The pixels (N, H, W, 3) of the sample's images that decode, and their classes."""
    pixels, kept = list[UInt8](), list[int]()
    for at, data in enumerate(sample.images):
        try:
            pixels.append(decode(data, limits=ImageLimits(), spec=source.manifest.preprocessing))
        except ShoalError:
            continue
        kept.append(at)
    if len(pixels) < 2:  # noqa: PLR2004 - neighbours need two
        raise ExportRefused(f"{sample.name}: expected images, and none decodes")
    classes = None if sample.classes is None else [sample.classes[at] for at in kept]
    return np.stack(pixels), classes


def _default_name(source: str, kind: Kind) -> str:
    """The variant's name if the request gives none; 64 characters at most."""
    return f"{source[: 63 - len(SUFFIX[kind])]}-{SUFFIX[kind]}"


def _convert(source: EncoderArtefact, kind: Kind, file: Path, calibration: UInt8) -> Graph:
    """Writes the variant of the image tower, with its weights beside it if the source's are."""
    outside = source.manifest.files.image_data is not None
    if kind == "float16":
        halves.halve(source.image_model, file, outside=outside)
    else:
        _quantise(source, file, calibration, outside=outside)
    data = file.with_name(file.name + ".data")
    if not data.exists():
        return Graph(file, None)
    data.chmod(file.stat().st_mode & 0o777)  # onnx lets only its owner read it
    return Graph(file, data)


def _quantise(source: EncoderArtefact, file: Path, calibration: UInt8, *, outside: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(
            source.image_model,
            prepared,
            skip_symbolic_shape=True,
            save_as_external_data=outside,
            all_tensors_to_one_file=True,
        )
        nodes = onnx.load(prepared, load_external_data=False).graph.node
        operators = [node.op_type for node in nodes]
        if operators.count("Conv") > operators.count("MatMul") + operators.count("Gemm"):
            quantize_static(
                prepared,
                file,
                _CalibrationReader(source.manifest.input.name, calibration),
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                use_external_data_format=outside,
            )
        else:
            quantize_dynamic(
                prepared,
                file,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=outside,
            )


class _CalibrationReader(CalibrationDataReader):  # type: ignore[misc] # untyped
    """Gives ONNX Runtime's calibration one image after the other."""

    def __init__(self, name: str, pixels: UInt8) -> None:
        self._feeds: Iterator[dict[str, npt.NDArray[Any]]] = iter(
            [{name: each[None]} for each in pixels]
        )

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._feeds, None)


def _measure(
    source: EncoderArtefact, graph: Graph, pixels: UInt8, classes: list[str] | None, images: str
) -> Measured:
    names = (source.manifest.input.name, source.manifest.output.name)
    whole = Graph(source.image_model, None)
    before, after = (_embed_all(each, names, pixels) for each in (whole, graph))
    return Measured(
        images=images,
        min_cosine=float((before * after).sum(axis=1).min()),
        recall_at_10=neighbours_kept(before, after),
        nmi_change=None
        if classes is None
        else clusters_kept(after, classes) - clusters_kept(before, classes),
    )


def _check_activations(source: EncoderArtefact, pixels: UInt8) -> None:
    """Raises ExportRefused if rounding every activation to float16 changes vectors too much."""
    names = (source.manifest.input.name, source.manifest.output.name)
    outside = source.manifest.files.image_data is not None
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rounded.onnx"
        after = _embed_all(halves.rounded(source.image_model, file, outside=outside), names, pixels)
    before = _embed_all(Graph(source.image_model, None), names, pixels)
    least, lowest = THRESHOLDS["float16"].min_cosine, float((before * after).sum(axis=1).min())
    if not lowest >= least:  # NaN if an activation was too large
        msg = (
            f"{source.name} in float16: its activations do not fit: lowest cosine {lowest:.4f} (at "
            f"least {least}) when each is rounded to float16, which holds up to 65,504"
        )
        raise ExportRefused(msg)


def _embed_all(graph: Graph, names: tuple[str, str], pixels: UInt8) -> npt.NDArray[np.float32]:
    """The vectors (N, D) of ``pixels``, 16 images at a time."""
    embed = open_graph(graph, names=names)
    return np.concatenate([embed(pixels[at : at + 16]) for at in range(0, len(pixels), 16)])


def _check_measured(measured: Measured, least: Thresholds, name: str) -> None:
    """Raises ExportRefused, with everything that was measured, if a threshold is not met."""
    recall, change = measured.recall_at_10, measured.nmi_change
    good = (
        measured.min_cosine >= least.min_cosine
        and recall is not None
        and recall >= least.min_recall
        and (change is None or change >= -least.max_nmi_loss)
    )
    if not good:
        nmi = (
            "" if change is None else f", NMI change {change:+.4f} (at least -{least.max_nmi_loss})"
        )
        msg = (
            f"{name}, on {measured.images}: lowest cosine {measured.min_cosine:.4f} (at least "
            f"{least.min_cosine}), recall@10 {recall:.4f} (at least {least.min_recall}){nmi}"
        )
        raise ExportRefused(msg)
