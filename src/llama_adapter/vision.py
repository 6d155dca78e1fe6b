"""Images as prompts: features of a frozen CLIP tower, projected to one vector that is added to every prompt.

LLaMA-Adapter (arXiv 2303.16199), Eq. 9-10: the class tokens of several layers of a frozen image encoder, concatenated
over channels, pass a learnable projection to I in R^{1 x C}; P^v = P + repeat(I, K), the same I in all L layers. The
tower runs once per image, in training as in generation, and not at all where features were computed before.

Not published and therefore keys: which layers, the projection's width, and that features are normalised before it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

from llama_adapter.attach import adapters, device_of_trained
from llama_adapter.examples import Example, image_columns


class ImagePrompt(nn.Module):
    """From images, or their features, to what is added to the prompts of each example.

    Args:
        config: of the tower.
        tower: frozen; None where all images come as features. It is no submodule: nothing of it is trained, saved or
            counted.
        layers, patch_mean, projection_width: see `architecture.VisionConfig`.
        hidden_size: C of the language model.
    """

    def __init__(
        self,
        config: CLIPVisionConfig,
        tower: CLIPVisionModel | None = None,
        *,
        hidden_size: int,
        layers: Sequence[int],
        patch_mean: bool = False,
        projection_width: int = 67,
    ) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        if not layers or not all(1 <= layer <= depth for layer in layers) or len(set(layers)) < len(layers):
            raise ValueError(
                f"model.vision.layers is {list(layers)}, but the tower has {depth} layers. Choose different ones of 1 "
                f"to {depth}."
            )
        self._tower = (tower,)  # a tuple hides it from nn.Module
        self.layers = tuple(layers)
        self.patch_mean = patch_mean
        self.feature_size = len(layers) * config.hidden_size * (2 if patch_mean else 1)
        self.projection = nn.Sequential(
            nn.LayerNorm(self.feature_size, elementwise_affine=False),
            nn.Linear(self.feature_size, projection_width),
            nn.GELU(),
            nn.Linear(projection_width, hidden_size),
        )

    @property
    def tower(self) -> CLIPVisionModel:
        if self._tower[0] is None:
            raise ValueError("The tower was not loaded, but a batch has pixel_values. Give image_features alone.")
        return self._tower[0]

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """What the tower says of images, before anything that is trained.

        Args:
            pixel_values: [I, 3, height, width], of the tower's processor.

        Returns:
            [I, F], float32.
        """
        device = self.projection[1].weight.device
        if not len(pixel_values):
            return torch.zeros(0, self.feature_size, device=device)
        tower = self.tower.to(device)
        output = tower(pixel_values.to(device, tower.dtype), output_hidden_states=True)
        tokens = [output.hidden_states[layer] for layer in self.layers]  # [I, 1 + patches, channels] each
        parts = [states[:, 0] for states in tokens]
        if self.patch_mean:
            parts += [states[:, 1:].mean(dim=1) for states in tokens]
        return torch.cat(parts, dim=-1).float()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The context of every example of a batch with `examples.image_columns`.

        Returns:
            [N, C], float32: the mean over an example's images, zeros where it has none.
        """
        features = batch["image_features"] if "image_features" in batch else self.features(batch["pixel_values"])
        projected = self.projection(features)  # [I, C]
        owners, count = batch["image_of"], int(batch["example_count"])
        images = torch.bincount(owners, minlength=count).clamp(min=1)[:, None]
        return torch.zeros(count, projected.shape[1], device=projected.device).index_add(0, owners, projected) / images


def attach_images(model: PreTrainedModel, image_prompt: ImagePrompt) -> PreTrainedModel:
    """Lets an adapted model, or one that an adapter is loaded into later, take images; its projection is trained.

    Returns:
        The same model, with the submodule `image_prompt`.
    """
    model.image_prompt = image_prompt.to(device_of_trained(model))
    image_prompt.projection.requires_grad_(bool(adapters(model)))
    return model


def prompt_context(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor | None:
    """[N, C] for a batch with images and a model that takes them; None for text.

    Raises:
        ValueError: the batch has images, but the model does not take them.
    """
    if "image_of" not in batch:
        return None
    if not hasattr(model, "image_prompt"):
        raise ValueError(
            "The batch has images, but the model has no image_prompt. Call attach_images(model, ...) first."
        )
    return model.image_prompt(batch)


@torch.no_grad()
def image_contexts(
    model: PreTrainedModel, items: Sequence, columns_of: Callable[[Sequence], list[Example]], *, together: int = 64
) -> Tensor | None:
    """What the images of many examples add to their prompts, before a generation.

    Args:
        model: that takes images.
        items: anything that `columns_of` turns into the image columns of examples.
        columns_of: is called for a few items at a time, so that few images are held.
        together: examples whose images pass the tower together.

    Returns:
        [N, C], or None for no items.
    """
    parts = []
    for start in range(0, len(items), together):
        columns = image_columns(columns_of(items[start : start + together]))
        parts.append(prompt_context(model, {name: column.to(model.device) for name, column in columns.items()}))
    return torch.cat(parts) if parts else None


def load_tower(path: str | Path, dtype: torch.dtype = torch.float32) -> CLIPVisionModel:
    """A frozen vision tower from a CLIP model or a tower alone.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: it holds another kind of model.
    """
    tower_config(path)
    return CLIPVisionModel.from_pretrained(path, dtype=dtype, local_files_only=True).requires_grad_(False).eval()


def load_processor(path: str | Path) -> "CLIPImageProcessorPil":  # noqa: F821
    """The tower's own resizing and normalisation, with Pillow."""
    from transformers import CLIPImageProcessorPil  # training on text needs no Pillow

    tower_config(path)
    return CLIPImageProcessorPil.from_pretrained(path, local_files_only=True)


def tower_config(path: str | Path) -> CLIPVisionConfig:
    """What the tower's folder says of its shape.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: it holds another kind of model.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(
            f"No vision tower at {path}. Set model.vision.path=<folder> (Hugging Face layout of a CLIP model), or "
            "LLAMA_ADAPTER_WEIGHTS to the folder that holds it."
        )
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    if config.model_type not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"{path} holds a {config.model_type}. model.vision.path takes a CLIP model or its vision tower."
        )
    return config.vision_config if config.model_type == "clip" else config


def read_image(path: Path, processor: "CLIPImageProcessorPil") -> Tensor:  # noqa: F821
    """One image file of any mode as the tower takes it, [3, height, width]; transparency becomes white.

    Raises:
        ValueError: the file is no image that Pillow reads.
    """
    from llama_adapter.image_files import read_in_colour  # training on text needs no Pillow

    return processor(read_in_colour(path), return_tensors="pt")["pixel_values"][0]
