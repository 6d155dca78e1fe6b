"""Image files of any mode as red, green and blue, with Pillow."""

from pathlib import Path

import numpy as np
from PIL import Image


def read_in_colour(path: Path) -> Image.Image:
    """One file; transparency becomes white, 16 bits become 8.

    Raises:
        ValueError: the file is no image that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            return in_colour(opened)
    # A picture of more than 179 million pixels is an error of Pillow's that is none of the others.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image: {error}. Replace or remove the file.") from None


def in_colour(image: Image.Image) -> Image.Image:
    """An opened image in mode RGB.

    Raises:
        OSError, ValueError: the file is damaged.
    """
    if image.mode.startswith("I"):  # 16 bits, which Pillow reads as I where a file has them signed
        # Pillow itself would cut everything above 255 off.
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")  # reads the pixels, if nothing has
