"""From an image file to what a ViT takes, with Pillow and torch: one direct resize to a square, then normalisation.

The common protocol of VTAB-1k resizes the whole picture to 224 x 224 without keeping its proportions and without a
crop or a flip, in training as in testing: some labels are positions, orientations and counts. Published protocols
differ in interpolation and statistics, so both are keys.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llama_adapter.image_files import read_in_colour

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # Pillow's

# Mean and standard deviation of red, green and blue, for values from 0 to 1.
STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # what Google's ViTs were pretrained with
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Preprocessing:
    """Reads image files of any mode and size as pictures of one size.

    Args:
        image_size: height and width in pixels.
        interpolation: one of `INTERPOLATIONS`.
        statistics: a key of `STATISTICS`.
    """

    def __init__(self, image_size: int, *, interpolation: str = "bilinear", statistics: str = "half") -> None:
        if image_size < 1:
            raise ValueError(f"task.data.image_size must be at least 1, got {image_size}.")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"task.data.interpolation is {interpolation!r}. Choose {', '.join(INTERPOLATIONS)}.")
        if statistics not in STATISTICS:
            raise ValueError(f"task.data.statistics is {statistics!r}. Choose {' or '.join(STATISTICS)}.")
        self.image_size = image_size
        self.interpolation = interpolation
        self.statistics = statistics
        mean, deviation = (torch.tensor(values)[:, None, None] for values in STATISTICS[statistics])
        self.scale, self.shift = 1 / (255 * deviation), -mean / deviation  # [3, 1, 1] each

    def read(self, path: Path) -> Tensor:
        """One file, resized: [3, size, size], uint8.

        Raises:
            ValueError: the file is no image that Pillow reads.
        """
        size = (self.image_size, self.image_size)
        picture = read_in_colour(path)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling[self.interpolation.upper()])
        values = np.array(picture)  # [size, size, 3]
        return torch.from_numpy(values).permute(2, 0, 1).contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the model takes.

        Args:
            pixels: [..., 3, size, size], uint8.

        Returns:
            The same shape, float32.
        """
        return pixels.float().mul_(self.scale).add_(self.shift)
