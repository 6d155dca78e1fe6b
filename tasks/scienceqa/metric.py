"""ScienceQA's accuracy in the official categories, in per cent."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from tasks.scienceqa.problems import Problem

NOT_SCORED = -2
YOUNGER_GRADES = {f"grade{number}" for number in range(1, 7)}

# LLaMA-Adapter (arXiv 2303.16199), test accuracy, in the order of `CATEGORIES`.
PUBLISHED = {
    "random choice": (39.83, 40.28, 46.13, 29.25, 47.45, 40.08, 33.66, 39.35, 40.67),
    "GPT-4 (CoT)": (83.99, 85.48, 72.44, 90.27, 82.65, 71.49, 92.89, 86.66, 79.04),
    "LLaMA-Adapter, text": (78.31, 79.00, 73.79, 80.55, 78.30, 70.35, 83.14, 79.77, 75.68),
    "LLaMA-Adapter": (85.19, 84.37, 88.30, 84.36, 83.72, 80.32, 86.90, 85.83, 84.05),
}
# Our metric's name to the column of the paper's table and to the official script's name.
CATEGORIES = {
    "accuracy": ("avg", "acc_average"),
    "acc_natural": ("NAT", "acc_natural"),
    "acc_social": ("SOC", "acc_social"),
    "acc_language": ("LAN", "acc_language"),
    "acc_has_text": ("TXT", "acc_has_text"),
    "acc_has_image": ("IMG", "acc_has_image"),
    "acc_no_context": ("NO", "acc_no_context"),
    "acc_grade_1_6": ("G1-6", "acc_grade_1_6"),
    "acc_grade_7_12": ("G7-12", "acc_grade_7_12"),
}


def categories_of(problem: Problem) -> set[str]:
    """The names under which a problem counts."""
    names = {"accuracy", f"acc_{problem.subject.split()[0]}", f"acc_{problem.topic}"}
    names.add("acc_grade_1_6" if problem.grade in YOUNGER_GRADES else "acc_grade_7_12")
    if problem.hint:
        names.add("acc_has_text")
    if problem.image:
        names.add("acc_has_image")
    if not problem.hint and not problem.image:
        names.add("acc_no_context")
    return names


class ScienceQAAccuracy(Metric):
    """Accuracy over the problems that were scored, whatever part of a split they are.

    The state is one prediction per problem, and devices are joined by the largest, of which `NOT_SCORED` is below all
    others. So a problem that a sampler gives to two devices counts once; sums of right answers would count it twice.

    Args:
        problems: whose predictions may come.
        options: of `torchmetrics.Metric`, as `sync_on_compute=False` where every device has all predictions.
    """

    full_state_update = False
    predictions: Tensor

    def __init__(self, problems: Sequence[Problem], **options: bool) -> None:
        super().__init__(**options)
        self.problems = list(problems)
        unscored = torch.full((len(self.problems),), NOT_SCORED, dtype=torch.long)
        self.add_state("predictions", unscored, dist_reduce_fx="max")

    def update(self, numbers: Tensor, predictions: Tensor) -> None:
        """Takes predictions.

        Args:
            numbers: [B], indices of the problems.
            predictions: [B], indices of options; `UNREADABLE`, or an index beyond the options, counts as wrong.
        """
        self.predictions[numbers.to(self.predictions.device)] = predictions.to(self.predictions.device)

    def compute(self) -> dict[str, float]:
        """Per cent by name of category and topic, those that hold a problem; and the counts `scored`, `unreadable`."""
        right: dict[str, list[bool]] = {}
        counts = {"scored": 0.0, "unreadable": 0.0}
        for problem, prediction in zip(self.problems, self.predictions.tolist(), strict=True):
            if prediction != NOT_SCORED:
                counts["scored"] += 1
                counts["unreadable"] += not 0 <= prediction < len(problem.choices)
                for name in categories_of(problem):
                    right.setdefault(name, []).append(prediction == problem.answer)
        known = [name for name in CATEGORIES if name in right]
        names = [*known, *sorted(right.keys() - set(known))]
        return {name: 100 * sum(right[name]) / len(right[name]) for name in names} | counts


def accuracy(problems: Sequence[Problem], predictions: Sequence[int]) -> dict[str, float]:
    """`ScienceQAAccuracy` of one prediction, which every device has, per problem."""
    metric = ScienceQAAccuracy(problems, sync_on_compute=False)
    metric.update(torch.arange(len(problems)), torch.tensor(predictions))
    return metric.compute()


def table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of per cent in the columns of the paper's table, its own rows below them.

    Args:
        rows: metrics by the row's name; a category without a problem is "-".
    """
    width = max(map(len, (*rows, *PUBLISHED)))
    lines = [" " * width + "".join(f"{short:>7}" for short, _ in CATEGORIES.values())]
    for name, values in rows.items():
        cells = (f"{values[key]:7.2f}" if key in values else f"{'-':>7}" for key in CATEGORIES)
        lines.append(f"{name:<{width}}" + "".join(cells))
    lines.append("published (test, 4241 problems):")
    lines += [f"{name:<{width}}" + "".join(f"{value:7.2f}" for value in row) for name, row in PUBLISHED.items()]
    return "\n".join(lines)
