"""The encoder artefact: what is refused, and what a good one reproduces."""

from __future__ import annotations

import base64
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from embedder.encoding.artefact import (
    EncoderArtefact,
    bundled_artefact,
    check_self_test,
    load_artefact,
    pattern_image,
    self_test_images,
)
from shoal.errors import ArtefactError, SelfTestFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def artefact() -> EncoderArtefact:
    return load_artefact(bundled_artefact())


@pytest.fixture(scope="module")
def embed(artefact: EncoderArtefact) -> Callable[[UInt8], Float32]:
    session = onnxruntime.InferenceSession(artefact.image_model, providers=["CPUExecutionProvider"])
    names = artefact.manifest.output.name, artefact.manifest.input.name

    def run(pixels: UInt8) -> Float32:
        return np.asarray(session.run([names[0]], {names[1]: pixels})[0])

    return run


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(bundled_artefact(), tmp_path / "encoder")


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "encoder.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_bundled_artefact_reproduces_the_reference(
    artefact: EncoderArtefact, embed: Callable[[UInt8], Float32]
) -> None:
    """The bundled graph gives the vectors that PyTorch gave."""
    check_self_test(artefact, embed)
    assert artefact.dim == 1280


def test_bundled_artefact_is_small() -> None:
    """The bundled artefact ships in the package, so it stays under 14 MB."""
    assert sum(path.stat().st_size for path in bundled_artefact().iterdir()) < 14_000_000


def test_graph_matches_the_manifest(artefact: EncoderArtefact) -> None:
    """Names, types and shapes in the graph are those of ``encoder.json``."""
    session = onnxruntime.InferenceSession(artefact.image_model, providers=["CPUExecutionProvider"])
    (pixels,), (embedding,) = session.get_inputs(), session.get_outputs()
    spec = artefact.manifest.input
    assert (pixels.name, pixels.type) == (spec.name, "tensor(uint8)")
    assert pixels.shape == ["N", spec.height, spec.width, 3]
    assert (embedding.name, embedding.type) == (artefact.manifest.output.name, "tensor(float)")
    assert embedding.shape == ["N", artefact.dim]


def test_batch_equals_singles(embed: Callable[[UInt8], Float32]) -> None:
    """A vector does not depend on what else was in its batch."""
    random = np.random.default_rng(7)
    batch = random.integers(0, 256, size=(7, 224, 224, 3), dtype=np.uint8)
    together = embed(batch)
    alone = np.concatenate([embed(batch[i : i + 1]) for i in range(len(batch))])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_unknown_bundled_name() -> None:
    """An unknown name is refused with the list of known ones, and cannot be a path."""
    with pytest.raises(ArtefactError, match=r"\['efficientnet-lite0'\].*'\.\./encoders"):
        bundled_artefact("../encoders/efficientnet-lite0")


def test_missing_directory(tmp_path: Path) -> None:
    """A directory without a manifest is refused by the manifest's path."""
    with pytest.raises(ArtefactError, match=r"encoder\.json: expected a readable file"):
        load_artefact(tmp_path)


def test_missing_weights(copy: Path) -> None:
    """A weight file that is not there is named."""
    (copy / "image.onnx").unlink()
    with pytest.raises(ArtefactError, match=r"image\.onnx: expected a readable file"):
        load_artefact(copy)


def test_changed_weights(copy: Path) -> None:
    """One flipped bit in the weights is noticed, and the field that told is named."""
    weights = bytearray((copy / "image.onnx").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "image.onnx").write_bytes(weights)
    with pytest.raises(ArtefactError, match=r"image\.onnx: sha256 differs") as caught:
        load_artefact(copy)
    assert caught.value.metadata["field"] == "files.image.sha256"


def test_wrong_fingerprint(copy: Path) -> None:
    """A fingerprint that does not follow from the contents is refused."""
    edit(copy, lambda document: document.update(fingerprint="0" * 64))
    with pytest.raises(ArtefactError, match="field fingerprint does not match") as caught:
        load_artefact(copy)
    assert caught.value.metadata["field"] == "fingerprint"


def test_changed_preprocessing_changes_the_fingerprint(copy: Path) -> None:
    """Preprocessing decides the vectors, so it cannot change under the same fingerprint."""
    edit(copy, lambda document: document["preprocessing"]["resize"].update(size=240))
    with pytest.raises(ArtefactError, match="field fingerprint does not match"):
        load_artefact(copy)


def test_description_is_outside_the_fingerprint(copy: Path, artefact: EncoderArtefact) -> None:
    """Words do not decide a vector: a new description leaves the fingerprint alone."""
    edit(copy, lambda document: document.update(description="another"))
    assert load_artefact(copy).fingerprint == artefact.fingerprint


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d.pop("dim"), "dim"),
        (lambda d: d.update(dim="1280"), "dim"),
        (lambda d: d.update(dim=1279), "(whole file)"),
        (lambda d: d.update(format_version=2), "format_version"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.update(text={}), "text.input"),
        (lambda d: d.update(kind="mixture"), "kind"),
        (lambda d: d["input"].update(layout="NCHW"), "input.layout"),
        (lambda d: d["input"].update(height=192), "(whole file)"),
        (lambda d: d["preprocessing"]["crop"].update(height=300), "preprocessing"),
        (lambda d: d["preprocessing"]["resize"].update(size=-1), "preprocessing.resize.size"),
        (
            lambda d: d["preprocessing"]["normalise"].update(scale=[1, 0, 1]),
            "preprocessing.normalise.scale.1",
        ),
        (lambda d: d["files"]["image"].update(path="../image.onnx"), "files.image.path"),
        (lambda d: d["files"]["image"].update(path="/etc/passwd"), "files.image.path"),
        (lambda d: d["files"]["image"].update(sha256="abc"), "files.image.sha256"),
        (lambda d: d.update(self_test=[]), "self_test"),
        (lambda d: d["self_test"][0].update(pattern="plaid"), "self_test.0.pattern"),
        (lambda d: d["self_test"][0].update(embedding_b64="!"), "(whole file)"),
        (lambda d: d["self_test"][0].update(embedding_b64="AAAA"), "(whole file)"),
        (lambda d: d["self_test"][0].update(min_cosine=0.1), "self_test.0.min_cosine"),
    ],
)
def test_bad_fields(copy: Path, change: Callable[[dict[str, Any]], object], field: str) -> None:
    """Every missing, unknown or invalid field is refused by name, with the file."""
    edit(copy, change)
    with pytest.raises(ArtefactError, match=r"encoder\.json: field ") as caught:
        load_artefact(copy)
    assert caught.value.metadata["field"] == field
    assert len(caught.value.message) < 1000


def test_reference_vector_must_be_a_unit_vector(copy: Path) -> None:
    """A reference vector of NaN would make the self-test meaningless."""
    nan = base64.b64encode(np.full(1280, np.nan, dtype="<f4").tobytes()).decode()
    edit(copy, lambda document: document["self_test"][0].update(embedding_b64=nan))
    with pytest.raises(ArtefactError, match="expected a unit vector, got length nan"):
        load_artefact(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_manifest_is_not_json(copy: Path, content: bytes) -> None:
    """A manifest that is not a JSON object is refused, whatever it is."""
    (copy / "encoder.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"encoder\.json"):
        load_artefact(copy)


def test_manifest_too_large(copy: Path) -> None:
    """A manifest beyond 1 MiB is not parsed."""
    (copy / "encoder.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ArtefactError, match="expected at most 1048576 bytes"):
        load_artefact(copy)


def test_patterns_are_fixed() -> None:
    """The generated images are the same on every machine and every numpy."""
    images = [pattern_image(name, 224, 224) for name in ("gradient", "checker", "noise")]
    assert [image.shape for image in images] == [(224, 224, 3)] * 3
    assert [int(image.astype(np.int64).sum()) for image in images] == [19117505, 14626304, 19143986]


def test_self_test_images_follow_the_manifest(artefact: EncoderArtefact) -> None:
    """There is one image for each case, of the input's size."""
    images = self_test_images(artefact)
    assert len(images) == len(artefact.manifest.self_test)
    assert all(image.dtype == np.uint8 and image.shape == (224, 224, 3) for image in images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda v: v[:, :-1], "expected float32"),
        (lambda v: v.astype(np.float64), "expected float32"),
        (lambda v: v * np.float32(2), "expected unit length"),
        (lambda v: v * np.float32(np.nan), "expected unit length"),
        (lambda v: v[::-1].copy(), "expected cosine"),
    ],
)
def test_self_test_notices(
    artefact: EncoderArtefact, wrong: Callable[[Float32], Float32], message: str
) -> None:
    """A wrong shape, type, length or direction fails the self-test."""
    right = np.stack([case.reference() for case in artefact.manifest.self_test])
    check_self_test(artefact, lambda _: right)
    with pytest.raises(SelfTestFailed, match=message):
        check_self_test(artefact, lambda _: wrong(right))
