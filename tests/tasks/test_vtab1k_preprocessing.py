"""Pictures of every mode and size, against what they show and against transformers' own processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from tasks.vtab1k.preprocessing import INTERPOLATIONS, STATISTICS, Preprocessing

RED, WHITE = (255, 0, 0), (255, 255, 255)


def colour(path, size: int = 4) -> tuple[int, ...]:
    """The one colour of a picture, as it is read."""
    pixels = Preprocessing(size).read(path)
    assert (pixels.shape, pixels.dtype) == ((3, size, size), torch.uint8)
    assert (pixels == pixels[:, :1, :1]).all()
    return tuple(pixels[:, 0, 0].tolist())


def saved(folder, image: Image.Image, name: str = "a.png", **options):
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (4, 4), (300, 200)])
def test_any_size(tmp_path, size):
    assert colour(saved(tmp_path, Image.new("RGB", size, RED))) == RED


@pytest.mark.parametrize(
    ("mode", "value", "seen"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, WHITE),
        ("LA", (100, 0), WHITE),
        ("LA", (100, 255), (100, 100, 100)),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),  # a fifth of black over white
        ("I;16", 100 * 257, (100, 100, 100)),  # not cut off at 255, as Pillow's own conversion does
        ("I;16", 65535, WHITE),
    ],
)
def test_modes(tmp_path, mode, value, seen):
    assert colour(saved(tmp_path, Image.new(mode, (5, 5), value))) == seen


def test_a_palette_with_and_without_a_transparent_colour(tmp_path):
    image = Image.new("P", (5, 5), 1)
    image.putpalette([0, 0, 0, *RED])
    assert colour(saved(tmp_path, image)) == RED
    assert colour(saved(tmp_path, image, transparency=1)) == WHITE


def test_a_transparent_colour_of_a_picture_without_alpha(tmp_path):
    assert colour(saved(tmp_path, Image.new("RGB", (5, 5), RED), transparency=RED)) == WHITE


def test_four_inks(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg", quality=95)
    assert colour(path) == pytest.approx(RED, abs=3)  # JPEG


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError) as error:
        Preprocessing(4).read(tmp_path / "a.jpg")
    assert str(error.value).startswith(f"{tmp_path / 'a.jpg'} is not a readable image: ")
    assert str(error.value).endswith("Replace or remove the file.")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_that_is_cut_off(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), f"a.{suffix}")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"is not a readable image: .*truncated"):
        Preprocessing(4).read(path)


def test_an_image_of_absurd_size(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="is not a readable image: Image size"):
        Preprocessing(4).read(saved(tmp_path, Image.new("L", (5, 5))))


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_the_same_as_transformers(tmp_path, interpolation, statistics):
    mean, deviation = STATISTICS[statistics]
    resample = Image.Resampling[interpolation.upper()]
    theirs = ViTImageProcessorPil(image_mean=mean, image_std=deviation, resample=resample)
    ours = Preprocessing(224, interpolation=interpolation, statistics=statistics)
    noise = np.random.default_rng(0).integers(0, 256, (150, 330, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    got = ours.normalise(ours.read(saved(tmp_path, image))[None])
    # Pillow resizes both to the same whole numbers; what follows is two roundings of float32 at up to 2.6.
    assert torch.allclose(got, expected, rtol=0, atol=1e-6)


def test_the_proportions_are_not_kept(tmp_path):
    image = Image.new("RGB", (40, 10), RED)
    image.paste(WHITE, (20, 0, 40, 10))
    pixels = Preprocessing(4, interpolation="nearest").read(saved(tmp_path, image))
    assert pixels[2].tolist() == [[0, 0, 255, 255]] * 4


def test_statistics_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1)
    assert Preprocessing(1).normalise(pixels).flatten().tolist() == pytest.approx([-1, 1, -0.6])
    by_hand = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert Preprocessing(1, statistics="imagenet").normalise(pixels).flatten().tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "task.data.image_size must be at least 1, got 0."),
        (
            {"interpolation": "cubic"},
            f"task.data.interpolation is 'cubic'. Choose {', '.join(INTERPOLATIONS)}.",
        ),
        ({"statistics": "clip"}, "task.data.statistics is 'clip'. Choose half or imagenet."),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError) as error:
        Preprocessing(**{"image_size": 4} | options)
    assert str(error.value) == message
