"""Image files as RGB images, whoever made the files."""

from __future__ import annotations

from functools import cache
from io import BytesIO

import datasets
import numpy as np
import PIL.Image

from peft_noah.data.partial_downloads import POINTER, is_pointer

MAX_PIXELS = 178_956_970
"""Most pixels of one image, no unit: where Pillow itself refuses an image as a decompression bomb."""

# Pillow also opens formats that start other programs (EPS runs Ghostscript); a photo collection needs none of them.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


@cache
def image_extensions() -> frozenset[str]:
    """What the names of image files that can be decoded end in, such as ``".png"``; in small letters."""
    known = PIL.Image.registered_extensions()
    return frozenset(end for end, name in known.items() if name in _FORMATS and name in PIL.Image.OPEN)


def decode_image(encoded: bytes) -> PIL.Image.Image:
    """One RGB image from the bytes of its file, decoded as `datasets` does (EXIF orientation applied).

    Grey images get three equal channels, palettes their colours; 16-bit grey keeps its high byte; an alpha channel is
    dropped, which is what `convert("RGB")` and so transformers and torchvision do. Of an animation, the first frame.

    Args:
        encoded: the content of an image file.

    Raises:
        ValueError: not an image of a known format, cut short, over `MAX_PIXELS`, or with float pixels.
    """
    check_header(encoded)
    try:
        image = datasets.Image().decode_example({"bytes": encoded, "path": None})
        return _to_rgb(image)
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise whatever their parsers do: SyntaxError, struct.error, OSError
        raise ValueError(f"it cannot be decoded ({error})") from error


def check_header(encoded: bytes) -> tuple[int, int]:
    """Width and height, after refusing what is no image or too large, before any pixel is decoded."""
    if is_pointer(encoded):
        raise ValueError(POINTER)
    PIL.Image.init()
    known = [name for name in _FORMATS if name in PIL.Image.OPEN]
    try:
        with PIL.Image.open(BytesIO(encoded), formats=known) as header:
            width, height = header.size
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"it is too large, a possible decompression bomb ({error})") from error
    except Exception as error:  # as in decode_image
        reason = "" if isinstance(error, PIL.UnidentifiedImageError) else f" ({error})"
        raise ValueError(f"it is no readable image{reason}; allowed are {', '.join(known)}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed")
    return width, height


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "F":
        raise ValueError(
            "it has floating-point pixels, which have no agreed range and may be NaN; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255; its high byte is what other readers show.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"it has integer pixels from {values.min()} to {values.max()}, allowed are 0 to 65535; save it "
                "with 8 or 16 bits"
            )
        image = PIL.Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about the transparency it drops
    return image.convert("RGB")
