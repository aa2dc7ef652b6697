"""The parts of a JPEG that decide its pixels, and a load that notices coded data that is missing.

A photograph's file is more than its picture: previews, maps of depth, profiles and, behind the end
of the picture, whole films. Here the picture is taken out of the file (ITU T.81, annex B), so that
nothing else can be mistaken for it, fail, or cost time.

libjpeg paints grey what a file lacks, and only warns, which Pillow does not pass on. But libjpeg
waits for more bytes as long as it has met no marker. So each scan is decoded without the marker
that follows it: a decoder that still waits for pixels then lacks some.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from shoal.errors import ImageCorrupt, ImageUnsupportedFormat

if TYPE_CHECKING:
    from PIL import ImageFile

MAX_SEGMENTS: Final = 10_000
"""The most segments of a JPEG that are no scans. 20 MiB of metadata fit into 320 full ones."""
MAX_JUNK_BYTES: Final = 65_536
"""The most bytes of a JPEG that are between its segments and belong to none."""
MAX_SCANS: Final = 10_000
"""The most scans of a JPEG of any size. Cameras and tools write 1 to 12."""

_START_OF_SCAN, _END, _RESTART_INTERVAL, _APP0, _APP1, _APP14 = 0xDA, 0xD9, 0xDD, 0xE0, 0xE1, 0xEE
_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment: TEM, RST0 to RST7, SOI."""
_UNREAD: Final = frozenset({*range(0xE0, 0xF0), 0xFE})
"""Markers of applications' segments and comments."""
_READ: Final = {
    _APP0: (b"JFIF",),  # libjpeg: the three components are YCbCr
    _APP1: (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"),  # the orientation
    _APP14: (b"Adobe",),  # libjpeg: the components are RGB, CMYK or YCCK
}
"""The beginnings of the applications' segments that are read, by marker, and what they say."""
_FRAMES: Final = {
    0xC0: "",
    0xC1: "",
    0xC2: "",
    0xC3: "lossless coding",
    0xC5: "hierarchical coding",
    0xC6: "hierarchical coding",
    0xC7: "hierarchical coding",
    0xC9: "arithmetic coding",
    0xCA: "arithmetic coding",
    0xCB: "arithmetic coding",
    0xCD: "arithmetic coding",
    0xCE: "arithmetic coding",
    0xCF: "arithmetic coding",
    0xF7: "the coding of JPEG-LS",
}
"""The markers of frames, and the name of the coding where libjpeg does not read it."""
_PROGRESSIVE: Final = 0xC2
_BITS: Final = 8
_LAYERS: Final = (1, 3, 4)
_FRAME_BYTES: Final = 6
"""The bytes of a frame header's bits, height, width and number of components."""
_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
"""In coded data, 0xff is followed by zero."""
_AFTER_RESTARTS: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker that ends coded data which is divided by restart markers."""
_RESTART: Final = re.compile(rb"\xff[\xd0-\xd7]")
_PADDING: Final = b"\xff\0" * 8
"""64 one-bits. libjpeg's bit buffer wants up to 64 bits past the end of a scan; an encoder fills
its last byte with ones, and no Huffman code consists of ones, so they stand for few pixels."""
_PROBE: Final = b"\0"
"""Skipped by a decoder that looks for the next marker; kept back by one that waits for pixels."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """The picture of a JPEG file.

    Attributes:
        head: the file's start up to its first scan, without the segments that nobody reads.
        scans: each scan, with the tables before it.
        area: width times height.
        several: whether the pixels need several scans; libjpeg then reads all before it decodes.
    """

    head: bytes
    scans: tuple[bytes, ...]
    area: int
    several: bool

    @property
    def data(self) -> bytes:
        """A file of the picture alone, without a marker after the scan if there is only one."""
        end = bytes((0xFF, _END)) if self.several else b""
        return b"".join((self.head, *(scan + _PADDING for scan in self.scans), end))

    def load(self, image: ImageFile.ImageFile) -> None:
        """Decodes ``image``, which Pillow opened from ``data``. Pillow's errors pass through.

        Raises:
            ImageCorrupt: coded data is missing.
        """
        if not self.several:
            image.load()  # fails if the decoder still waits for pixels after the scan
            return
        image.load_prepare()
        (tile,) = image.tile
        decoder = Image._getdecoder(  # noqa: SLF001 - as ImageFile.load, which hides what is unread
            image.mode, tile.codec_name, tile.args, image.decoderconfig
        )
        try:
            decoder.setimage(image.im, tile.extents)
            unread = self.head
            for number, scan in enumerate(self.scans, 1):
                for more in (scan + _PADDING, _PROBE):
                    unread += more
                    unread = unread[_feed(decoder, unread) :]
                if unread:
                    raise _truncated(f"scan {number} of {len(self.scans)} ends before its pixels")
            _feed(decoder, bytes((0xFF, _END)), last=True)
        finally:
            decoder.cleanup()
        image.tile = []


def parse(data: bytes) -> Jpeg | None:
    """The picture of the JPEG ``data``; None if it is too damaged, for the decoder to refuse.

    Raises:
        ImageUnsupportedFormat: libjpeg does not read this kind of JPEG, or it has more parts than
            cameras and tools write; names the kind.
        ImageCorrupt: coefficients of a component are in no scan.
    """
    walk = _Walk(data)
    if not walk.find_scan() or walk.frame is None:
        return None
    frame = walk.frame
    head, scans = walk.take(), [walk.scan(frame)]
    several = frame.progressive or not frame.complete
    while several and walk.find_scan():
        if len(scans) == MAX_SCANS:
            raise refuse(MAX_SCANS, "scans")
        scans.append(walk.take() + walk.scan(frame))
    if not frame.complete:
        raise _truncated("scans are missing")
    return Jpeg(head, tuple(scans), frame.width * frame.height, several)


class _Frame:
    """A frame header (ITU T.81, B.2.2), and which of its coefficients were in a scan."""

    def __init__(self, code: int, body: bytes) -> None:
        if coding := _FRAMES[code]:
            raise ImageUnsupportedFormat(f"JPEG image: expected Huffman coding, got {coding}")
        if body[0] != _BITS:
            msg = f"JPEG image: expected {_BITS} bits for each value, got a {body[0]}-bit JPEG"
            raise ImageUnsupportedFormat(msg, bits=str(body[0]))
        if body[5] not in _LAYERS:
            msg = f"JPEG image: expected 1, 3 or 4 components, got {body[5]}"
            raise ImageUnsupportedFormat(msg)
        self.progressive = code == _PROGRESSIVE
        self.height = int.from_bytes(body[1:3], "big")
        self.width = int.from_bytes(body[3:5], "big")
        parts = [body[at : at + 3] for at in range(6, 6 + 3 * body[5], 3)]
        self._sampling = {
            part[0]: (part[1] >> 4 or 1, part[1] & 15 or 1) for part in parts if len(part) > 1
        }
        self._missing_bits = {each: bytearray(b"\xff" * 64) for each in self._sampling}

    @property
    def complete(self) -> bool:
        """Whether scans had every bit of every coefficient."""
        return not any(any(bits) for bits in self._missing_bits.values())

    def note(self, header: bytes) -> int:
        """Notes a scan with this header (B.2.3); the number of its blocks or groups of blocks."""
        count = header[0] if header else 0
        components = [each for each in header[1 : 1 + 2 * count : 2] if each in self._sampling]
        first, last, bits = (header[1 + 2 * count :] + bytes(3))[:3]
        for each in components:
            for at in range(first, min(last, 63) + 1):
                self._missing_bits[each][at] = bits & 15
        across = max((h for h, _ in self._sampling.values()), default=1)
        down = max((v for _, v in self._sampling.values()), default=1)
        h, v = self._sampling[components[0]] if len(components) == 1 else (across, down)
        columns = -(-self.width * h // (8 * across))
        rows = -(-self.height * v // (8 * down))
        return columns * rows if len(components) == 1 else -(-columns // across) * -(-rows // down)


class _Walk:
    """A walk over the segments of a JPEG (ITU T.81, B.1.1)."""

    def __init__(self, data: bytes) -> None:
        self.frame: _Frame | None = None
        self._data = data
        self._at = 2
        self._kept = [data[:2]]
        self._segments = self._junk = 0
        self._interval = 0
        """Blocks or groups of blocks between restart markers; 0: there are none."""

    def find_scan(self) -> bool:
        """Goes to the next scan and keeps what decides pixels; False if there is no more scan."""
        data = self._data
        while True:
            code = self._marker()
            if code is None or code in (_END, _START_OF_SCAN):
                return code == _START_OF_SCAN
            self._segments += 1
            if self._segments > MAX_SEGMENTS:
                raise refuse(MAX_SEGMENTS, "segments")
            if code in _ALONE:
                continue
            start, size = self._at, int.from_bytes(data[self._at : self._at + 2], "big")
            self._at += max(2, size)
            if self._at > len(data):
                return False
            if code in _UNREAD and not data.startswith(_READ.get(code, ()), start + 2):
                continue
            self._kept.append(data[start - 2 : self._at])
            self._note(code, data[start + 2 : self._at])

    def _marker(self) -> int | None:
        """Steps over the next marker."""
        end = min(self._at + MAX_JUNK_BYTES + 3 - self._junk, len(self._data))
        found = _MARKER.search(self._data, self._at, end)
        self._junk += (found.start() if found else end) - self._at
        if self._junk > MAX_JUNK_BYTES:
            raise refuse(MAX_JUNK_BYTES, "bytes between its segments")
        if found is None:
            return None
        self._at = found.end()
        return self._data[self._at - 1]

    def _note(self, code: int, body: bytes) -> None:
        if code == _RESTART_INTERVAL:
            self._interval = int.from_bytes(body[:2], "big")
        elif code in _FRAMES and len(body) >= _FRAME_BYTES:
            self.frame = self.frame or _Frame(code, body)

    def take(self) -> bytes:
        """The segments since the last call."""
        taken = b"".join(self._kept)
        self._kept.clear()
        return taken

    def scan(self, frame: _Frame) -> bytes:
        """The scan whose marker was found: its header and its coded data, without what follows.

        Raises:
            ImageCorrupt: the scan has too few restart markers.
        """
        data, start = self._data, self._at
        size = int.from_bytes(data[start : start + 2], "big")
        units = frame.note(data[start + 2 : start + size])
        end = (_AFTER_RESTARTS if self._interval else _MARKER).search(data, start + size)
        self._at = end.start() if end else len(data)
        if self._interval:
            # A decoder that waits for a restart marker looks like one that waits for a scan.
            wanted = (units - 1) // self._interval
            found = _RESTART.finditer(data, start + size, self._at)
            if sum(1 for _ in islice(found, wanted)) < wanted:
                raise _truncated(f"expected {wanted} restart markers in a scan, got fewer")
        return data[start - 2 : self._at]


def _feed(decoder: Any, data: bytes, *, last: bool = False) -> int:
    """How many bytes of ``data`` the decoder read; Pillow's error if it failed or ended early."""
    read, error = decoder.decode(data)
    if error < 0 or (read < 0) != last:
        raise OSError(f"libjpeg gave up (error {error})")
    return int(read)


def refuse(most: int, parts: str) -> ImageUnsupportedFormat:
    """The error for a JPEG with more than ``most`` of ``parts``."""
    return ImageUnsupportedFormat(f"JPEG image: expected at most {most} {parts}, got more")


def _truncated(why: str) -> ImageCorrupt:
    msg = f"JPEG image: expected a complete, valid file, got one that is truncated: {why}"
    return ImageCorrupt(msg, format="JPEG")
