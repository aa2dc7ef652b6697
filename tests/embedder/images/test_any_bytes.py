"""Any bytes give pixels or an error that says what is wrong with the image, within bounds."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.images.formats import ALL_FORMATS
from embedder.images.limits import ImageLimits
from embedder.images.plugins import INSTALLED, _load_plugin
from embedder.images.preprocess import decode_for
from shoal.errors import ImageInvalid

SPEC = load_artefact(bundled_artefact()).manifest.preprocessing
SPECS = (SPEC, SPEC.model_copy(update={"matte": None}))
LIMITS: Final = ImageLimits(max_bytes=2**20, max_pixels=250_000)
MOST_MEMORY: Final = 64 * 2**20
"""How much the process may grow for one image, bytes: 20 for each pixel of the limit are 5 MB; the
rest is for what libraries and the allocator keep."""
NOISE = np.random.default_rng(3).integers(0, 256, (30, 40, 4), np.uint8)
PICTURE = Image.fromarray(NOISE).resize((80, 60), Image.Resampling.BICUBIC)


def files() -> list[bytes]:
    """Small files of every format, in many of its modes."""
    film: dict[str, Any] = {"save_all": True, "append_images": [PICTURE.convert("RGB")]}
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("JPEG", "RGB", {"exif": exif, "comment": "a note"}),
        ("JPEG", "RGB", {"progressive": True, "restart_marker_blocks": 2}),
        ("JPEG", "CMYK", {"restart_marker_blocks": 3}),
        ("JPEG", "L", {"progressive": True}),
        ("MPO", "RGB", film),
        *(("PNG", mode, {"exif": exif}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        ("PNG", "P", {"transparency": 3, "icc_profile": bytes(500)}),
        ("PNG", "RGB", film),
        ("GIF", "P", {"transparency": 3}),
        ("GIF", "RGB", film),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
        ("BMP", "1", {}),
        *(
            ("TIFF", mode, {"compression": compression})
            for mode in ("RGB", "LA", "I;16", "P", "CMYK", "1")
            for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate")
        ),
        ("TIFF", "RGB", {"compression": "jpeg", "tiffinfo": {0x0112: 6}}),
        ("TIFF", "1", {"compression": "group4"}),
        ("WEBP", "RGB", {"exif": exif}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", film),
        ("AVIF", "RGBA", {"exif": exif}),
        ("HEIF", "RGBA", {}),
        ("HEIF", "RGB", {"exif": exif.tobytes()}),
        ("JXL", "RGBA", {}),
        ("JXL", "RGB", {"use_container": True, "exif": exif.tobytes()}),
    ]
    for kind in INSTALLED:
        _load_plugin(kind)
    return [
        encoded(mode, kind, options)
        for kind, mode, options in kinds
        if kind in ALL_FORMATS or kind == "MPO"
    ]


def encoded(mode: str, kind: str, options: dict[str, Any]) -> bytes:
    image = PICTURE.convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


FILES: Final = files()
NUMBERS: Final = (
    b"\0\0",
    b"\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\1",
    b"\1",
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real file, with bytes and numbers changed, parts cut out, doubled, or of another file."""
    content = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 4))):
        reach = draw(st.sampled_from((64, 400, len(content))))
        at = draw(st.integers(0, max(0, min(reach, len(content)) - 1)))
        until = at + draw(st.integers(1, 60))
        match draw(st.sampled_from(("byte", "number", "cut", "double", "end", "other", "any"))):
            case "byte":
                content[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                number = draw(st.sampled_from(NUMBERS))
                content[at : at + len(number)] = number
            case "cut":
                del content[at:until]
            case "double":
                content[at:at] = content[at:until] * draw(st.integers(1, 20))
            case "end":
                del content[at:]
                content += draw(
                    st.sampled_from((b"", b"\xff\xd9", b"\0;", b"\0\0\0\0IEND\xaeB`\x82"))
                )
            case "other":
                other = draw(st.sampled_from(FILES))
                content[at:until] = other[at:until]
            case _:
                content[at:until] = draw(st.binary(max_size=60))
    return bytes(content)


def memory(line: str) -> int:
    """A number of the process's memory, bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{line}:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) * 1024


@pytest.mark.filterwarnings("ignore")  # Pillow's, which serving silences
@fuzz(400)
@given(data=damaged())
def test_any_bytes_give_pixels_or_what_is_wrong_with_the_image(data: bytes) -> None:
    """No other error, and no more memory than the most pixels take."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    shapes = [(224, 224, 3)] * 2
    said = "something"
    try:
        shapes = [each.shape for each in decode_for(data, limits=LIMITS, specs=SPECS)]
    except ImageInvalid as exc:
        said = exc.message
    assert shapes == [(224, 224, 3)] * 2
    assert said.isprintable()
    assert memory("VmHWM") - before <= MOST_MEMORY


@pytest.mark.parametrize("number", range(len(FILES)))
def test_the_real_files_are_images(number: int) -> None:
    """What is damaged above was sound."""
    assert decode_for(FILES[number], limits=LIMITS, specs=SPECS)[0].std() > 1
