"""float16, int8 and mixes of real artefacts."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from onnx import helper, numpy_helper
from onnxruntime.transformers import float16
from PIL import Image
from small_timm import VIT, smaller

from embedder.config import EmbedderConfig
from embedder.encoding.artefact import (
    EncoderArtefact,
    bundled_artefact,
    load_any_artefact,
    load_artefact,
)
from embedder.encoding.encoder import Encoder
from embedder.encoding.manifest import Measured
from embedder.encoding.runtime import RuntimeConfig
from embedder.export import graphs, variants
from embedder.export.gates import open_graph
from embedder.export.graphs import Graph
from embedder.export.measuring import read_sample
from embedder.export.mix import MixRequest, make_mix
from embedder.export.timm import TimmRequest, export_timm
from embedder.export.variants import Thresholds, VariantRequest, make_variant
from shoal.errors import ArtefactError, ExportRefused
from shoal.v1 import embedder_pb2


@pytest.fixture(scope="module")
def half(dino: EncoderArtefact, tmp_path_factory: pytest.TempPathFactory) -> EncoderArtefact:
    """The dino in float16."""
    output = tmp_path_factory.mktemp("variants") / "half"
    return make_variant(VariantRequest(dino.directory, "float16", output))


def test_float16_variant_is_half_as_large_and_near(
    dino: EncoderArtefact, half: EncoderArtefact
) -> None:
    """Half the size, the same vectors to a cosine of 0.999, an encoder of its own."""
    assert half.name == f"{dino.name}-fp16"
    assert half.fingerprint != dino.fingerprint
    assert half.manifest.precision == "float16"
    assert half.image_model.stat().st_size < 0.6 * dino.image_model.stat().st_size
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    before, after = (
        Encoder.open(each.directory, RuntimeConfig()).embed([pixels]) for each in (dino, half)
    )
    assert after.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-3)
    assert (before * after).sum(axis=1).min() >= 0.999
    measured = half.manifest.measured
    assert measured is not None
    assert measured.recall_at_10 is not None
    assert measured.nmi_change is None


def test_float16_is_refused_where_an_activation_is_too_large(
    dino: EncoderArtefact, tmp_path: Path
) -> None:
    """In float32 the numbers come and go; a GPU would make NaN of them, a CPU hides that."""
    model = onnx.load(dino.image_model)
    middle = [node for node in model.graph.node if node.op_type == "MatMul"][4]
    (output,) = middle.output
    middle.output[0] = f"{output}/0"
    at = list(model.graph.node).index(middle) + 1
    for step, factor in enumerate((6e4, 6e4, 1 / 6e4, 1 / 6e4)):
        scale = numpy_helper.from_array(np.array(factor, np.float32), f"factor/{step}")
        model.graph.initializer.append(scale)
        made = output if step == 3 else f"{output}/{step + 1}"
        node = helper.make_node("Mul", [f"{output}/{step}", scale.name], [made])
        model.graph.node.insert(at + step, node)
    large = tmp_path / "large.onnx"
    onnx.save(model, large)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    names = (dino.manifest.input.name, dino.manifest.output.name)
    whole = open_graph(Graph(large, None), names=names)(pixels)
    assert np.isfinite(whole).all()
    source: Any = SimpleNamespace(name="large", manifest=dino.manifest, image_model=large)
    with pytest.raises(ExportRefused, match="large in float16: its activations do not fit"):
        variants._check_activations(source, pixels)
    variants._check_activations(dino, pixels)


def test_int8_variant_of_a_transformer_is_measured(dino: EncoderArtefact, tmp_path: Path) -> None:
    """A quarter of the size; cosine and neighbours are in the artefact, above the thresholds."""
    made = make_variant(VariantRequest(dino.directory, "int8", tmp_path / "int8"))
    assert made.image_model.stat().st_size < 0.4 * dino.image_model.stat().st_size
    measured, least = made.manifest.measured, variants.THRESHOLDS["int8"]
    assert measured is not None
    assert measured.min_cosine >= least.min_cosine
    assert (measured.recall_at_10 or 0) >= least.min_recall
    Encoder.open(made.directory, RuntimeConfig())


PROTOBUF_BYTES = 300_000
"""The most a protobuf holds here: less than the weights of ``large``, more than its graph."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> EncoderArtefact:
    """A model whose weights are more than a protobuf holds, and lie beside the graph."""
    output = tmp_path_factory.mktemp("large") / "vit"
    with pytest.MonkeyPatch.context() as patch, smaller(**VIT):
        patch.setattr(graphs, "_INLINE_BYTES", PROTOBUF_BYTES)
        made = export_timm(TimmRequest("test_vit", output, random_seed=1, image_size=64))
    assert made.manifest.files.image_data is not None
    assert made.image_model.stat().st_size < PROTOBUF_BYTES
    return made


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_variant_of_a_large_model_keeps_its_weights_beside(
    kind: variants.Kind, large: EncoderArtefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 2 GB nothing is put into one protobuf: the weights have a file and a checksum."""
    infer = onnx.shape_inference.infer_shapes

    def limited(model: onnx.ModelProto, *given: Any, **named: Any) -> onnx.ModelProto:
        if model.ByteSize() > PROTOBUF_BYTES:
            msg = "Failed to serialize proto"
            raise EncodeError(msg)
        return infer(model, *given, **named)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", limited)
    monkeypatch.setattr(float16, "infer_shapes", limited)
    made = make_variant(VariantRequest(large.directory, kind, tmp_path / "out"))
    data = made.manifest.files.image_data
    assert data is not None
    assert made.image_model.stat().st_size < PROTOBUF_BYTES
    modes = {(made.directory / name).stat().st_mode for name in (data.path, "image.onnx")}
    assert len(modes) == 1, "whoever reads the graph reads its weights"
    whole = large.manifest.files.image_data
    assert whole is not None
    size = (made.directory / data.path).stat().st_size
    assert size < 0.6 * (large.directory / whole.path).stat().st_size
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    before, after = (
        Encoder.open(each.directory, RuntimeConfig()).embed([pixels]) for each in (large, made)
    )
    assert (before * after).sum(axis=1).min() >= variants.THRESHOLDS[kind].min_cosine
    with (made.directory / data.path).open("r+b") as file:
        file.write(b"other")
    with pytest.raises(ArtefactError, match="sha256 differs from files"):
        load_artefact(made.directory)


def test_variants_name_is_no_longer_than_a_name_may_be() -> None:
    """The default of an encoder whose own name is as long as may be."""
    assert variants._default_name("dino", "int8") == "dino-int8"
    assert variants._default_name("d" * 64, "float16") == "d" * 59 + "-fp16"


def test_variant_below_a_threshold_is_refused_and_not_written(
    dino: EncoderArtefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has all that was measured, and nothing is left behind."""
    bar = Thresholds(min_cosine=0, min_recall=1.1, max_nmi_loss=1)
    monkeypatch.setitem(variants.THRESHOLDS, "float16", bar)
    with pytest.raises(ExportRefused, match=r"lowest cosine .* recall@10"):
        make_variant(VariantRequest(dino.directory, "float16", tmp_path / "half"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("measured", "good"),
    [
        ((0.9, 0.8, None), True),
        ((0.9, 0.8, -0.1), True),
        ((0.89, 1.0, 0.5), False),
        ((math.nan, 1.0, None), False),
        ((1.0, 0.79, None), False),
        ((1.0, 1.0, -0.11), False),
    ],
)
def test_each_threshold_can_refuse(
    measured: tuple[float, float, float | None],
    good: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """A value at its bound passes; one below it, or NaN, does not."""
    cosine, recall, change = measured
    facts = Measured.model_construct(
        images="i", min_cosine=cosine, recall_at_10=recall, nmi_change=change
    )
    bar = Thresholds(min_cosine=0.9, min_recall=0.8, max_nmi_loss=0.1)
    if good:
        variants._check_measured(facts, bar, "x")
        return
    with pytest.raises(ExportRefused, match=r"^x, on i: lowest cosine"):
        variants._check_measured(facts, bar, "x")


def test_variant_is_measured_by_classes_where_there_are_some(
    dino: EncoderArtefact, tmp_path: Path
) -> None:
    """A folder CLASS/NAME gives the change in NMI."""
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("green", (40, 200, 40)), ("blue", (40, 40, 200))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            noise = rng.integers(0, 56, (80, 80, 3)).astype(np.uint8)
            image = Image.fromarray(np.asarray(colour, np.uint8) + noise)
            image.save(tmp_path / "images" / name / f"{number}.png")
    request = VariantRequest(
        dino.directory, "float16", tmp_path / "half", images=tmp_path / "images"
    )
    measured = make_variant(request).manifest.measured
    assert measured is not None
    assert measured.nmi_change is not None
    assert abs(measured.nmi_change) <= 0.2


def test_int8_of_the_bundled_encoder_is_refused(tmp_path: Path) -> None:
    """EfficientNet-Lite0 loses too much in int8 (cosines down to 0.7), and the gate says so."""
    images = tmp_path / "images"
    images.mkdir()
    for number, data in enumerate(read_sample(None, most=1000).images[60:80]):
        (images / f"{number}.jpg").write_bytes(data)
    request = VariantRequest(bundled_artefact(), "int8", tmp_path / "int8", images=images)
    with pytest.raises(ExportRefused, match="efficientnet-lite0 in int8"):
        make_variant(request)


def test_variant_of_a_variant_is_refused(half: EncoderArtefact, tmp_path: Path) -> None:
    """Errors would add up unseen: only the float32 artefact is varied."""
    with pytest.raises(ExportRefused, match="expected the float32 artefact"):
        make_variant(VariantRequest(half.directory, "int8", tmp_path / "again"))


def test_variant_keeps_the_text_tower(clip: EncoderArtefact, tmp_path: Path) -> None:
    """A varied CLIP still embeds texts, with the same vectors."""
    half = make_variant(VariantRequest(clip.directory, "float16", tmp_path / "half"))
    whole, varied = (
        Encoder.open(each.directory, RuntimeConfig()).embed_texts(["a dog", "two cats"])
        for each in (clip, half)
    )
    np.testing.assert_allclose(whole, varied, atol=1e-6)


def test_mix_of_clip_and_dino(clip: EncoderArtefact, dino: EncoderArtefact, tmp_path: Path) -> None:
    """SCP-MIX: the parts' unit vectors side by side; it loads, and its self-test passes."""
    made = make_mix(MixRequest((clip.directory, dino.directory), tmp_path / "mix", "both"))
    assert (made.name, made.dim) == ("both", clip.dim + dino.dim)
    assert load_any_artefact(tmp_path / "mix").fingerprint == made.fingerprint
    encoder = Encoder.open(tmp_path / "mix", RuntimeConfig())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    parts = [Encoder.open(each.directory, RuntimeConfig()).embed([pixels]) for each in (clip, dino)]
    np.testing.assert_allclose(
        encoder.embed([pixels, pixels]), np.concatenate(parts, axis=1) / np.sqrt(2), atol=1e-6
    )


def test_mix_needs_two_parts_of_different_names(
    clip: EncoderArtefact, dino: EncoderArtefact, tmp_path: Path
) -> None:
    """One part, two of one name, and a mix as a part are refused; so is a variant of a mix."""
    for parts in ((clip.directory,), (clip.directory, clip.directory)):
        with pytest.raises(ExportRefused, match="two or more artefacts of different names"):
            make_mix(MixRequest(parts, tmp_path / "x"))
    mix = make_mix(MixRequest((clip.directory, dino.directory), tmp_path / "mix"))
    told = rf"mix is a mix, and a mix cannot be %s: .*mix/{clip.name}, .*mix/{dino.name}$"
    with pytest.raises(ExportRefused, match=told % "mixed again; name its parts instead"):
        make_mix(MixRequest((mix.directory, dino.directory), tmp_path / "x"))
    with pytest.raises(ExportRefused, match=told % "varied; vary its parts, and mix the variants"):
        make_variant(VariantRequest(mix.directory, "float16", tmp_path / "x"))
    with pytest.raises(ArtefactError, match="expected an encoder with one image tower, got a mix"):
        load_artefact(mix.directory)


def test_name_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    """A name that an encoder cannot have is told before a directory that is not there."""
    gone, out = tmp_path / "gone", tmp_path / "x"
    told = r"name: expected 1 to 64 of a-z.*, got 'My Dino'"
    with pytest.raises(ExportRefused, match=told):
        make_variant(VariantRequest(gone, "int8", out, name="My Dino"))
    with pytest.raises(ExportRefused, match=told):
        make_mix(MixRequest((gone, gone), out, "My Dino"))


def test_texts_are_embedded_over_grpc(clip: EncoderArtefact, serve: Any) -> None:
    """EmbedText answers each text with its vector, in order, a bad one with its own error."""

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, encoders=(bundled_artefact(), clip.directory))
        async with serve(config) as served:
            texts = ["a dog", "", "two cats", "x" * 10_001]
            answer = await served.stub.EmbedText(embedder_pb2.EmbedTextRequest(texts=texts))
            assert answer.encoder == clip.name
            kinds = [result.WhichOneof("outcome") for result in answer.results]
            assert kinds == ["vector", "error", "vector", "error"]
            assert {r.error.reason for r in answer.results[1::2]} == {"INVALID_ARGUMENT"}
            truth = Encoder.open(clip.directory, RuntimeConfig()).embed_texts(texts[::2])
            for result, wanted in zip(answer.results[::2], truth, strict=True):
                got = np.frombuffer(result.vector.values, "<f4")
                np.testing.assert_allclose(got, wanted, atol=1e-5)
                assert result.vector.fingerprint == clip.fingerprint
            info = await served.stub.GetInfo(embedder_pb2.GetInfoRequest())
            assert [e.has_text for e in info.encoders] == [False, True]

    asyncio.run(scenario())
