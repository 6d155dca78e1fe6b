"""Pretrains the miniature's vision tower: `python -m miniature.pretrain_clip [--steps n] [--output folder]`.

As CLIP was (arXiv 2103.00020): two towers, one for pictures and one for captions, learn to tell which caption belongs
to which picture of a batch. Only the vision tower is kept. It sees pictures of the training scenes alone.

A random batch would teach colour and place and little else, since two scenes of it seldom differ in shape or number
alone. So a batch is made of families: scenes that differ in one attribute.

Recipe: Muon for the matrices of the layers, AdamW for the rest; warm-up, then half a cosine.

Ends with a retrieval test on the validation scenes, on the weights as stored (fp16): the share of pictures whose own
caption is the nearest of the eight that differ in one attribute.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import IterableDataset
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from miniature.captions import WHOLE, caption
from miniature.pretraining import Pretraining, half_cosine, pretrain, run, write_folder
from miniature.scenes import DRAWN, SIZE, Scene, draw, scenes_of
from miniature.world import VALUES

HERE = Path(__file__).parent
SEED = 1
STEPS = 2600
FAMILIES = 8  # per batch
FAMILY_TURNS = ("shape", "number", "shape", "place", "shape", "colour")  # shapes are the hardest to tell apart
PICTURES_PER_SCENE = 3
CAPTION_LENGTH = 16  # ids; the longest caption has 12 words
MUON_RATE, ADAMW_RATE, WARMUP_STEPS = 0.02, 2e-3, 30
LOG_EVERY = 49  # not a multiple of six, so that every kind of family is logged

log = logging.getLogger(__name__)


def configuration(vocabulary_size: int) -> CLIPConfig:
    """Shape of both towers; the vision tower has 472,512 parameters, 0.95 MB in fp16."""
    vision = CLIPVisionConfig(
        image_size=SIZE, patch_size=8, hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4
    )
    text = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CAPTION_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)


def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


class Captioner:
    """Captions to ids: [captions, CAPTION_LENGTH]; 0 begins a caption, 1 ends it and fills the row."""

    def __init__(self) -> None:
        every_value = [Scene(*values) for values in zip(*map(VALUES.get, DRAWN), strict=True)]
        texts = [caption(scene, wording) for scene in every_value for wording in WHOLE]
        words = sorted({word for text in texts for word in text.rstrip(".").split()})
        self.ids = {word: number for number, word in enumerate(words, start=2)}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = torch.ones(len(texts), CAPTION_LENGTH, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [0, *(self.ids[word] for word in text.rstrip(".").split())]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def family(scene: Scene, attribute: str, among: set[Scene]) -> list[Scene]:
    """The scenes that differ from this one in one attribute at most, itself included."""
    return [other for value in VALUES[attribute] if (other := replace(scene, **{attribute: value})) in among]


class Pictures:
    """Every picture of a split, drawn once: [scenes x per_scene, SIZE, SIZE, 3] bytes, turned to pixel values."""

    def __init__(self, split: str, per_scene: int) -> None:
        self.scenes, self.per_scene = scenes_of(split), per_scene
        self.number_of = {scene: number for number, scene in enumerate(self.scenes)}
        drawn = [
            np.asarray(draw(scene, seed=number * per_scene + copy))
            for number, scene in enumerate(self.scenes)
            for copy in range(per_scene)
        ]
        self.drawn = torch.from_numpy(np.stack(drawn))
        made = processor()
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (made.image_mean, made.image_std))

    def __call__(self, scenes: Sequence[Scene], generator: random.Random) -> Tensor:
        """A picture of each scene, [scenes, 3, SIZE, SIZE], as the processor gives it."""
        rows = [self.number_of[scene] * self.per_scene + generator.randrange(self.per_scene) for scene in scenes]
        return (self.drawn[rows].permute(0, 3, 1, 2) / 255 - self.mean) / self.std


class FamilyBatches(IterableDataset):
    """Batches of about FAMILIES x 6 pictures with a caption of each; no scene twice."""

    def __init__(self, pictures: Pictures, captioner: Captioner, steps: int) -> None:
        self.pictures, self.captioner, self.steps = pictures, captioner, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator, among = random.Random(SEED), set(self.pictures.scenes)
        for step in range(self.steps):
            attribute = FAMILY_TURNS[step % len(FAMILY_TURNS)]
            scenes: list[Scene] = []
            for start in generator.sample(self.pictures.scenes, FAMILIES):
                scenes += [scene for scene in family(start, attribute, among) if scene not in scenes]
            texts = [caption(scene, generator.choice(WHOLE)) for scene in scenes]
            yield self.pictures(scenes, generator), self.captioner(texts)


def contrast(model: CLIPModel, batch: tuple[Tensor, Tensor]) -> Tensor:
    """CLIP's loss: cross entropy of the right caption for each picture and of the right picture for each caption."""
    pixels, captions = batch
    return model(input_ids=captions, pixel_values=pixels, return_loss=True).loss


@torch.no_grad()
def retrieval_accuracy(model: CLIPModel, captioner: Captioner) -> dict[str, float]:
    """Share of validation pictures whose nearest caption is their own, among the eight that differ in one attribute."""
    pictures, generator = Pictures("val", 1), random.Random(SEED)
    every = {Scene(*values) for values in product(*map(VALUES.get, DRAWN))}
    shown = normalize(model.get_image_features(pictures(pictures.scenes, generator)).pooler_output, dim=-1)
    accuracy = {}
    for attribute in DRAWN:
        right = 0
        for scene, picture in zip(pictures.scenes, shown, strict=True):
            options = family(scene, attribute, every)
            ids = captioner([caption(option, WHOLE[0]) for option in options])
            said = normalize(model.get_text_features(ids).pooler_output, dim=-1)  # [8, C]
            right += options[int((said @ picture).argmax())] == scene
        accuracy[attribute] = right / len(pictures.scenes)
    return accuracy


def vision_tower(model: CLIPModel) -> CLIPVisionModel:
    """The half that is kept."""
    tower = CLIPVisionModel(model.config.vision_config)
    states = model.vision_model.state_dict()
    tower.load_state_dict({name.removeprefix("vision_model."): state for name, state in states.items()})
    return tower


def main(steps: int, output: Path) -> None:
    """Pretrains, saves, and logs the retrieval accuracy."""
    lightning.seed_everything(SEED)
    captioner = Captioner()
    model = CLIPModel(configuration(len(captioner.ids) + 2))
    log.info("%d parameters in the vision tower", sum(p.numel() for p in model.vision_model.parameters()))
    pretraining = Pretraining(
        model, contrast, half_cosine(steps, warmup_steps=WARMUP_STEPS), steps=steps, muon_rate=MUON_RATE,
        adamw_rate=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.01, log_every=LOG_EVERY,
    )  # fmt: skip
    pretrain(pretraining, FamilyBatches(Pictures("train", PICTURES_PER_SCENE), captioner, steps))
    model = model.half()
    write_folder(output, [vision_tower(model).half().save_pretrained, processor().save_pretrained])
    accuracy = retrieval_accuracy(model.float().eval(), captioner)  # as stored
    log.info("retrieval, val: %s", ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()))


if __name__ == "__main__":
    run(main, description=__doc__, steps=STEPS, output=HERE / "clip")
