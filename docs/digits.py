"""Writes handwritten digits, which scikit-learn ships, as a folder of PNG files with a manifest.

``python docs/digits.py DIR [N]`` makes the tour's images. ``DIR/images.jsonl`` names each file and
its label.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digits(directory: Path, count: int) -> int:
    """The number of files written: at most ``count`` of the 1,797 digits, 64 x 64 pixels each."""
    digits = load_digits()
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if number == count:
            break
        grey = np.uint8(pixels * (255 / 16))
        name = f"{number:04d}.png"
        Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC).save(directory / name)
        lines.append(json.dumps({"path": name, "payload": {"label": WORDS[label]}}))
    (directory / "images.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        raise SystemExit("expected: python docs/digits.py DIR [N]")
    folder = Path(sys.argv[1])
    written = write_digits(folder, int(sys.argv[2]) if len(sys.argv) > 2 else 1797)  # noqa: PLR2004 - argv
    print(f"{written} images in {folder}/, listed in {folder}/images.jsonl")  # noqa: T201 - a script
