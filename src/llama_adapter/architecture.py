"""The shapes of models and devices, as plain numbers: what plans and throughput are computed from.

A model's shape is declared in conf/model/, and read from its weights' folder where that is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5}  # per weight of a quantised projection; scales add a few per cent


@dataclass
class Architecture:
    """The shape of a frozen model, as far as its parameters and memory depend on it.

    Args:
        hidden_size: C.
        intermediate_size: width of the MLP.
        layers: N.
        heads: H.
        key_value_heads: G; fewer than H where they are grouped.
        head_size: D.
        vocabulary_size: V.
        tied_embeddings: whether the head is the embedding.
        projection_biases: biases on query, key and value (Qwen2).
        output_bias: a bias on the attention's output projection too (LLaMA with `attention_bias`).
        mlp_biases: biases in the MLP (LLaMA with `mlp_bias`).
        max_positions: the longest sequence it was made for; 0 where its length is fixed (images).
        encoder_parameters: of an encoder without its head; 0 for a decoder, whose parameters follow from its shape.
        image_size, patch_size: pixels of a side; 0 for text.
        head_features: vectors [C] of an image or a token that an encoder's head reads.
    """

    hidden_size: int = 0
    intermediate_size: int = 0
    layers: int = 0
    heads: int = 0
    key_value_heads: int = 0
    head_size: int = 0
    vocabulary_size: int = 0
    tied_embeddings: bool = False
    projection_biases: bool = False
    output_bias: bool = False
    mlp_biases: bool = False
    max_positions: int = 0
    encoder_parameters: int = 0
    image_size: int = 0
    patch_size: int = 0
    head_features: int = 1

    @classmethod
    def from_config(cls, config) -> "Architecture":
        """From a transformers config."""
        from llama_adapter.backbones import family_of  # torch and transformers take seconds to import

        family, heads = family_of(config), config.num_attention_heads
        shape = {
            "hidden_size": config.hidden_size,
            "intermediate_size": getattr(config, "intermediate_size", 0) or config.hidden_size * config.mlp_ratio,
            "layers": config.num_hidden_layers,
            "heads": heads,
            "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "vocabulary_size": getattr(config, "vocab_size", 0),
        }
        if family.encoder:
            unused = config.pad_token_id + 1 if family.positions_after_padding else 0
            return cls(
                **shape,
                key_value_heads=heads,
                max_positions=getattr(config, "max_position_embeddings", unused) - unused,
                encoder_parameters=_count_parameters(config),
                image_size=getattr(config, "image_size", 0),
                patch_size=getattr(config, "patch_size", 0),
                head_features=family.head_features,
            )
        return cls(
            **shape,
            key_value_heads=config.num_key_value_heads,
            tied_embeddings=config.tie_word_embeddings,
            projection_biases=family.projection_biases or getattr(config, "attention_bias", False),
            output_bias=getattr(config, "attention_bias", False),
            mlp_biases=getattr(config, "mlp_bias", False),
            max_positions=config.max_position_embeddings,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's projections: what quantisation packs."""
        attention = self.hidden_size * self.head_size * (2 * self.heads + 2 * self.key_value_heads)
        return attention + self.mlp_projections * self.hidden_size * self.intermediate_size

    @property
    def mlp_projections(self) -> int:
        """Gate, up and down in a decoder; up and down in an encoder."""
        return 2 if self.encoder_parameters else 3

    @property
    def image_tokens(self) -> int:
        """Patches and the class token of an image."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def head_parameters(self, outputs: int) -> int:
        """Of a linear head with a bias."""
        return outputs * (self.head_features * self.hidden_size + 1)

    @property
    def parameters(self) -> int:
        if self.encoder_parameters:
            return self.encoder_parameters
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden_size

    @property
    def layer_parameters(self) -> int:
        """All of one layer: projections, biases and two norms."""
        width, mlp = self.hidden_size, self.intermediate_size
        if self.encoder_parameters:  # all projections have biases, as have the norms
            return self.layer_weights + (2 * self.heads + 2 * self.key_value_heads) * self.head_size + mlp + 5 * width
        biases = self.head_size * (self.heads + 2 * self.key_value_heads) if self.projection_biases else 0
        biases += (width if self.output_bias else 0) + (2 * mlp + width if self.mlp_biases else 0)
        return self.layer_weights + biases + 2 * width

    @property
    def embedding_parameters(self) -> int:
        """Of the words' embeddings, and as many of a decoder's head."""
        return self.vocabulary_size * self.hidden_size


@dataclass
class VisionConfig:
    """A CLIP tower and the projection of its features to what is added to the prompts (Eq. 9-10 of the paper).

    Args:
        path: folder of a CLIP model, or of its vision tower, in the Hugging Face layout; empty for text alone.
        channels: of the tower's layers; for plans without the weights.
        layers: whose class tokens are read, from 1 to the tower's number of layers.
        patch_mean: whether the mean of the other tokens of each layer is read too.
        projection_width: of the bottleneck; 67 gives LLaMA-7B with ViT-L/14 the paper's 0.56M parameters.
    """

    path: str = ""
    channels: int = 0
    layers: list[int] = field(default_factory=list)
    patch_mean: bool = False
    projection_width: int = 67

    def __post_init__(self) -> None:
        if self.projection_width < 1:
            raise ValueError(f"model.vision.projection_width must be at least 1, got {self.projection_width}.")

    def parameters(self, hidden_size: int) -> int:
        """Of the projection: two linear layers with biases."""
        features = len(self.layers) * self.channels * (2 if self.patch_mean else 1)
        return (features + 1) * self.projection_width + (self.projection_width + 1) * hidden_size

    @property
    def tower_parameters(self) -> int:
        """Of the tower, about: 12 C^2 in each layer up to the highest that is read (4 C^2 attention, 8 C^2 MLP)."""
        return max(self.layers, default=0) * 12 * self.channels**2


POSITIVE = (  # of `Hardware`, where they are known
    "peak_tflops",
    "planned_tflops",
    "float32_tflops",
    "memory_bandwidth",
    "link_bandwidth",
    "network_bandwidth",
)


@dataclass
class Hardware:
    """What the devices of a trainer are.

    Args:
        name: for people.
        memory_gib: memory of one device; 0 when it is not known.
        peak_tflops: of one device in the precision of the matrix products, in 10^12 floating point operations per
            second; None for unknown.
        planned_tflops: what a plan takes where `peak_tflops` is None; None gives no time.
        float32_tflops: the peak of products of float32 weights; None where it is the same.
        utilization: share of the peak that a plan takes a step to reach.
        memory_bandwidth: of one device, in 10^9 bytes per second; None leaves it out of the plan's time.
        link_bandwidth: what one device receives from the others of its machine, in 10^9 bytes per second.
        network_bandwidth: what one machine receives from the others, all its adapters together, in 10^9 bytes per
            second.
        threads: of the CPU that torch computes with; None for as many as it chooses.
    """

    name: str = ""
    memory_gib: float = 0.0
    peak_tflops: float | None = None
    planned_tflops: float | None = None
    float32_tflops: float | None = None
    utilization: float = 0.4
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None
    network_bandwidth: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"hardware.threads must be at least 1, or null for all, got {self.threads}.")
        for key in POSITIVE:
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"hardware.{key} must be above 0, or null where unknown, got {value}.")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"hardware.utilization must be above 0 and at most 1, got {self.utilization}.")
        if not self.memory_gib >= 0:
            raise ValueError(f"hardware.memory_gib must be at least 0, which is unknown, got {self.memory_gib}.")

    def tflops_in(self, dtype: str) -> float | None:
        """The peak that a plan takes for weights of this dtype, in 10^12 operations per second."""
        of_float32 = self.float32_tflops if dtype == "float32" else None
        return of_float32 or self.peak_tflops or self.planned_tflops


def _count_parameters(config) -> int:
    """Of an encoder without pooler and head, made without memory for its weights."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("pooler."))


def difference(architecture: Architecture, declared: Mapping[str, object]) -> str:
    """Where a loaded model's shape differs from the one its config file declares; empty when it does not."""
    pairs = [(f.name, getattr(architecture, f.name), declared.get(f.name)) for f in fields(architecture)]
    return ", ".join(f"{name} is {found}, declared {said}" for name, found, said in pairs if said and said != found)
