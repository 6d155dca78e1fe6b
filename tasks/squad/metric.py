"""SQuAD's official metrics, in per cent and in float64, so that every digit is that of the official scripts.

v1.1 and v2.0 score an answer alike but for texts that are empty once normalised: in v2.0 they match each other, and an
answer that is empty so is no reference. Sums run in the order of the questions, one addition after the other: floating
point is not associative, and newer Pythons' `sum` rounds otherwise.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite

import torch
from torch import Tensor
from torchmetrics import Metric

from llama_adapter.data_files import first
from tasks.squad.records import Question, check_version

NO_ANSWER_THRESHOLD = 1.0  # the official script's: no probability is above it

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII alone


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, words one blank apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(prediction: str, reference: str, *, empty_matches: bool) -> float:
    """F1 of two bags of normalised words.

    Args:
        empty_matches: whether two texts without words are equal (v2.0) or share nothing (v1.1).
    """
    predicted, referred = normalize(prediction).split(), normalize(reference).split()
    if empty_matches and not (predicted and referred):
        return float(predicted == referred)
    common = (Counter(predicted) & Counter(referred)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(referred)
    return 2 * precision * recall / (precision + recall)


def question_scores(question: Question, prediction: str, version: str) -> tuple[float, float]:
    """Exact match and F1 of one prediction, 0 to 1 each: the best over the question's answers."""
    references = [answer.text for answer in question.answers]
    if version == "v2.0":
        references = [text for text in references if normalize(text)] or [""]
    exact = max(normalize(prediction) == normalize(text) for text in references)
    return float(exact), max(word_f1(prediction, text, empty_matches=version == "v2.0") for text in references)


def mean(values: Iterable[float], count: int) -> float:
    """In per cent, as the official scripts round it."""
    total = 0.0
    for value in values:
        total += value
    return 100.0 * total / count


def with_threshold(
    scores: Sequence[float], na_probs: Sequence[float], answerable: Sequence[bool], threshold: float
) -> list[float]:
    """Scores where a question whose `na_prob` is above the threshold is answered with nothing."""
    rows = zip(scores, na_probs, answerable, strict=True)
    return [float(not has_answer) if na_prob > threshold else score for score, na_prob, has_answer in rows]


def best_threshold(
    scores: Sequence[float], na_probs: Sequence[float], answerable: Sequence[bool], answered: Sequence[bool]
) -> tuple[float, float]:
    """The best mean score, in per cent, that a threshold on `na_probs` gives, and the threshold.

    As the official script finds it: at first nothing is answered, then one question after the other, those with the
    smallest `na_prob` first. Where several have the same one, it may stop between them.

    Args:
        scores: of the questions' predictions; the order decides between equal `na_probs`.
        na_probs: how sure the predictor is that there is no answer.
        answerable: whether there is one.
        answered: whether the prediction is one.
    """
    total = best = float(sum(not has_answer for has_answer in answerable))
    threshold = 0.0
    for index in sorted(range(len(scores)), key=na_probs.__getitem__):
        if answerable[index]:
            total += scores[index]
        elif answered[index]:
            total -= 1
        if total > best:
            best, threshold = total, na_probs[index]
    return 100.0 * best / len(scores), threshold


class SquadScores(Metric):
    """The official metrics, joined over devices without counting a question twice.

    The state is a few numbers per question, and devices are joined by the largest, of which "not there" is below all
    others. So a question that a sampler gives to two devices counts once; sums of scores would count it twice.

    Args:
        questions: of the whole file: one without a prediction counts as 0 in v1.1 and is an error in v2.0.
        version: v1.1 or v2.0.
        na_threshold: a question whose `na_prob` is above it is answered with nothing (v2.0).
        options: of `torchmetrics.Metric`, as `sync_on_compute=False` where every device has all predictions.
    """

    full_state_update = False
    exact: Tensor
    f1: Tensor
    answered: Tensor
    na_prob: Tensor
    place: Tensor

    def __init__(
        self, questions: Sequence[Question], version: str, *, na_threshold: float = NO_ANSWER_THRESHOLD, **options
    ) -> None:
        super().__init__(**options)
        check_version(version)
        self.questions = list(questions)
        self.version = version
        self.na_threshold = na_threshold
        for name in ("exact", "f1", "answered", "na_prob", "place"):
            missing = torch.full((len(self.questions),), -torch.inf, dtype=torch.float64)
            self.add_state(name, missing, dist_reduce_fx="max")

    def update(
        self,
        numbers: Sequence[int],
        texts: Sequence[str],
        na_probs: Sequence[float] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        """Takes predictions.

        Args:
            numbers: [N], indices of the questions.
            texts: [N], "" for no answer.
            na_probs: [N], how sure the predictor is that there is no answer; any scale will do. For all predictions or
                for none.
            places: [N], which of equal `na_probs` comes first, as the official script takes them in the order of their
                file; the questions' own order by default.
        """
        if na_probs is not None and (bad := [value for value in na_probs if not isfinite(value)]):
            raise ValueError(f"{len(bad)} of the no-answer probabilities are not finite: {bad[0]}.")
        rows = {
            "exact": [],
            "f1": [],
            "answered": [float(bool(text)) for text in texts],
            "na_prob": na_probs,
            "place": numbers if places is None else places,
        }
        for number, text in zip(numbers, texts, strict=True):
            exact, f1 = question_scores(self.questions[number], text, self.version)
            rows["exact"].append(exact)
            rows["f1"].append(f1)
        index = torch.tensor(list(numbers), dtype=torch.long, device=self.exact.device)
        for name, values in rows.items():
            if values is not None:
                state = getattr(self, name)
                state[index] = torch.tensor(list(values), dtype=state.dtype, device=state.device)

    @property
    def missing(self) -> list[str]:
        """The ids of questions without a prediction."""
        there = (self.exact > -torch.inf).tolist()
        return [question.id for question, scored in zip(self.questions, there, strict=True) if not scored]

    def compute(self) -> dict[str, float]:
        """By the official names: v1.1 `exact_match`, `f1`; v2.0 `exact`, `f1`, `total`, the same of `HasAns_` and
        `NoAns_`, and with `na_probs` the `best_` scores and their thresholds.

        Raises:
            ValueError: v2.0, and a question has no prediction, or some have a `na_prob` and others have none.
        """
        if self.version == "v1.1":
            count = len(self.questions)
            scores = {"exact_match": self.exact, "f1": self.f1}
            return {name: mean(values.clamp(min=0).tolist(), count) for name, values in scores.items()}
        if missing := self.missing:
            counts = f"{len(missing)} of the {len(self.questions)} questions"
            raise ValueError(
                f'{counts} have no prediction: {first(missing)}. Give every question one, "" for no answer.'
            )
        known = self.na_prob > -torch.inf
        if bool(known.any()) and not bool(known.all()):
            raise ValueError(f"{int((~known).sum())} of the {len(known)} questions have no no-answer probability.")
        return self._scores_v2(with_na_probs=bool(known.all()))

    def _scores_v2(self, *, with_na_probs: bool) -> dict[str, float]:
        answerable = [bool(question.answers) for question in self.questions]
        na_probs = self.na_prob.tolist() if with_na_probs else [0.0] * len(answerable)
        raw = {"exact": self.exact.tolist(), "f1": self.f1.tolist()}
        scores = {name: with_threshold(values, na_probs, answerable, self.na_threshold) for name, values in raw.items()}
        metrics: dict[str, float] = {}
        for prefix, kinds in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
            count = sum(has_answer in kinds for has_answer in answerable)
            if not count:
                continue  # the official script leaves a part without questions out
            for name, values in scores.items():
                part = [v for v, has_answer in zip(values, answerable, strict=True) if has_answer in kinds]
                metrics[prefix + name] = mean(part, count)
            metrics[f"{prefix}total"] = count
        if with_na_probs:
            order = self.place.argsort(stable=True).tolist()
            answered = self.answered.bool().tolist()
            for name, values in raw.items():
                columns = ([column[n] for n in order] for column in (values, na_probs, answerable, answered))
                metrics[f"best_{name}"], metrics[f"best_{name}_thresh"] = best_threshold(*columns)
        return metrics
