"""ImageDecoder, through Pillow, which is optional."""

from __future__ import annotations

import io

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt.errors import NotImplemented as Missing
from gpurt_cpu.ops.table import Array, op


@op("ImageDecoder")
def image_decoder(encoded: Array, *, pixel_format: str = "RGB") -> Array:
    if pixel_format not in ("RGB", "BGR", "Grayscale"):
        raise InvalidArgument(f"pixel_format is {pixel_format!r}", remedy="Use 'RGB', 'BGR' or 'Grayscale'")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise Missing("ImageDecoder needs Pillow", op="ImageDecoder", remedy="Install it: pip install pillow") from None
    try:
        with Image.open(io.BytesIO(np.ascontiguousarray(encoded).tobytes())) as image:
            if pixel_format == "Grayscale":
                return np.asarray(image.convert("L"))[:, :, None].copy()
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InvalidArgument(f"cannot decode the image: {error}", remedy="Feed the bytes of an image file") from None
    return np.ascontiguousarray(pixels[:, :, ::-1] if pixel_format == "BGR" else pixels)
