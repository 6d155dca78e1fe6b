"""The one LightningModule: a frozen model with an adapter, its loss, its optimizer and what a checkpoint holds.

The loss is per response token (or image, or window) over the global batch. No micro-batch knows that number, so
gradients are summed and divided once, before the step: the result does not depend on how a batch was cut into
micro-batches and devices.
"""

import math

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from llama_adapter.adapter_file import other_trainable
from llama_adapter.attach import adapters
from llama_adapter.distributed import ShardedStrategy
from llama_adapter.heads import HEADS, Head
from llama_adapter.layer_modes import uncompiled
from llama_adapter.optim import OptimizerConfig, schedule


class NonFiniteLossError(ArithmeticError):
    """The loss or a gradient is NaN or infinite. Raised before the optimizer step, so the adapter is still good."""


class AdapterModule(LightningModule):
    """Trains the adapter of an attached model.

    Rows of metrics go to the loggers under the number of optimizer steps done so far, so a resumed run writes the rows
    of the uninterrupted one.

    Args:
        model: from `attach`; its only trainable parameters are the adapter's.
        optimizer: learning rate, schedule and weight decay.
        head: what the model puts out, and its loss; a language model's when not given.
        dropout: whether the frozen model's own dropout is on in training; off, it computes what it always computes.
    """

    strict_loading = False  # a checkpoint holds the adapter alone; `on_load_checkpoint` checks its keys

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: OptimizerConfig | None = None,
        *,
        head: Head = HEADS["language"],
        dropout: bool = False,
    ) -> None:
        super().__init__()
        # Lightning keeps the modes of a model: those it has here in training, evaluation in validation and test.
        self.model = model.train(dropout)
        self.head = head
        self.optimizer_config = optimizer or OptimizerConfig()
        self.validation_loss = MeanMetric()
        self.test_loss = MeanMetric()
        self.step_batches: list[dict[str, Tensor]] = []  # the micro-batches of the current step, for a report
        self.summary: dict[str, float] = {}  # the last value of every metric; a resumed run knows it too
        self.validated_step = -1  # optimizer steps done at the last validation
        self._epoch_sums = [0.0, 0.0]  # loss and response tokens of this epoch, over all devices

    def configure_model(self) -> None:
        """Lightning calls it when the devices know each other, before fit, validation and test alike."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self.model)

    # --- training ---------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self._trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self._reset_step_sums()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, count = self.head.loss(self.model, batch)
        self._step_sums += torch.stack((loss.detach().double(), count))
        self.step_batches.append(batch)
        return loss * self.trainer.accumulate_grad_batches  # Lightning divides by it

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        devices = self.trainer.world_size
        sums = self.trainer.strategy.reduce(self._step_sums, reduce_op="sum") if devices > 1 else self._step_sums
        loss_sum, count = sums.tolist()
        self._reset_step_sums()
        loss = loss_sum / max(count, 1.0)
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.average_gradients(self._trainable)
        gradients = [parameter.grad for parameter in self._trainable if parameter.grad is not None]
        torch._foreach_mul_(gradients, devices / max(count, 1.0))  # they are averages over devices: undo that
        norm = torch.nn.utils.get_total_norm(gradients).item()
        step = self.global_step + 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"Step {step} has a loss of {loss} and a gradient norm of {norm}. The adapter was not changed by it."
            )
        self.step_batches.clear()
        self._epoch_sums[0] += loss_sum
        self._epoch_sums[1] += count
        self.summary["train/loss"] = loss
        self.log("train/loss", loss, prog_bar=True, logger=False)
        if step == 1 or step % self.trainer.log_every_n_steps == 0:
            row = {
                "train/loss": loss,
                "train/gradient_norm": norm,
                "train/learning_rate": optimizer.param_groups[0]["lr"],
                f"train/{self.head.counted}": count,
            }
            self.log_row(row, step)

    def on_train_epoch_end(self) -> None:
        loss_sum, count = self._epoch_sums
        self._epoch_sums = [0.0, 0.0]
        self._log_summary({"train/epoch_loss": loss_sum / max(count, 1.0)})

    def _reset_step_sums(self) -> None:
        # float64: exact for the counts, and no rounding when many micro-batches are added
        self._step_sums = torch.zeros(2, device=self.device, dtype=torch.float64)

    # --- validation and test ----------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._update(self.validation_loss, batch)

    def on_validation_epoch_end(self) -> None:
        self._log_loss("val", self.validation_loss)
        self.validated_step = self.global_step

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._update(self.test_loss, batch)

    def on_test_epoch_end(self) -> None:
        self._log_loss("test", self.test_loss)

    def _update(self, metric: MeanMetric, batch: dict[str, Tensor]) -> None:
        with uncompiled(self.model):
            loss, count = self.head.loss(self.model, batch)
        if count:
            metric.update(loss / count, count)

    def _log_loss(self, name: str, metric: MeanMetric) -> None:
        loss = metric.compute().item()
        metric.reset()
        metrics = {f"{name}/loss": loss}
        if self.head.perplexity:
            # exp overflows beyond 709 nats, where a perplexity says nothing any more
            metrics[f"{name}/perplexity"] = math.exp(min(loss, 700.0))
        self._log_summary(metrics)

    # --- logging ----------------------------------------------------------------------------------------------------

    def log_row(self, metrics: dict[str, float], step: int) -> None:
        """One row to every logger, under the number of optimizer steps done."""
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    def _log_summary(self, metrics: dict[str, float]) -> None:
        self.summary |= metrics
        self.log_dict(metrics, prog_bar=True, logger=False)  # for callbacks and the progress bar
        self.log_row(metrics | {"epoch": self.current_epoch}, self.global_step)

    # --- optimizer --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict:
        config, data = self.optimizer_config, self.trainer.datamodule
        peak = config.learning_rate(data.batches.global_batch_size)
        prompts = [p for adapter in adapters(self.model).values() for p in adapter.parameters() if p.requires_grad]
        others = list(other_trainable(self.model).values())
        # A group without parameters is left out; the first one's rate is what the rows of metrics tell.
        groups = [{"params": prompts, "lr": peak}, {"params": others, "lr": peak * config.other_rate_factor}]
        groups = [group for group in groups if group["params"]]
        optimizer = AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        # Not `trainer.estimated_stepping_batches`: it makes the loader, before Lightning has restored its position.
        epochs = data.epochs(self.trainer.max_epochs, self.trainer.max_steps)
        factor = schedule(config, peak=peak, epochs=epochs, epoch_fraction=data.epoch_fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        names = self._trainable_names()
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in names}
        checkpoint["progress"] = (dict(self.summary), self.validated_step, list(self._epoch_sums))
        checkpoint["accumulation"] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        differing = sorted(set(checkpoint["state_dict"]) ^ set(self._trainable_names()))
        if differing:
            raise ValueError(f"The checkpoint is of another adapter: only one of the two has {differing[0]}.")
        for name, tensor in checkpoint["state_dict"].items():
            if tensor.shape != (shape := self.get_parameter(name).shape):
                raise ValueError(
                    f"The checkpoint is of another adapter: its {name} is {list(tensor.shape)}, "
                    f"this one's is {list(shape)}."
                )
        self.summary, self.validated_step, self._epoch_sums = checkpoint["progress"]
        # Lightning counts micro-batches, and a resumed run may cut its global batches in another way.
        for counts in map(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].get, ("total", "current")):
            steps, unfinished = counts["ready"] // checkpoint["accumulation"], counts["ready"] - counts["completed"]
            ready = steps * self.trainer.accumulate_grad_batches
            counts |= {"ready": ready, "started": ready, "processed": ready, "completed": ready - unfinished}

    def _trainable_names(self) -> list[str]:
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]
