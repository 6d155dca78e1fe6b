"""ScienceQA answered in two ways: by generation, read by a fixed rule, and by the likelihood of each option."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter.attach import adapter_disabled, adapters
from llama_adapter.data import PaddedCollator
from llama_adapter.encoding import encode_default
from llama_adapter.examples import IGNORED
from llama_adapter.files import write_json_lines
from llama_adapter.gallery import Card, write_gallery
from llama_adapter.generation import generate
from llama_adapter.shares import in_shares
from llama_adapter.vision import image_contexts, prompt_context
from tasks.scienceqa.answers import read_answer, read_words
from tasks.scienceqa.data import ScienceQADataModule
from tasks.scienceqa.metric import CATEGORIES, accuracy, categories_of, table
from tasks.scienceqa.problems import LETTERS, Problem
from tasks.scienceqa.prompt import answer_text
from tasks.scienceqa.scoring import write_predictions

log = logging.getLogger(__name__)

SCORED_BY = ("generation", "likelihood")


class ScienceQAEvaluation:
    """Answers every problem of the test split, with the adapter and without it.

    Metrics in per cent: `test/accuracy` and the official categories, read in one of the two ways; both accuracies as
    `test/generation_accuracy` and `test/likelihood_accuracy`; `test/acc_needs_image` over the problems with an image.

    Args:
        max_new_tokens: length limit of a generated answer.
        batch_size: answers decoded together, and problems whose options are scored together.
        likelihood: whether options are scored too.
        scored_by: what the categories, predictions.json and the page are of: `generation`, as in the paper, where an
            answer that names no option is wrong; or `likelihood`, where every answer is one of the options.
        gallery: problems on the HTML page, spread over the split; 0 writes none.
    """

    def __init__(
        self,
        *,
        max_new_tokens: int = 16,
        batch_size: int = 32,
        likelihood: bool = True,
        scored_by: str = "generation",
        gallery: int = 60,
    ) -> None:
        if scored_by not in SCORED_BY:
            raise ValueError(f"task.evaluation.scored_by is {scored_by!r}. Choose {' or '.join(SCORED_BY)}.")
        if scored_by == "likelihood" and not likelihood:
            raise ValueError(
                "task.evaluation.scored_by is likelihood, but task.evaluation.likelihood is false. Set it to true."
            )
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.likelihood = likelihood
        self.scored_by = scored_by
        self.gallery = gallery

    def __call__(self, model: PreTrainedModel, data: ScienceQADataModule, folder: Path) -> dict[str, float]:
        """Scores the test split.

        Args:
            model: attached, or bare to score the frozen model alone.
            data: set up.
            folder: gets `generations.jsonl`, `predictions.json` (ScienceQA's own form) and `answers.html`.

        Returns:
            Metrics by name, `test/...` and `test/frozen_...`.
        """
        problems = data.test_problems
        metrics: dict[str, float] = {}
        texts: dict[str, list[str]] = {}
        chosen: list[int] = []
        with adapter_disabled(model):
            texts["frozen"] = self._answers(model, data, problems)
            chosen = self._score(model, data, problems, texts["frozen"], metrics, "test/frozen_")
        if adapters(model):
            texts = {"adapted": self._answers(model, data, problems)} | texts
            chosen = self._score(model, data, problems, texts["adapted"], metrics, "test/")
        self._write(data, problems, texts, chosen, metrics, folder)
        return metrics

    # --- by generation ----------------------------------------------------------------------------------------------

    def _answers(self, model: PreTrainedModel, data: ScienceQADataModule, problems: Sequence[Problem]) -> list[str]:
        """An answer to each problem; an empty one, which is wrong, where the prompt leaves no room for one."""
        room = model.config.max_position_embeddings - self.max_new_tokens
        prompts = [data.prompt(problem) for problem in problems]
        asked = [
            number for number, prompt in enumerate(prompts) if len(data.tokenizer.encode(prompt, bos=True)) <= room
        ]
        if len(asked) < len(problems):
            log.warning(
                "%d of %d prompts have more than %d tokens, which leaves no room for an answer: they count as wrong.",
                len(problems) - len(asked),
                len(problems),
                room,
            )

        sees_images = data.images is not None and bool(adapters(model))

        def answer(share: Sequence[int]) -> list[str]:
            shown = [problems[number] for number in share]
            return generate(
                model,
                data.tokenizer,
                [prompts[number] for number in share],
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                context=image_contexts(model, shown, data.image_columns) if sees_images else None,
            )

        answers = dict(zip(asked, in_shares(model, asked, answer), strict=True))
        return [answers.get(number, "") for number in range(len(problems))]

    def _score(
        self,
        model: PreTrainedModel,
        data: ScienceQADataModule,
        problems: Sequence[Problem],
        texts: Sequence[str],
        metrics: dict[str, float],
        prefix: str,
    ) -> list[int]:
        """Adds the metrics of one model; returns the options that its categories are of."""
        chosen = {"generation": predicted(problems, texts, data.answer)}
        if self.likelihood:
            chosen["likelihood"] = in_shares(model, problems, lambda share: self._most_likely(model, data, share))
        values = {way: accuracy(problems, indices) for way, indices in chosen.items()}
        metrics |= {f"{prefix}{name}": value for name, value in values[self.scored_by].items()}
        metrics |= {f"{prefix}{way}_accuracy": of_way["accuracy"] for way, of_way in values.items()}
        metrics[f"{prefix}unreadable"] = values["generation"]["unreadable"]
        if f"{prefix}acc_has_image" in metrics:
            metrics[f"{prefix}acc_needs_image"] = metrics[f"{prefix}acc_has_image"]
        return chosen[self.scored_by]

    # --- by likelihood ----------------------------------------------------------------------------------------------

    def _most_likely(self, model: PreTrainedModel, data: ScienceQADataModule, problems: Sequence[Problem]) -> list[int]:
        """The option of each problem whose answer the model finds most likely."""
        chosen = []
        for start in range(0, len(problems), self.batch_size):
            part = problems[start : start + self.batch_size]
            scores = iter(log_likelihoods(model, list(self._options(data, part))).tolist())
            for problem in part:
                of_options = [next(scores) for _ in problem.choices]
                chosen.append(of_options.index(max(of_options)))
        return chosen

    def _options(self, data: ScienceQADataModule, problems: Sequence[Problem]) -> Iterator[dict[str, Tensor]]:
        """An example for every option of every problem, with the answer that would choose it."""
        for problem in problems:
            images = data.image_columns([problem])[0] if data.images is not None else {}
            for index in range(len(problem.choices)):
                answer = answer_text(problem, index, answer=data.answer).removeprefix(" ")
                encoding = encode_default(data.tokenizer, data.prompt(problem), answer, max_length=10**9)
                yield encoding.example() | images

    # --- what is written --------------------------------------------------------------------------------------------

    @rank_zero_only
    def _write(
        self,
        data: ScienceQADataModule,
        problems: Sequence[Problem],
        texts: dict[str, list[str]],
        chosen: Sequence[int],
        metrics: dict[str, float],
        folder: Path,
    ) -> None:
        write_predictions(folder / "predictions.json", list(problems), chosen)
        rows = [
            {"pid": problem.pid, "prompt": data.prompt(problem), "reference": LETTERS[problem.answer]}
            | {kind: answers[number].strip() for kind, answers in texts.items()}
            for number, problem in enumerate(problems)
        ]
        write_json_lines(folder / "generations.jsonl", rows)
        scores = {
            kind: {key: metrics[prefix + key] for key in CATEGORIES if prefix + key in metrics}
            for kind, prefix in (("adapted", "test/"), ("frozen", "test/frozen_"))
            if kind in texts
        }
        log.info("\n%s", table(scores))
        if self.gallery:
            self._write_gallery(data, problems, texts, chosen, folder / "answers.html")

    def _write_gallery(
        self,
        data: ScienceQADataModule,
        problems: Sequence[Problem],
        texts: dict[str, list[str]],
        chosen: Sequence[int],
        path: Path,
    ) -> None:
        cards = []
        for number in range(0, len(problems), math.ceil(len(problems) / self.gallery)):
            problem = problems[number]
            image = problem.image_path(data.root)
            tags = sorted(name.removeprefix("acc_") for name in categories_of(problem) - {"accuracy"})
            facts = [(kind, answers[number].strip()) for kind, answers in texts.items()]
            facts.append(("reference", f"{LETTERS[problem.answer]}: {problem.choices[problem.answer]}"))
            right = chosen[number] == problem.answer
            shown = image if image is not None and image.is_file() else None
            cards.append(Card(data.prompt(problem), facts, right, shown, tags))
        right = sum(index == problem.answer for index, problem in zip(chosen, problems, strict=True))
        summary = f"{right} of {len(problems)} problems are right. The page shows {len(cards)}, spread over the split."
        write_gallery(path, cards, title="ScienceQA", summary=summary)


def predicted(problems: Sequence[Problem], texts: Sequence[str], answer: str) -> list[int]:
    pairs = zip(problems, texts, strict=True)
    if answer == "words":
        return [read_words(text, problem.choices) for problem, text in pairs]
    return [read_answer(text, len(problem.choices)) for problem, text in pairs]


@torch.no_grad()
def log_likelihoods(model: PreTrainedModel, examples: Sequence[dict[str, Tensor]]) -> Tensor:
    """Of each example's trained tokens together, [B], in nats."""
    batch = _moved(PaddedCollator(0)(examples), model.device)
    context = prompt_context(model, batch) if adapters(model) else None
    images = {} if context is None else {"prompt_context": context}
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # [B, T]
    trained = targets != IGNORED
    hidden = model.base_model(input_ids=batch["input_ids"], use_cache=False, **images).last_hidden_state[trained]
    logits = model.get_output_embeddings()(hidden).float()
    tokens = -F.cross_entropy(logits, targets[trained], reduction="none")
    rows = trained.nonzero()[:, 0]
    return torch.zeros(len(examples), device=tokens.device).index_add(0, rows, tokens)


def _moved(batch: dict, device: torch.device) -> dict:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
