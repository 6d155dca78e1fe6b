"""What a run watches: that only the adapter moves, how gates open, what it would answer."""

import json
import logging
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from llama_adapter.attach import adapters
from llama_adapter.files import write_json
from llama_adapter.generation import generate

log = logging.getLogger(__name__)


class FrozenAudit(Callback):
    """Checks once, after the second step with a learning rate above zero: all of the adapter moved and nothing else.

    The second, because stale caches show there, and because prompts behind a zero gate have no gradient in the first.

    Raises:
        RuntimeError: names the parameters that moved but are frozen, or did not move but are trained.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._steps = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._steps = 0
        self._before = {} if trainer.global_step else {n: _signature(p) for n, p in module.named_parameters()}

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._steps += optimizer.param_groups[0]["lr"] > 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        if self._steps < 2 or not self._before:
            return
        changed = [not torch.equal(_signature(p), self._before[n]) for n, p in module.named_parameters()]
        changed = torch.tensor(changed, dtype=torch.int64, device=trainer.strategy.root_device)
        changed = trainer.strategy.reduce(changed, reduce_op="sum")  # a device sees its shards alone
        moved = dict(zip(self._before, changed.bool().tolist(), strict=True))
        self._before = {}
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        frozen_moved = [name for name, has_moved in moved.items() if has_moved and name not in trained]
        trained_stuck = [name for name in trained if not moved[name]]
        if frozen_moved:
            raise RuntimeError(f"Frozen parameters have moved: {', '.join(frozen_moved)}.")
        if trained_stuck:
            raise RuntimeError(f"Trained parameters have not moved in two steps: {', '.join(sorted(trained_stuck))}.")
        log.info(
            "Audit after step %d: all %d trained tensors moved, none of the %d frozen ones did.",
            trainer.global_step,
            len(trained),
            len(moved) - len(trained),
        )


def _signature(parameter: Tensor) -> Tensor:
    values = parameter.detach()
    if isinstance(values, DTensor):
        values = values.to_local()
    if not values.numel():  # a device's part of a tensor with fewer rows than devices
        return torch.zeros(2, dtype=torch.uint64)
    # The hash is a xor, in which equal values cancel out (zeros that were all set to one number); the sum sees those.
    return torch.stack((torch.hash_tensor(values), values.sum(dtype=torch.float64).view(torch.uint64)))


class GateChart(Callback):
    """Draws tanh(gate) of every layer and head as a heat map after every epoch, and logs each layer's mean magnitude.

    Args:
        folder: of the run; the picture is `gates.png`, and an image `gates` of loggers that take one.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "gates.png"

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        from llama_adapter.charts import gate_heat_map  # matplotlib takes its time to import

        if not trainer.is_global_zero:
            return
        gates = gate_factors(module)
        gate_heat_map(gates, self.path, f"Gates after {trainer.global_step} steps", label=gate_label(module))
        means = {layer: gate.abs().mean().item() for layer, gate in gates.items()}
        row = {"gate/mean_magnitude": sum(means.values()) / len(means)}
        module.log_row(row | {f"gate/layer_{layer:02d}": mean for layer, mean in means.items()}, trainer.global_step)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("gates", [str(self.path)], step=trainer.global_step)


def gate_label(module: LightningModule) -> str:
    """What `gate_factors` are, as the charts call it."""
    activation = next(iter(adapters(module.model).values())).gate_activation
    return "tanh(gate)" if activation == "tanh" else "gate"


def gate_factors(module: LightningModule) -> dict[int, Tensor]:
    """What each adapted layer's prompts are multiplied with, [H] each, by layer."""
    return {layer: adapter.gate_factor().detach().float().cpu() for layer, adapter in adapters(module.model).items()}


class SampleAnswers(Callback):
    """Answers a few fixed instructions after every epoch's validation.

    Args:
        folder: of the run; the answers go to `samples/epoch_<n>.json`, those of all epochs as a table `samples` to
            loggers that take one.
        records: what is asked, in the form of the task's records.
        max_new_tokens: length limit of an answer.
    """

    def __init__(self, folder: str, *, records: list[dict[str, str]], max_new_tokens: int = 128) -> None:
        self.folder = Path(folder) / "samples"
        self.records = [dict(record) for record in records]
        self.max_new_tokens = max_new_tokens

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self.records:
            return
        data = trainer.datamodule
        prompts = [data.prompt(record) for record in self.records]
        answers = generate(module.model, data.tokenizer, prompts, max_new_tokens=self.max_new_tokens)
        if not trainer.is_global_zero:
            return
        rows = [{**record, "answer": answer} for record, answer in zip(self.records, answers, strict=True)]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"epoch_{trainer.current_epoch + 1:02d}.json", rows)
        for row in rows:
            asked = " / ".join(value for key, value in row.items() if key != "answer" and value)
            log.info("Epoch %d: %s -> %s", trainer.current_epoch + 1, asked, row["answer"])
        columns, cells = self._table(trainer.current_epoch + 1)
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("samples", columns=columns, data=cells, step=trainer.global_step)

    def _table(self, last_epoch: int) -> tuple[list[str], list[list[object]]]:
        """The answers of all epochs so far, from their files: a resumed run knows those before it."""
        files = {epoch: self.folder / f"epoch_{epoch:02d}.json" for epoch in range(1, last_epoch + 1)}
        stored = {epoch: json.loads(file.read_text("utf-8")) for epoch, file in files.items() if file.is_file()}
        columns = list(dict.fromkeys(key for rows in stored.values() for row in rows for key in row))
        cells = [[epoch, *(row.get(key, "") for key in columns)] for epoch, rows in stored.items() for row in rows]
        return ["epoch", *columns], cells
