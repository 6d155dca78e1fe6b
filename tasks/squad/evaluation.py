"""SQuAD's dev questions answered by a model with a span head, and scored as the official scripts do."""

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers import PreTrainedModel

from llama_adapter.files import whole_file, write_json
from llama_adapter.heads import SPAN_INPUTS
from llama_adapter.shares import in_shares
from tasks.squad.data import SquadDataModule
from tasks.squad.metric import SquadScores
from tasks.squad.scoring import table
from tasks.squad.spans import Decoded, DecodingConfig, Span, WindowSpans, merge, probabilities, window_spans
from tasks.squad.windows import Windows

log = logging.getLogger(__name__)


class SquadEvaluation:
    """Answers every question of the test part, with the adapter if there is one.

    The model without its adapter is not scored beside it, as in other tasks: its head was trained together with the
    adapter and says nothing without it.

    Args:
        batch_size: windows that the model takes at once.
        n_best, max_answer_length, null_threshold: see `DecodingConfig`.
    """

    def __init__(
        self, *, batch_size: int = 32, n_best: int = 20, max_answer_length: int = 30, null_threshold: float = 0.0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"task.evaluation.batch_size must be at least 1, got {batch_size}.")
        self.batch_size = batch_size
        self.decoding = DecodingConfig(n_best, max_answer_length, null_threshold)

    def __call__(self, model: PreTrainedModel, data: SquadDataModule, folder: Path) -> dict[str, float]:
        """Scores the test part.

        Args:
            model: with a span head.
            data: set up.
            folder: gets `predictions.json`, `nbest_predictions.json` and, for v2.0, `null_odds.json` and
                `best_spans.json`, see `_write`.

        Returns:
            `test/<official name>`. v2.0: the `best_` scores and thresholds are those that the official script finds for
            `best_spans.json` with `null_odds.json`; no other number depends on them.
        """
        windows = data.test_dataset
        numbers = range(len(windows.questions))
        decoded = in_shares(model, numbers, lambda share: self._decode(model, data, share))
        answers = [self._answer(windows, number, found, data.version) for number, found in enumerate(decoded)]
        metrics = scores(windows, decoded, answers, data.version)
        self._write(windows, decoded, answers, metrics, data.version, folder)
        return {f"test/{name}": value for name, value in metrics.items()}

    # --- from windows to spans --------------------------------------------------------------------------------------

    def _decode(self, model: PreTrainedModel, data: SquadDataModule, numbers: Sequence[int]) -> list[Decoded]:
        """What the model finds for some questions. A thread decodes spans while the model computes the next batch."""
        windows = data.test_dataset
        place = {number: index for index, number in enumerate(numbers)}
        order = [window for number in numbers for window in windows.of_question[number]]
        order.sort(key=lambda window: -windows.lengths[window])
        counts, pending = [], []
        with ThreadPoolExecutor(1) as thread, _evaluating(model), torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                members = order[start : start + self.batch_size]
                questions = torch.tensor([place[int(windows.question[window])] for window in members])
                batch = data.collator([windows[window] for window in members])
                counts.append(batch["counts"])
                output = model(**{name: batch[name].to(model.device) for name in SPAN_INPUTS if name in batch})
                logits = output.start_logits, output.end_logits
                pending.append(thread.submit(window_spans, windows, members, questions, *logits, self.decoding))
            found = [future.result() for future in pending]
        if not found:
            return []  # fewer questions than devices
        useful = sum(count.useful for count in counts) / sum(count.computed for count in counts)
        log.info("%d questions in %d windows, %.1f %% of the rows useful.", len(numbers), len(order), 100 * useful)
        return merge(WindowSpans.joined(found), questions=len(numbers), n_best=self.decoding.n_best)

    # --- from spans to answers --------------------------------------------------------------------------------------

    def _answer(self, windows: Windows, number: int, found: Decoded, version: str) -> str:
        if version == "v2.0" and found.null_odds > self.decoding.null_threshold:
            return ""
        return best_text(windows, number, found)

    @rank_zero_only
    def _write(
        self,
        windows: Windows,
        decoded: Sequence[Decoded],
        answers: Sequence[str],
        metrics: dict[str, float],
        version: str,
        folder: Path,
    ) -> None:
        """The files of BERT's own script, by question id.

        `predictions.json`: answers. `nbest_predictions.json`: spans with logits and probabilities among each other, in
        v2.0 with no answer, "", as one of them. `null_odds.json`: the score of no answer less that of the best span.
        And ours, `best_spans.json`: the best span of every question, whatever the odds.
        """
        ids = [question.id for question in windows.questions]
        write_json(folder / "predictions.json", dict(zip(ids, answers, strict=True)))
        rows = [n_best(windows, number, found, version) for number, found in enumerate(decoded)]
        # A line for each question: indenting every number of hundreds of thousands takes longer than finding them.
        lines = (f"{json.dumps(id)}: {json.dumps(row, ensure_ascii=False)}" for id, row in zip(ids, rows, strict=True))
        with whole_file(folder / "nbest_predictions.json") as temporary:
            temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        if version == "v2.0":
            write_json(folder / "null_odds.json", {id: found.null_odds for id, found in zip(ids, decoded, strict=True)})
            best = [best_text(windows, number, found) for number, found in enumerate(decoded)]
            write_json(folder / "best_spans.json", dict(zip(ids, best, strict=True)))
        log.info("\n%s", table({"this run": metrics}, version))


def scores(windows: Windows, decoded: Sequence[Decoded], answers: Sequence[str], version: str) -> dict[str, float]:
    """The official metrics of answers to all questions; for v2.0 with the best thresholds on the null odds."""
    numbers = range(len(answers))
    # Every device has all answers already.
    metric = SquadScores(windows.questions, version, sync_on_compute=False)
    metric.update(numbers, answers)
    metrics = metric.compute()
    if version == "v2.0":
        # Of the best spans, not of the answers: where those are "" already, no threshold brings the span back.
        best = SquadScores(windows.questions, version, sync_on_compute=False)
        spans = [best_text(windows, number, found) for number, found in enumerate(decoded)]
        best.update(numbers, spans, [found.null_odds for found in decoded])
        metrics |= {name: value for name, value in best.compute().items() if name.startswith("best_")}
    return metrics


def best_text(windows: Windows, number: int, found: Decoded) -> str:
    """The text of a question's best span, "" where it has none."""
    return span_text(windows, number, found.spans[0]) if found.spans else ""


def span_text(windows: Windows, number: int, span: Span) -> str:
    return windows.contexts[windows.context_of[number]][span.start : span.end]


def n_best(windows: Windows, number: int, found: Decoded, version: str) -> list[dict[str, str | float]]:
    """The best spans of a question with their probabilities; in v2.0 no answer is one of them."""
    spans = list(found.spans)
    if version == "v2.0" or not spans:
        spans.append(found.null)
    spans.sort(key=lambda span: -span.score)
    shares = probabilities([span.score for span in spans])
    return [
        {
            "text": span_text(windows, number, span),
            "probability": share,
            "start_logit": span.start_logit,
            "end_logit": span.end_logit,
        }
        for span, share in zip(spans, shares, strict=True)
    ]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, while the context lasts."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
