"""Images as data URLs, without an imaging library on the box."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Floats

Colour = tuple[int, int, int]


def png_url(values: Floats, colours: Sequence[Colour]) -> str:
    """Return a data URL of a PNG of one pixel a value.

    Parameters
    ----------
    values : Floats
        f32 [height, width], top row first; 0 has the first colour, 1 the last, others lie between.
    colours : sequence of (int, int, int)
        Red, green and blue, 0 to 255, of evenly spaced values.

    """
    height, width = values.shape
    pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # each row begins with its filter: none
    # PNG, third edition: colour type 3 is 8-bit indices into a palette.
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette(colours).tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)
    return "data:image/png;base64," + base64.b64encode(data).decode()


def palette(colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Return 256 colours [256, 3] from the first to the last of those given."""
    places = np.linspace(0, len(colours) - 1, 256)
    channels = [np.interp(places, np.arange(len(colours)), channel) for channel in zip(*colours, strict=True)]
    table: NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return table


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
