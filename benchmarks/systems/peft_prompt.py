"""peft's AdaptionPrompt: one scalar gate per layer, without tanh; every layer's queries are computed twice.

Trained as its users do: transformers' own loss, padded to the longest example of a micro-batch.
"""

from importlib import import_module

from torch import Tensor

from benchmarks.shapes import same_weights
from benchmarks.systems.system import Batch, System, SystemUnavailableError, Workload, trainable_parameters


def system(workload: Workload) -> System:
    try:
        peft = import_module("peft")
    except ImportError as error:
        raise SystemUnavailableError(f"{error}. Install the extra: pip install 'llama-adapter[benchmarks]'") from error
    config = peft.AdaptionPromptConfig(
        task_type="CAUSAL_LM", adapter_len=workload.shape.prompt_length, adapter_layers=workload.shape.prompt_layers
    )
    model = peft.get_peft_model(same_weights(workload.frozen), config)

    def summed_loss(batch: Batch) -> Tensor:
        # transformers divides the sum by num_items_in_batch; the caller divides by the whole step's tokens
        return model(**batch, use_cache=False, num_items_in_batch=1).loss

    return System(trainable_parameters(model), workload.pad_to_longest, summed_loss)
