"""``encoder.json``: what its fields may be, how they agree, and what the fingerprint covers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedder.encoding.artefact import bundled_artefact
from embedder.encoding.manifest import (
    EncoderManifest,
    FileEntry,
    Files,
    MixManifest,
    Preprocessing,
    compute_fingerprint,
    mix_fingerprint,
)

Change = Callable[[dict[str, Any]], object]
SHA = "0" * 64


def vector(dim: int = 1280, length: float = 1.0) -> str:
    """A vector of this length along the first axis, as the file has it."""
    values = np.zeros(dim, "<f4")
    values[0] = length
    return base64.b64encode(values.tobytes()).decode()


def document(**changes: Any) -> dict[str, Any]:
    """The bundled encoder's, with ``changes``."""
    facts: dict[str, Any] = json.loads((bundled_artefact() / "encoder.json").read_text())
    return {**facts, **changes}


def with_text(**changes: Any) -> dict[str, Any]:
    """One with a text tower of four tokens."""
    facts = document()
    entry = {"path": "text.onnx", "sha256": SHA}
    facts["files"] |= {"text": entry, "tokenizer": {**entry, "path": "tokenizer.json"}}
    case = {"text": "a dog", "tokens": [1, 2, 3, 0], "embedding_b64": vector(), "min_cosine": 0.99}
    facts["text"] = {
        "input": "tokens",
        "output": "text_embedding",
        "context_length": 4,
        "pad_id": 0,
        "clean": "lower",
        "self_test": [case],
    } | changes
    return facts


def parsed(facts: dict[str, Any]) -> EncoderManifest:
    return EncoderManifest.model_validate_json(json.dumps(facts))


def refused(facts: dict[str, Any]) -> str:
    """Why the document is refused."""
    with pytest.raises(ValidationError) as caught:
        parsed(facts)
    return "; ".join(f"{error['loc']} {error['msg']}" for error in caught.value.errors())


def test_license_keeps_its_name_in_the_file() -> None:
    """``licence``: artefacts that exist have it, and another name is an unknown field."""
    assert parsed(document(licence="MIT")).license == "MIT"
    facts = document(license="MIT")
    del facts["licence"]
    told = refused(facts)
    assert "('licence',) Field required" in told
    assert "('license',) Extra inputs are not permitted" in told


def test_text_tower_is_read() -> None:
    """With its files, and the vector of each of its texts."""
    manifest = parsed(with_text())
    assert manifest.text is not None
    assert list(manifest.files.entries()) == ["image", "text", "tokenizer"]
    (case,) = manifest.text.self_test
    assert case.tokens == (1, 2, 3, 0)
    assert case.reference().shape == (1280,)
    assert case.reference()[0] == 1


@pytest.mark.parametrize("missing", ["text", "tokenizer"])
def test_text_tower_needs_its_files(missing: str) -> None:
    """Without its graph or its tokenizer there is none."""
    facts = with_text()
    del facts["files"][missing]
    assert "a text tower needs files.text and files.tokenizer" in refused(facts)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("tokens", [1, 2, 3], "text 'a dog': expected 4 tokens, got 3"),
        ("tokens", [1, 2, 3, 0, 0], "text 'a dog': expected 4 tokens, got 5"),
        ("embedding_b64", vector(1279), "text 'a dog': expected 1280 values, got 1279"),
        ("embedding_b64", vector(1280, 1.01), "text 'a dog': expected a unit vector, got length"),
        ("embedding_b64", "!", "text 'a dog': embedding_b64 is not base64"),
        ("embedding_b64", "AAA=", "text 'a dog': expected whole float32 values, got 2 bytes"),
    ],
)
def test_reference_text_must_fit(field: str, value: object, told: str) -> None:
    """Its tokens are as many as the context, its vector is of the encoder's length and 1 long."""
    facts = with_text()
    facts["text"]["self_test"][0][field] = value
    assert told in refused(facts)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (vector(1279), "self_test gradient: expected 1280 values, got 1279"),
        (vector(1280, 0.99), "self_test gradient: expected a unit vector, got length 0.99"),
        (vector(1280, 1.0011), "self_test gradient: expected a unit vector, got length 1.001"),
        ("AA", "self_test gradient: embedding_b64 is not base64"),
        ("AAAAAA==", "self_test gradient: expected 1280 values, got 1"),
    ],
)
def test_reference_image_must_fit(value: str, told: str) -> None:
    """The image is named; a length within a thousandth of 1 is 1."""
    facts = document()
    facts["self_test"][0]["embedding_b64"] = value
    assert told in refused(facts)
    facts["self_test"][0]["embedding_b64"] = vector(1280, 1.0009)
    parsed(facts)


def test_vector_is_read_as_little_endian_float32() -> None:
    """Whatever the machine's own order is."""
    facts = document(dim=2)
    raw = bytes.fromhex("0000003f") + bytes.fromhex("d8b35d3f")
    facts["self_test"] = [
        {
            "pattern": "noise",
            "embedding_b64": base64.b64encode(raw).decode(),
            "min_cosine": 0.99,
        }
    ]
    (case,) = parsed(facts).self_test
    assert case.reference().dtype == np.float32
    np.testing.assert_allclose(case.reference(), [0.5, 0.8660], atol=1e-4)


def preprocessing(mode: str, size: int, height: int, width: int) -> dict[str, Any]:
    facts = document()
    facts["input"] |= {"height": height, "width": width}
    facts["preprocessing"]["resize"] |= {"mode": mode, "size": size}
    facts["preprocessing"]["crop"] |= {"height": height, "width": width}
    return facts


@pytest.mark.parametrize(
    ("mode", "size", "height", "width", "told"),
    [
        ("shortest_edge", 224, 224, 224, ""),
        ("shortest_edge", 256, 224, 192, ""),
        ("shortest_edge", 223, 224, 224, "expected at most 223 px, got 224x224"),
        ("shortest_edge", 223, 192, 224, "expected at most 223 px, got 192x224"),
        ("stretch", 224, 224, 224, ""),
        ("stretch", 224, 224, 192, ""),
        ("stretch", 224, 192, 224, ""),
        ("stretch", 256, 224, 224, "expected resize.size 224, got 256"),
        ("stretch", 192, 224, 192, "expected resize.size 224, got 192"),
    ],
)
def test_crop_must_fit_the_resized_image(
    mode: str, size: int, height: int, width: int, told: str
) -> None:
    """It lies within the shortest edge; of a stretched image it is the whole."""
    facts = preprocessing(mode, size, height, width)
    if told:
        assert told in refused(facts)
    else:
        parsed(facts)


def test_crop_must_be_the_graphs_input() -> None:
    """In both directions."""
    for side in ("height", "width"):
        facts = document()
        facts["input"][side] = 223
        assert "preprocessing.crop must equal input" in refused(facts)


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        (lambda d: d.update(name="a"), True),
        (lambda d: d.update(name="a" * 64), True),
        (lambda d: d.update(name="a" * 65), False),
        (lambda d: d.update(name="0a.b_c-d"), True),
        (lambda d: d.update(name=".a"), False),
        (lambda d: d.update(name="A"), False),
        (lambda d: d.update(name="a/b"), False),
        (lambda d: d.update(name="a\n"), False),
        (lambda d: d.update(description=""), False),
        (lambda d: d.update(licence=""), False),
        (lambda d: d.update(licence="x" * 2000), True),
        (lambda d: d.update(licence="x" * 2001), False),
        (lambda d: d.update(metric="euclidean"), False),
        (lambda d: d.update(precision="float16"), True),
        (lambda d: d.update(precision="bfloat16"), False),
        (lambda d: d.update(measured={"images": "x", "min_cosine": 0.5}), True),
        (lambda d: d.update(measured={"images": "x"}), False),
        (lambda d: d.update(measured={"images": "x", "min_cosine": float("nan")}), False),
        (lambda d: d["source"].update(model="m", weights="w"), True),
        (lambda d: d["source"].pop("version"), False),
        (lambda d: d["input"].update(dtype="float32"), False),
        (lambda d: d["input"].update(channels="BGR"), False),
        (lambda d: d["output"].update(name="1x"), False),
        (lambda d: d["preprocessing"]["resize"].update(antialias=False), False),
        (lambda d: d["preprocessing"]["resize"].update(interpolation="nearest"), False),
        (lambda d: d["preprocessing"]["normalise"].update(in_graph=False), False),
        (lambda d: d["preprocessing"]["normalise"].update(mean=[1, 1]), False),
        (lambda d: d["files"]["image"].update(path=".image.onnx"), False),
        (lambda d: d["files"]["image"].update(path="a" * 128), True),
        (lambda d: d["files"]["image"].update(path="a" * 129), False),
        (lambda d: d["files"]["image"].update(sha256="A" * 64), False),
        (lambda d: d["files"].update(image_data={"path": "x.data", "sha256": SHA}), True),
        (lambda d: d["files"].update(other={"path": "x", "sha256": SHA}), False),
        (lambda d: d.update(fingerprint="0" * 63), False),
        (lambda d: d["self_test"][0].update(min_cosine=0.9), False),
        (lambda d: d["self_test"][0].update(min_cosine=0.91), True),
        (lambda d: d["self_test"][0].update(min_cosine=1.0), True),
        (lambda d: d["self_test"][0].update(min_cosine=1.1), False),
        (lambda d: d.update(self_test=d["self_test"][:1] * 16), True),
        (lambda d: d.update(self_test=d["self_test"][:1] * 17), False),
    ],
)
def test_fields_have_bounds(change: Change, valid: bool) -> None:  # noqa: FBT001 - a column of the table
    """Each bound from both sides."""
    facts = document()
    change(facts)
    if valid:
        parsed(facts)
    else:
        refused(facts)


@pytest.mark.parametrize(
    ("changes", "valid"),
    [
        ({"context_length": 1}, False),
        ({"context_length": 4097}, False),
        ({"pad_id": -1}, False),
        ({"pad_id": 7}, True),
        ({"clean": "none"}, True),
        ({"clean": "shout"}, False),
        ({"self_test": []}, False),
    ],
)
def test_text_fields_have_bounds(changes: dict[str, Any], valid: bool) -> None:  # noqa: FBT001 - a column of the table
    """Each bound of the text tower."""
    if valid:
        parsed(with_text(**changes))
    else:
        refused(with_text(**changes))


def fingerprint(facts: dict[str, Any]) -> str:
    manifest = parsed(facts)
    return compute_fingerprint(
        files=manifest.files,
        input_spec=manifest.input,
        output_spec=manifest.output,
        preprocessing=manifest.preprocessing,
    )


def test_fingerprint_of_the_bundled_encoder_never_changes() -> None:
    """Collections remember it: another way to compute it would make all of them another's."""
    made = fingerprint(document())
    assert made == "c96aa9b72406a882a8e0f6ac2c359eaab07a7f0668aad2392370bc8c4bb30a54"
    assert made == document()["fingerprint"]


def test_fingerprint_of_an_encoder_without_a_matte_never_changes() -> None:
    """It was so before there were mattes, and collections remember that too."""
    facts = document()
    del facts["preprocessing"]["matte"]
    assert fingerprint(facts) == "d32b2b33089c3b04e90d07a339516a57b35d6923fb027755668362f572811515"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["files"]["image"].update(sha256="1" * 64),
        lambda d: d["files"].update(image_data={"path": "x.data", "sha256": SHA}),
        lambda d: d["files"].update(text={"path": "x", "sha256": SHA}),
        lambda d: d["files"].update(text_data={"path": "x", "sha256": SHA}),
        lambda d: d["files"].update(tokenizer={"path": "x", "sha256": SHA}),
        lambda d: d["input"].update(name="other"),
        lambda d: d["output"].update(name="other"),
        lambda d: d["preprocessing"]["resize"].update(size=250),
        lambda d: d["preprocessing"]["resize"].update(interpolation="bilinear"),
        lambda d: d["preprocessing"]["normalise"].update(mean=[1.0, 2.0, 3.0]),
    ],
)
def test_fingerprint_covers_what_decides_a_vector(change: Change) -> None:
    """Every file, the names in the graph and the preprocessing."""
    facts = document()
    change(facts)
    assert fingerprint(facts) != document()["fingerprint"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(name="other"),
        lambda d: d.update(description="other"),
        lambda d: d.update(licence="other"),
        lambda d: d["source"].update(version="other"),
        lambda d: d["files"]["image"].update(path="renamed.onnx"),
        lambda d: d["self_test"][0].update(min_cosine=0.95),
    ],
)
def test_fingerprint_leaves_out_what_does_not(change: Change) -> None:
    """Words, names of files and the self-test."""
    facts = document()
    change(facts)
    assert fingerprint(facts) == document()["fingerprint"]


def test_each_file_counts_as_itself() -> None:
    """The same bytes as a text tower or as its weights make another encoder."""
    manifest = parsed(document())
    entry = FileEntry(path="x", sha256=SHA)
    made = {
        compute_fingerprint(
            files=Files(image=entry, **{field: entry}),
            input_spec=manifest.input,
            output_spec=manifest.output,
            preprocessing=manifest.preprocessing,
        )
        for field in ("image_data", "text", "text_data", "tokenizer")
    }
    assert len(made) == 4


def test_models_are_frozen() -> None:
    """What was verified stays so."""
    spec = parsed(document()).preprocessing
    with pytest.raises(ValidationError, match="frozen"):
        spec.crop = spec.crop
    assert hash(spec) == hash(Preprocessing.model_validate(spec.model_dump()))


def mix(**changes: Any) -> dict[str, Any]:
    return {
        "format_version": 1,
        "kind": "mix",
        "name": "mix",
        "description": "two",
        "dim": 4,
        "metric": "cosine",
        "parts": ["a", "b"],
        "fingerprint": SHA,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "valid"),
    [
        ({}, True),
        ({"parts": ["a"]}, False),
        ({"parts": ["a", "a"]}, False),
        ({"parts": ["a", "b", "a"]}, False),
        ({"parts": list("abcdefgh")}, True),
        ({"parts": list("abcdefghi")}, False),
        ({"parts": ["a", "../b"]}, False),
        ({"dim": 1}, False),
        ({"dim": 2}, True),
        ({"dim": 65536}, True),
        ({"dim": 65537}, False),
        ({"kind": "encoder"}, False),
        ({"licence": "MIT"}, False),
    ],
)
def test_mix_has_two_to_eight_parts_of_different_names(
    changes: dict[str, Any],
    valid: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Names that are directories beside its manifest, and nothing else."""
    if valid:
        MixManifest.model_validate_json(json.dumps(mix(**changes)))
    else:
        with pytest.raises(ValidationError):
            MixManifest.model_validate_json(json.dumps(mix(**changes)))


def test_fingerprint_of_a_mix_is_of_its_parts_in_order() -> None:
    """The other order is another vector; a mix of one is not its part."""
    assert mix_fingerprint(["a", "b"]) != mix_fingerprint(["b", "a"])
    assert mix_fingerprint(["a"]) != "a"
    made = mix_fingerprint(["a", "b"])
    assert made == "7b160183013cb6d04c1fb1d2024fd995287f421cb944c364acc0fb48cc16d202"
