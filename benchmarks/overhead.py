"""What Lightning costs in training: steps of `AdapterModule` in a Trainer, against the same steps in a bare loop.

    python -m benchmarks.overhead --device cpu --steps 30

Two copies of one adapted random model take the same batches by turns, step by step in one process, with the same
optimizer. The Trainer logs every step to a CSV file as train.py does; the bare loop logs and checks nothing. The
time between two steps, with the next batch's collation, belongs to the system that takes the next step.
"""

import argparse
import copy
import logging
import tempfile
import time
import warnings
from types import SimpleNamespace

import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import AdamW
from transformers import PreTrainedModel

from benchmarks.generation_overhead import VOCABULARY_SIZE, random_llama
from benchmarks.interleaved import report
from llama_adapter.attach import adapters, attach
from llama_adapter.batches import BatchConfig
from llama_adapter.csv_logger import RunCsvLogger
from llama_adapter.data import IGNORED, ExampleDataModule
from llama_adapter.heads import response_loss
from llama_adapter.module import AdapterModule
from llama_adapter.optim import OptimizerConfig
from llama_adapter.zero_init import AdapterConfig

WARM_UP_STEPS = 3  # not counted: the first ones allocate
OPTIMIZER = OptimizerConfig(warmup_epochs=0.0, base_learning_rate=0.032)


class RandomExamples(ExampleDataModule):
    """One epoch of random tokens, the second half of each example trained."""

    def __init__(self, *, steps: int, batch_size: int, tokens: int) -> None:
        batches = BatchConfig(global_batch_size=batch_size, micro_batch_size=batch_size)
        super().__init__(SimpleNamespace(pad_id=0), batches=batches)
        input_ids = torch.randint(3, VOCABULARY_SIZE, (steps * batch_size, tokens))
        labels = input_ids.clone()
        labels[:, : tokens // 2] = IGNORED
        self.train_dataset = [{"input_ids": i, "labels": j} for i, j in zip(input_ids, labels, strict=True)]


class BareLoop(Callback):
    """After every step of the Trainer, takes the same one by hand, and times both."""

    def __init__(self, model: PreTrainedModel, data: RandomExamples, device: str) -> None:
        self.model = model
        self.device = device
        self.batches = iter(data.train_dataloader())
        self.seconds: dict[str, list[float]] = {"bare": [], "lightning": []}
        self._resumed = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        rate, decay = trainer.optimizers[0].param_groups[0]["initial_lr"], OPTIMIZER.weight_decay
        self.optimizer = AdamW(trainable, lr=rate, betas=OPTIMIZER.betas, weight_decay=decay, fused=True)
        factor = trainer.lr_scheduler_configs[0].scheduler.lr_lambdas[0]
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self._resumed = self._now()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        paused = self._now()
        self.seconds["lightning"].append(paused - self._resumed)
        self.step()
        self._resumed = self._now()
        self.seconds["bare"].append(self._resumed - paused)

    def step(self) -> None:
        made = next(self.batches)
        batch = {key: made[key].to(self.device) for key in made if key != "counts"}
        loss, tokens = response_loss(self.model, batch)
        (loss / tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def largest_difference(first: PreTrainedModel, second: PreTrainedModel) -> float:
    """Between the prompts and gates of two models: near zero, or they did not take the same steps."""
    pairs = zip(adapters(first).values(), adapters(second).values(), strict=True)
    return max(
        (a - b).abs().max().item()
        for one, other in pairs
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs the benchmark; returns each system's speed relative to the bare loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the frozen weights")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--prompt-layers", type=int, default=7, help="L, adapted layers")
    parser.add_argument("--prompt-length", type=int, default=10, help="K, prompt tokens per adapted layer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens-per-example", type=int, default=128)
    options = parser.parse_args(arguments)

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    model = random_llama(
        hidden_size=options.hidden_size,
        layers=options.layers,
        dtype=getattr(torch, options.dtype),
        device=options.device,
    )
    attach(model, AdapterConfig(options.prompt_length, options.prompt_layers, gate_init="random"))
    data = RandomExamples(
        steps=options.steps + WARM_UP_STEPS, batch_size=options.batch_size, tokens=options.tokens_per_example
    )
    bare = BareLoop(copy.deepcopy(model), data, options.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=options.device,
            devices=1,
            max_epochs=1,
            callbacks=[bare],
            logger=RunCsvLogger(folder),
            log_every_n_steps=1,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(AdapterModule(model, OPTIMIZER), data)
    return report(
        {name: seconds[WARM_UP_STEPS:] for name, seconds in bare.seconds.items()},
        tokens=options.batch_size * options.tokens_per_example,
        baseline="bare",
        benchmark="overhead",
        largest_difference=largest_difference(model, bare.model),
        **vars(options),
    )


if __name__ == "__main__":
    main()
