"""Pretrains the miniature's ViT: `python -m miniature.pretrain_vit [--steps n] [--output folder]`.

As ViT was on ImageNet-21k (arXiv 2010.11929): it learns to name what a picture shows, one class for each kind. A kind
is a colour and a shape of the world, 64 of them. The head that names kinds is thrown away; what stays has learned
what kinds need, not what `vtab.py` asks for.

A picture shows a training scene as a snapshot would: the thing in its place, near or far, a little turned, anywhere in
the picture; in some, smaller things of other kinds stand beside it. The number of dots is not drawn.

Positions begin as sines and cosines of row and column (as in MAE, arXiv 2111.06377) and matrices four times as large
as the library's 0.02, which is meant for a width of 768: both shorten the long stretch in which colours are told and
shapes are not.

Recipe: Muon for the matrices of the layers, AdamW for the rest; warm-up, then half a cosine.

Ends with the share of the validation scenes whose kind is named, on the weights as stored (fp16).
"""

import logging
import random
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import lightning
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from miniature import figures
from miniature.pretraining import Pretraining, half_cosine, pretrain, run, write_folder
from miniature.scenes import DARK, GROUNDS, LIGHT, PAINTS, SIZE, Scene, draw_place, scenes_of
from miniature.world import VALUES

HERE = Path(__file__).parent
SEED = 2
STEPS = 1800
BATCH_SIZE = 64
VALIDATION_SEED = 7
KINDS = tuple(product(VALUES["colour"], VALUES["shape"]))
BESIDE_SHARE = 0.4  # of the pictures with smaller things beside
RADIUS = (11, 22)  # pixels
TURN = 30  # degrees, either way
MUON_RATE, ADAMW_RATE, WARMUP_STEPS = 0.02, 2e-3, 30
LOG_EVERY = 50

log = logging.getLogger(__name__)


def configuration() -> ViTConfig:
    """The shape: 472,416 parameters without the head, 0.95 MB in fp16."""
    return ViTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,
        num_labels=len(KINDS),
    )


def positions(config: ViTConfig) -> Tensor:
    """Sines and cosines of row and column of every patch, [patches, C]; waves are 6 to 500 patches long."""
    side, waves = config.image_size // config.patch_size, config.hidden_size // 4
    angles = torch.arange(side)[:, None] / 100 ** (torch.arange(waves) / waves)
    along = torch.cat((angles.sin(), angles.cos()), dim=1)  # [side, C / 2]
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def paint(
    image: Image.Image, colour: str, shape: str, centre: tuple[float, float], radius: float, angle: float
) -> None:
    """Draws one thing of the world on a picture, in place."""
    outline = DARK if colour in LIGHT else (245, 245, 245)
    corners = figures.corners(shape, centre, radius, angle)
    ImageDraw.Draw(image).line([*corners, *corners[:2]], fill=outline, width=3, joint="curve")
    image.paste(PAINTS[colour], mask=figures.mask(image.width, shape, centre, radius, angle))


def view(scene: Scene, generator: random.Random) -> Image.Image:
    """A snapshot of a scene, RGB."""
    image = Image.new("RGB", (SIZE, SIZE), GROUNDS[scene.place][0])
    draw_place(ImageDraw.Draw(image), scene.place, generator)
    radius = generator.uniform(*RADIUS)
    if generator.random() < BESIDE_SHARE:
        for _ in range(generator.randint(1, 3)):
            colour, shape = generator.choice(KINDS)
            centre = generator.uniform(4, SIZE - 4), generator.uniform(4, SIZE - 4)
            paint(image, colour, shape, centre, radius * generator.uniform(0.3, 0.55), generator.uniform(-TURN, TURN))
    edge = radius * 0.9
    centre = generator.uniform(edge, SIZE - edge), generator.uniform(edge, SIZE - edge)
    paint(image, scene.colour, scene.shape, centre, radius, generator.uniform(-TURN, TURN))
    return image


def pixel_values(images: list[Image.Image]) -> Tensor:
    """[images, 3, SIZE, SIZE], as the processor gives them."""
    made = processor()
    mean, std = (torch.tensor(values)[:, None, None] for values in (made.image_mean, made.image_std))
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255 - mean) / std


def batch_of(scenes: list[Scene], generator: random.Random) -> tuple[Tensor, Tensor]:
    """A view of each scene and its kind, [scenes, 3, SIZE, SIZE] and [scenes]."""
    kinds = torch.tensor([KINDS.index((scene.colour, scene.shape)) for scene in scenes])
    return pixel_values([view(scene, generator) for scene in scenes]), kinds


class Views(IterableDataset):
    """Batches of new views of random training scenes."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator, scenes = random.Random(SEED), scenes_of("train")
        for _ in range(self.steps):
            yield batch_of(generator.sample(scenes, BATCH_SIZE), generator)


def naming(model: ViTForImageClassification, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of the kind."""
    pixels, kinds = batch
    return cross_entropy(model(pixel_values=pixels).logits, kinds)


@torch.no_grad()
def accuracy(model: ViTForImageClassification) -> float:
    """Share of the validation scenes whose kind is named; chance is 1 / 64."""
    pixels, kinds = batch_of(list(scenes_of("val")), random.Random(VALIDATION_SEED))
    return float((model(pixel_values=pixels).logits.argmax(dim=-1) == kinds).float().mean())


def save_without_head(model: ViTForImageClassification, folder: Path) -> None:
    """Writes the ViT inside the class with a head, so that names begin with `vit.` as in published weights."""
    # What a new head starts from is the library's own, not this pretraining's.
    model.config.num_labels, model.config.initializer_range = 2, 0.02
    names = {name: value for name, value in model.state_dict().items() if name.startswith("vit.")}
    model.save_pretrained(folder, state_dict=names)


def main(steps: int, output: Path) -> None:
    """Pretrains, saves, and logs the share of kinds named."""
    lightning.seed_everything(SEED)
    model = ViTForImageClassification(configuration())
    with torch.no_grad():
        model.vit.embeddings.position_embeddings[0, 1:] = positions(model.config)
    log.info("%d parameters without the head", sum(p.numel() for p in model.vit.parameters()))
    pretraining = Pretraining(
        model, naming, half_cosine(steps, warmup_steps=WARMUP_STEPS), steps=steps, muon_rate=MUON_RATE,
        adamw_rate=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.01, log_every=LOG_EVERY,
    )  # fmt: skip
    pretrain(pretraining, Views(steps))
    model = model.half()
    write_folder(output, [partial(save_without_head, model), processor().save_pretrained])
    log.info("kinds named, val: %.3f", accuracy(model.float().eval()))  # as stored


if __name__ == "__main__":
    run(main, description=__doc__, steps=STEPS, output=HERE / "vit")
