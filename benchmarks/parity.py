"""How far our numbers are from those of the authors' published code: `python -m benchmarks.parity --golden <folder>`.

The folder holds, per case, what their code computed in float32 on a CPU: weights, an adapter, tokens, logits, the loss,
its gradients and the adapter after three AdamW steps. Prints the largest absolute difference of each.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter import load_adapter, load_backbone
from llama_adapter.attach import adapters

ADAPTER = ("adapter_query.", "layers.")


def differences(golden: Path, name: str) -> dict[str, float]:
    """The largest differences of one case, by quantity."""
    tensors = load_file(golden / f"{name}.safetensors")
    settings = json.loads((golden / f"{name}.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.pth"
        torch.save({key: value for key, value in tensors.items() if key.startswith(ADAPTER)}, file)
        model = load_backbone(golden / "meta_checkpoint" / "mp2")
        load_adapter(model, file, prompt_layers=settings["adapter_layer"])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=9e-3, betas=(0.9, 0.95), weight_decay=0.02)
    found: dict[str, float] = {}
    for step in (1, 2, 3):
        optimizer.zero_grad()
        logits = model(tensors["tokens"], use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tensors["labels"][:, 1:].flatten(), ignore_index=0)
        loss.backward()
        if step == 1:
            found["logits"] = _largest(logits, tensors["logits"])
            found["loss"] = _largest(loss, tensors["loss"])
            found["gradients"] = _adapter_difference(model, tensors, "grad.", gradient=True)
        optimizer.step()
    found["adapter after 3 steps"] = _adapter_difference(model, tensors, "step3.", gradient=False)
    return found


def _adapter_difference(model: PreTrainedModel, tensors: dict[str, Tensor], prefix: str, *, gradient: bool) -> float:
    attached = adapters(model)
    prompts = [adapter.prompt.grad if gradient else adapter.prompt for adapter in attached.values()]
    largest = [_largest(torch.cat(prompts), tensors[f"{prefix}adapter_query.weight"])]
    for layer, adapter in attached.items():
        gate = adapter.gate.grad if gradient else adapter.gate
        largest.append(_largest(gate, tensors[f"{prefix}layers.{layer}.attention.gate"].flatten()))
    return max(largest)


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return (ours.detach() - theirs).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True, help="the folder of the reference's numbers")
    golden = parser.parse_args().golden
    names = sorted(path.stem for path in golden.glob("text_k*.safetensors"))
    if not names:
        raise SystemExit(f"error: no text_k*.safetensors in {golden}.")
    rows = {name: differences(golden, name) for name in names}
    columns = list(next(iter(rows.values())))
    sys.stdout.write(f"{'case':<24}" + "".join(f"{column:>24}" for column in columns) + "\n")
    for name, row in rows.items():
        sys.stdout.write(f"{name:<24}" + "".join(f"{row[column]:>24.1e}" for column in columns) + "\n")


if __name__ == "__main__":
    main()
