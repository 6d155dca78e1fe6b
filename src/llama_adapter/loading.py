"""Loads a frozen backbone from the layouts people have: a Hugging Face folder, Meta's own files, or a name on the hub.

Every loaded model is one of transformers' in evaluation mode with nothing trainable. What is wrong with the files is
said before weights are read where that is possible, and nothing is ever filled in with random numbers but a new head.
"""

import logging
import pickle
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llama_adapter.backbones import family_of, head_parameters
from llama_adapter.fingerprint import files_by_tensor, fingerprint, fingerprint_of_path
from llama_adapter.meta_checkpoint import MetaCheckpoint, is_meta_folder
from llama_adapter.quantization import check_quantization, quantize
from llama_adapter.tokenizer import is_hub_id, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPECTED = (
    "a folder with config.json and model.safetensors (Hugging Face; sharded or .bin too), or one with params.json and "
    "consolidated.00.pth (Meta)"
)
logger = logging.getLogger(__name__)


def load_backbone(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    quantization: str | None = None,
    device: str | torch.device | None = None,
    tokenizer: str | Path | None = None,
    model_class: type = AutoModelForCausalLM,
    classes: int | None = None,
) -> PreTrainedModel:
    """A frozen model: a causal LM, or an encoder with a new head.

    Args:
        path: a folder in the Hugging Face or in Meta's layout, or a hub id `org/name`.
        dtype: of all weights that are not quantised: `float32`, `bfloat16` or `float16`.
        quantization: `int8` or `nf4` for the linear layers of the decoder layers; embeddings and head keep `dtype`.
        device: where the weights are put; the CPU when not given (a Trainer moves them later). `meta`: nowhere yet;
            each device will read its shard of them (`sharding.shard`). For a decoder in safetensors files, whose names
            and shapes are checked now.
        tokenizer: where the model's tokenizer is, to check that the embeddings have a row for each of its ids.
        model_class: of transformers, with the head that is wanted (`heads.HEADS`). An encoder's head is new unless the
            files hold the same one; what they hold for another task is left out.
        classes: of a classification head.

    Returns:
        The model, with `backbone_fingerprint` set, the same from either layout. Tensor by tensor the weights
        are read, converted and put in their place, so there is never a second copy of them in the program's own memory.
        (A Hugging Face file stays mapped while it is read: pages that the system takes back when it needs them.)

    Raises:
        FileNotFoundError: nothing is there, or a file is missing.
        ValueError: an unknown dtype, quantization or family; files that are damaged, hold code or do not fit together.
    """
    dtype = _dtype(dtype)
    device = torch.device(device or "cpu")
    check_quantization(quantization)
    config = backbone_config(path)
    if family_of(config).encoder == (model_class is AutoModelForCausalLM):
        kind = "an encoder, which has no next token" if family_of(config).encoder else "a decoder"
        raise ValueError(
            f"{path} holds a {config.model_type}, {kind}, but task.head asks for another output. Choose a model that "
            "fits the task (model=...)."
        )
    if classes is not None:
        config.num_labels = classes
    if tokenizer is not None:
        _check_tokenizer(config, tokenizer)
    if device.type == "meta":
        return _without_weights(path, config, dtype, model_class)
    base_fingerprint = fingerprint_of_path(path)
    # What will be quantised goes to the device afterwards, layer by layer.
    first_device = device if quantization is None else torch.device("cpu")
    if _is_meta(path):
        model = _load_meta(path, config, dtype, first_device)
    else:
        model = _load_hugging_face(path, config, dtype, first_device, model_class)
    model = model.eval().requires_grad_(False)
    model.backbone_fingerprint = base_fingerprint or fingerprint(model)
    if quantization is not None:
        quantize(model, quantization, device=device)
    return model


def backbone_config(path: str | Path) -> PretrainedConfig:
    """A backbone's shape without its weights, for checks that join adapter and backbone before minutes of loading.

    Args:
        path: as for `load_backbone`. In Meta's layout the shapes are read from the files' headers, and checked.

    Raises:
        FileNotFoundError: neither layout is there.
        ValueError: the family is not known, or the files contradict each other.
    """
    folder = Path(path)
    if _is_meta(path):
        return MetaCheckpoint(folder).config
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"No model in {folder}. Expected {EXPECTED}.")
    if not folder.is_dir() and not is_hub_id(path):
        raise FileNotFoundError(
            f"No folder {folder}. Set model.path=<folder with the model>, or the environment variable "
            f"LLAMA_ADAPTER_WEIGHTS to the folder that holds it. A model is {EXPECTED}."
        )
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=folder.is_dir())
    except OSError as error:
        if folder.is_dir():
            raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error
        raise _not_on_hub(path, error) from error
    except ValueError as error:
        raise ValueError(f"{path}: transformers does not know this model. {error}") from error
    family_of(config)
    return config


def _is_meta(path: str | Path) -> bool:
    # config.json first: Mistral's folders on the hub have a params.json beside it, in another format.
    return is_meta_folder(Path(path)) and not (Path(path) / "config.json").is_file()


def _load_meta(path: str | Path, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.load_state_dict(MetaCheckpoint(Path(path)).load(config, dtype, device), assign=True)
    # Rotary frequencies are in no checkpoint: made on the meta device they would be without values.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    return model


def _load_hugging_face(
    path: str | Path, config: PretrainedConfig, dtype: torch.dtype, device: torch.device, model_class: type
) -> PreTrainedModel:
    is_local = Path(path).is_dir()
    logging.getLogger("transformers.modeling_utils").addFilter(_is_no_report)
    try:
        model, report = model_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=is_local,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below with the shapes
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The weights in {path} hold more than tensors: loading them could run code, so they are refused. "
            "Get the weights from a source you trust, as tensors only."
        ) from error
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        if isinstance(error, OSError) and not is_local:
            raise _not_on_hub(path, error) from error
        # transformers' own words for a missing file have no number of the system, an unreadable file's have one.
        if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno is None):
            raise FileNotFoundError(f"Weights are missing in {path}: {error} Expected {EXPECTED}.") from error
        reason = str(error).splitlines()[0]
        raise ValueError(f"The weights in {path} are damaged ({reason}). Copy or download them again.") from error
    finally:
        logging.getLogger("transformers.modeling_utils").removeFilter(_is_no_report)
    if family_of(config).encoder:
        report = _without_heads(path, report, model)
    _check_report(path, report)
    return model.to(device)


def _without_weights(
    path: str | Path, config: PretrainedConfig, dtype: torch.dtype, model_class: type
) -> PreTrainedModel:
    if _is_meta(path):
        raise ValueError(
            f"{path} is in Meta's layout, of which no device can read a part. Convert it once: "
            f"python -m llama_adapter.convert {path} <new folder>, and set model.path to that."
        )
    folder = (
        Path(path) if Path(path).is_dir() else Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    )
    shapes = _shapes(folder)
    with torch.device("meta"):
        model = model_class.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    expected = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    known = {*expected, "lm_head.weight"}  # tied embeddings are one parameter, and may be two tensors
    _check_report(
        path,
        {
            "missing_keys": [name for name in expected if name not in shapes],
            "unexpected_keys": [name for name in shapes if name not in known and "rotary_emb" not in name],
            "mismatched_keys": [
                (name, shapes[name], shape) for name, shape in expected.items() if shapes.get(name, shape) != shape
            ],
        },
    )
    model.name_or_path = str(folder)
    model.backbone_fingerprint = fingerprint_of_path(folder)
    return model.eval().requires_grad_(False)


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Of all tensors in a folder's safetensors files."""
    shapes: dict[str, list[int]] = {}
    try:
        for file in sorted({*files_by_tensor(folder).values()}):
            if file.suffix != ".safetensors":
                raise ValueError(
                    f"The weights in {folder} are in {file.name}, of which no device can read a part. Save the model "
                    "as safetensors, or choose a trainer that holds the whole model (trainer=8xa100_ddp)."
                )
            with safe_open(file, framework="pt") as tensors:
                shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Weights are missing in {folder}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"The weights in {folder} are damaged ({error}). Copy or download them again.") from error
    return shapes


def _is_no_report(record: logging.LogRecord) -> bool:
    """Leaves out transformers' table of missing and surplus tensors: what is wrong of it becomes our error."""
    return "LOAD REPORT" not in record.getMessage()


def _without_heads(path: str | Path, report: dict, model: PreTrainedModel) -> dict:
    """The report without what belongs to heads: the one that is new, and those that the files hold for other tasks."""
    base, new = f"{model.base_model_prefix}.", head_parameters(model)

    def of_base(name: str) -> bool:
        # The pooler is the head of pretraining, inside the base model; models without it leave it out.
        return name.startswith(base) and ".pooler." not in name

    fresh = sorted(new.keys() & {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if fresh:
        logger.info("A new head, to be trained: %s. The weights in %s have none of its shape.", ", ".join(fresh), path)
    unexpected = [name for name in report["unexpected_keys"] if of_base(name)]
    return report | {
        "missing_keys": [name for name in report["missing_keys"] if name not in new],
        "unexpected_keys": unexpected,
        "mismatched_keys": [item for item in report["mismatched_keys"] if item[0] not in new],
    }


def _check_report(path: str | Path, report: dict) -> None:
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [f"{name} is not part of the model" for name in sorted(report["unexpected_keys"])]
    problems += [
        f"{name} is {list(found)} instead of {list(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])
    ]
    problems += [str(message) for message in report.get("error_msgs", ())]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"The weights in {path} are not those of its config.json: {'; '.join(problems[:3])}{more}. "
            "Do all files belong to one model?"
        )


def _check_tokenizer(config: PretrainedConfig, tokenizer: str | Path) -> None:
    pieces = load_tokenizer(tokenizer).vocabulary_size
    if pieces > config.vocab_size:
        raise ValueError(
            f"The tokenizer {tokenizer} has {pieces} ids, but the model has embeddings for {config.vocab_size}. "
            "Set model.tokenizer to the tokenizer that the model was trained with."
        )


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    known = DTYPES.get(dtype, dtype)
    if known not in DTYPES.values():
        raise ValueError(f"model.dtype is {dtype!r}. Choose {', '.join(DTYPES)}.")
    return known


def _not_on_hub(path: str | Path, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"No folder {path}, and no model of that name could be fetched from the Hugging Face hub "
        f"({type(error).__name__}). Set model.path=<folder with the model>, or the environment variable "
        "LLAMA_ADAPTER_WEIGHTS to the folder that holds it. Gated models need a login on the hub first."
    )
