"""Answers to instructions, and how many are exactly the reference."""

import logging
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers import PreTrainedModel

from llama_adapter.attach import adapter_disabled, adapters
from llama_adapter.files import write_json_lines
from llama_adapter.generation import generate
from llama_adapter.shares import in_shares
from tasks.alpaca.data import AlpacaDataModule
from tasks.alpaca.records import Record, read_records

log = logging.getLogger(__name__)

write_rows = rank_zero_only(write_json_lines)  # every device has all the rows
EXAMPLE_SEPARATOR = "\n\n"  # between worked examples; an answer after them ends at the line's end


class InstructionEvaluation:
    """Generates an answer to every record of a split and scores it.

    Args:
        max_new_tokens: length limit of an answer.
        batch_size: prompts decoded together.
        temperature, top_p, num_beams: see `llama_adapter.generate`; the defaults are greedy.
        exact_match: whether references are short enough for exact match to mean something.
        group_by: a key of the records to report exact match by; None for no groups.
        containing_tokens: of the frozen model's answer, in which the reference is looked for; 0 leaves that out.
        worked_examples: shown to the frozen model in the prompt, of the record's own group; 0 leaves that out.
        show: sample answers that the summary shows.
    """

    shares = ("exact_match", "contains")  # parts of the names of metrics that the table prints as per cent

    def __init__(
        self,
        *,
        max_new_tokens: int = 256,
        batch_size: int = 16,
        temperature: float = 0.0,
        top_p: float = 1.0,
        num_beams: int = 1,
        exact_match: bool = False,
        group_by: str | None = None,
        containing_tokens: int = 0,
        worked_examples: int = 0,
        show: int = 3,
    ) -> None:
        self.decoding = {
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "temperature": temperature,
            "top_p": top_p,
            "num_beams": num_beams,
            "seed": 0,
        }
        self.exact_match = exact_match
        self.group_by = group_by
        self.containing_tokens = containing_tokens
        self.worked_examples = worked_examples
        self.show = show

    def __call__(self, model: PreTrainedModel, data: AlpacaDataModule, folder: Path) -> dict[str, float]:
        """Scores the test part, or the validation part where there is no test, with the adapter and without it.

        Args:
            model: attached, or bare to score the frozen model alone.
            data: set up.
            folder: gets `generations.jsonl` and `generations_frozen.jsonl`.

        Returns:
            Metrics by name, `test/...` and `test/frozen_...`; `val/` in the place of `test/` where there is no test.
        """
        records, part = (data.test_records, "test") if data.test_records else (data.validation_records, "val")
        if not records or not self.exact_match:
            return {}
        metrics: dict[str, float] = {}
        if adapters(model):
            rows = self._rows(records, self._answers(model, data, [data.prompt(record) for record in records]))
            write_rows(folder / "generations.jsonl", rows)
            metrics |= self._scores(rows, f"{part}/")
        with adapter_disabled(model):
            frozen_rows, frozen_metrics = self._frozen(model, data, records, f"{part}/frozen_")
        write_rows(folder / "generations_frozen.jsonl", frozen_rows)
        metrics |= frozen_metrics
        self._log_samples(rows if adapters(model) else frozen_rows, frozen_rows)
        return metrics

    def answer(self, model: PreTrainedModel, data: AlpacaDataModule, path: str | Path, folder: Path) -> int:
        """Answers an instruction file into `generations.jsonl`; returns how many."""
        records = read_records(path, need_output=False)
        rows = self._rows(records, self._answers(model, data, [data.prompt(record) for record in records]))
        write_rows(folder / "generations.jsonl", rows)
        self._log_samples(rows, rows)
        return len(rows)

    def _frozen(
        self, model: PreTrainedModel, data: AlpacaDataModule, records: Sequence[Record], prefix: str
    ) -> tuple[list[dict], dict[str, float]]:
        answers = self._answers(model, data, [data.prompt(record) for record in records])
        rows = self._rows(records, answers)
        metrics = self._scores(rows, prefix, groups=False)
        if self.containing_tokens:
            # A frozen model does not know where to stop: this tells a missing stop from missing knowledge.
            heads = [data.tokenizer.decode(data.tokenizer.encode(a)[: self.containing_tokens]) for a in answers]
            found = [record["output"].strip() in head for record, head in zip(records, heads, strict=True)]
            metrics[f"{prefix}contains_in_{self.containing_tokens}_tokens"] = sum(found) / len(found)
        if self.worked_examples:
            prompts = [self._with_worked_examples(data, record, number) for number, record in enumerate(records)]
            shown = [answer.strip().split("\n")[0] for answer in self._answers(model, data, prompts)]
            for row, answer in zip(rows, shown, strict=True):
                row["answer_with_worked_examples"] = answer.strip()
            matches = [_same(answer, record["output"]) for answer, record in zip(shown, records, strict=True)]
            metrics[f"{prefix}exact_match_with_{self.worked_examples}_examples"] = sum(matches) / len(matches)
        return rows, metrics

    def _with_worked_examples(self, data: AlpacaDataModule, record: Record, number: int) -> str:
        group = record.get(self.group_by) if self.group_by else None
        like = [r for r in data.train_records if group is None or r.get(self.group_by) == group]
        chosen = random.Random(number).sample(like, min(self.worked_examples, len(like)))
        examples = [f"{data.prompt(example)} {example['output']}{EXAMPLE_SEPARATOR}" for example in chosen]
        return "".join(examples) + data.prompt(record)

    def _answers(self, model: PreTrainedModel, data: AlpacaDataModule, prompts: Sequence[str]) -> list[str]:
        """The answers, generated by all devices together, each prompt by one."""
        return in_shares(model, prompts, lambda share: generate(model, data.tokenizer, share, **self.decoding))

    def _rows(self, records: Sequence[Record], answers: Sequence[str]) -> list[dict]:
        return [
            {key: value for key, value in record.items() if key != "output"}
            | {"answer": answer.strip(), "reference": record["output"]}
            for record, answer in zip(records, answers, strict=True)
        ]

    def _scores(self, rows: Sequence[Mapping[str, str]], prefix: str, *, groups: bool = True) -> dict[str, float]:
        matches = [_same(row["answer"], row["reference"]) for row in rows]
        metrics = {f"{prefix}exact_match": sum(matches) / len(matches)}
        if self.group_by and groups:
            by_group: dict[str, list[bool]] = defaultdict(list)
            for row, match in zip(rows, matches, strict=True):
                by_group[row[self.group_by]].append(match)
            for group in sorted(by_group):
                metrics[f"{prefix}exact_match/{group}"] = sum(by_group[group]) / len(by_group[group])
        return metrics

    @rank_zero_only
    def _log_samples(self, rows: Sequence[Mapping[str, str]], frozen_rows: Sequence[Mapping[str, str]]) -> None:
        step = max(1, len(rows) // max(1, self.show))
        for row, frozen in list(zip(rows, frozen_rows, strict=True))[::step][: self.show]:
            lines = [row["instruction"], *([f"input:     {row['input']}"] if row["input"] else [])]
            if row is not frozen:
                lines.append(f"frozen:    {_one_line(frozen['answer'])}")
            lines += [f"answer:    {_one_line(row['answer'])}", f"reference: {_one_line(row['reference'])}"]
            log.info("\n  ".join(lines))


def _same(answer: str, reference: str) -> bool:
    return answer.strip() == reference.strip()


def _one_line(text: str, width: int = 110) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
