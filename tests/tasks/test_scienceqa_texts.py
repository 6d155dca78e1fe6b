"""ScienceQA's files, texts, answers and scores against the official code's own output."""

import gzip
import json

import pytest
import torch

from tasks.scienceqa.answers import UNREADABLE, read_answer
from tasks.scienceqa.metric import CATEGORIES, ScienceQAAccuracy, categories_of, table
from tasks.scienceqa.problems import SPLITS, check_images, missing_images, read_problems, split_size
from tasks.scienceqa.prompt import ASKED, TRAINED, answer_text, check_format, prompt, response
from tasks.scienceqa.scoring import PredictionScoring, read_predictions, write_predictions

PART = "problems_first1773.json"  # the real records at hand


@pytest.fixture
def root(shared):
    return shared / "data/scienceqa"


def gzipped(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def record(**changed) -> dict:
    texts = ("hint", "lecture", "solution", "topic", "category", "skill")
    plain = dict.fromkeys(texts, "") | {"question": "Which is a fruit?", "choices": ["apple", "bus"], "answer": 0}
    plain |= {"image": None, "grade": "grade3", "subject": "natural science", "split": "test", "topic": "biology"}
    return plain | changed


@pytest.fixture
def folder(tmp_path):
    """A data set of three problems; returns a function that writes it with changes."""

    def write(problems: dict | None = None, splits: dict | None = None):
        problems = problems or {str(number): record() for number in (1, 2, 3)}
        (tmp_path / "problems.json").write_text(json.dumps(problems))
        splits = splits or {split: list(problems) for split in SPLITS}
        (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
        return tmp_path

    return write


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_real_files(root, caplog):
    sizes = {split: len(read_problems(root, split, problems_file=PART)) for split in SPLITS}
    assert (sizes["train"], sizes["val"], sizes["test"], sizes["trainval"]) == (1041, 371, 361, 1412)
    assert split_size(root, "test") == 4241
    assert any(message.endswith("holds 361 of the 4241 problems of test.") for message in caplog.messages)
    problems = read_problems(root, "test", problems_file=PART)
    assert sum(problem.image is not None for problem in problems) == 167
    assert any(problem.caption for problem in problems)
    here = [p for p in problems if p.image and p.image_path(root).is_file()]
    assert len(here) == 167 - len(missing_images(problems, root)) > 50


def test_missing_images_are_all_listed(folder):
    root = folder({str(number): record(image="image.png") for number in range(7)} | {"9": record()})
    with pytest.raises(
        FileNotFoundError, match=r"7 of 7 images are missing: .*/images/test/0/image\.png,.* and 2 more"
    ):
        check_images(read_problems(root, "test"), root)


WRONG_PROBLEMS = {
    "has no choices.": lambda: {key: value for key, value in record().items() if key != "choices"},
    "has 1 choices; it must have 2 to 5.": lambda: record(choices=["apple"]),
    "has 0 choices": lambda: record(choices=[]),
    "has 'apple' as its choices; they must be a list": lambda: record(choices="apple"),
    "has the answer 2, but its choices are 0 to 1.": lambda: record(answer=2),
    "has the answer True": lambda: record(answer=True),
    "has None as its hint; it must be a text.": lambda: record(hint=None),
    "has the grade 'grade13'": lambda: record(grade="grade13"),
    "has the subject 'art'": lambda: record(subject="art"),
    "has 3 as its image": lambda: record(image=3),
    "is no object.": lambda: ["apple"],
}


@pytest.mark.parametrize("message", WRONG_PROBLEMS)
def test_a_problem_that_is_none_is_named(folder, message):
    root = folder({"1": record(), "22": WRONG_PROBLEMS[message]()})
    with pytest.raises(ValueError) as error:
        read_problems(root, "test")
    assert str(error.value).startswith(f"{root}/problems.json, problem 22 {message[:20]}")
    assert message in str(error.value)


def test_files_that_are_not_there_or_not_whole(folder):
    root = folder()
    with pytest.raises(ValueError, match=r"ScienceQA has no split 'dev'\. Choose train, val, test"):
        read_problems(root, "dev")
    text = (root / "problems.json").read_text()
    (root / "problems.json").write_text(text[:-40])
    with pytest.raises(ValueError, match=r"problems\.json is not JSON: .*Is it cut off\?"):
        read_problems(root, "test")
    (root / "problems.json").write_text('{"1": {}, "1": {}}')
    with pytest.raises(ValueError, match=r"problems\.json has 1 more than once in one object\."):
        read_problems(root, "test")
    (root / "problems.json").write_text(json.dumps({"8": record()}))
    with pytest.raises(ValueError, match=r"problems\.json holds none of the 3 problems of test\."):
        read_problems(root, "test")
    (root / "problems.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"No file .*problems\.json\. Set task\.data\.root to the folder of Sci"
    ):
        read_problems(root, "test")
    root = folder(splits={"test": ["1", "2", "1"]})
    with pytest.raises(ValueError, match=r"pid_splits\.json names problems of test more than once: 1\."):
        read_problems(root, "test")
    with pytest.raises(ValueError, match=r"pid_splits\.json has no list 'val'\. It has test\."):
        read_problems(root, "val")


def test_a_cut_off_archive(folder):
    root = folder()
    whole = gzip.compress((root / "problems.json").read_bytes())
    (root / "problems.json").unlink()
    (root / "problems.json.gz").write_bytes(whole)
    assert len(read_problems(root, "test")) == 3
    (root / "problems.json.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"problems\.json\.gz cannot be read: .*Is it cut off"):
        read_problems(root, "test")


# --- texts ------------------------------------------------------------------------------------------------------------


def test_official_prompts(root):
    problems = {p.pid: p for split in ("train", "val", "test") for p in read_problems(root, split, problems_file=PART)}
    golden = json.loads((root / "golden/official_prompts.json").read_text())["prompts"]
    assert len(golden) == 60
    for case in golden:
        problem, caption = problems[case["pid"]], case["use_caption"]
        asked = prompt(problem, case["format"], caption=caption)
        assert asked == case["test"]
        assert asked + response(problem, case["format"], caption=caption) == case["train"]


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("asked", ASKED)
def test_every_format_has_the_parts_of_its_name(folder, asked, trained):
    (problem,) = read_problems(folder({"1": record(hint="h", lecture="lec", solution="sol")}), "test")
    name = f"{asked}-{trained}"
    check_format(name)
    text = prompt(problem, name)
    assert ("lec" in text, "sol" in text) == ("L" in asked, "E" in asked)
    assert text.index("Question") < text.index("Options") < text.index("Answer:")
    assert (text.index("Context") < text.index("Question")) == asked.startswith("C")
    text = response(problem, name)
    assert "The answer is A." in text
    swapped = {"AL": "E", "AE": "L"}.get(trained, trained)  # as in the official builder
    assert ("lec" in text, "sol" in text) == ("L" in swapped, "E" in swapped)


def test_brackets_and_reasons(folder):
    (problem,) = read_problems(folder({"1": record(answer=1)}), "test")
    assert response(problem, "QCM-A", brackets=True) == answer_text("B", brackets=True) == " The answer is (B)."
    assert response(problem, "QCM-ALE") == " The answer is B."  # no lecture, no solution: no BECAUSE
    with pytest.raises(ValueError, match=r"task\.data\.format is 'QCM-B'\. Join one of QCM, CQM"):
        check_format("QCM-B")


READINGS = {
    "The answer is B.": 1,
    "The answer is (B).": 1,
    "The answer is (B)": 1,
    "The answer is B": 1,
    "the answer is C. BECAUSE: The answer is A.": 2,
    "A lecture. The answer is A.\n": 0,
    "The answer is Batman.": UNREADABLE,
    "The answer is (B.": UNREADABLE,
    "The answer is E.": UNREADABLE,
    "The answer is": UNREADABLE,
    "B": UNREADABLE,
    "": UNREADABLE,
}


@pytest.mark.parametrize("text", READINGS)
def test_answers_are_read_by_a_fixed_rule(text):
    assert read_answer(text, choices=3) == READINGS[text]


def test_real_generations_are_read_as_the_official_parser_did(root):
    """Where the text has an answer; the official script guesses where it has none."""
    texts = gzipped(root / "gpt3_QCM-ALE_test_outputs.json.gz")["outputs"]
    results = gzipped(root / "gpt3_QCM-ALE_test_results.json.gz")["results"]
    read = {pid: read_answer(text, choices=5) for pid, text in texts.items()}
    assert sum(index == UNREADABLE for index in read.values()) == 243
    readable = {pid: index for pid, index in read.items() if index != UNREADABLE}
    differing = {pid for pid, index in readable.items() if index != results[pid]}
    # Texts that name an answer more than once: the official parser takes none of them and guesses.
    assert all(texts[pid].count("The answer is ") > 1 for pid in differing)
    assert len(differing) <= 6


# --- scores -----------------------------------------------------------------------------------------------------------


def test_official_scores(root, tmp_path):
    golden = json.loads((root / "golden/official_scores.json").read_text())
    scoring = PredictionScoring(root, problems_file=PART)
    for number, (name, case) in enumerate(golden["cases"].items()):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"results": case["predictions"]}))
        metrics = scoring(path, tmp_path)
        for key, expected in case["official_on_subset"].items():
            ours = metrics.get(f"test/{'accuracy' if key == 'acc_average' else key}")
            assert (ours is None) if expected == -1 else f"{ours:.2f}" == expected, (name, key)
        assert metrics["test/scored"] == 361
        assert "361 of the 4,241 problems of test were scored." in (tmp_path / "scores.txt").read_text()


def test_the_published_file(root, tmp_path):
    """All 4241 of them; the records at hand are 361."""
    metrics = PredictionScoring(root, problems_file=PART)(root / "gpt3_QCM-ALE_test_results.json.gz", tmp_path)
    assert f"{metrics['test/accuracy']:.2f}" == "74.52"


def test_a_part_can_be_scored_and_a_stranger_cannot(folder, tmp_path, caplog):
    root = folder()
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"results": {"1": 0, "3": 7}}))
    metrics = PredictionScoring(root)(path, tmp_path)
    assert (metrics["test/accuracy"], metrics["test/scored"]) == (50.0, 2.0)
    path.write_text(json.dumps({"results": {"1": 0, "77": 1}}))
    with pytest.raises(
        ValueError, match=r"has predictions for 1 problems that are not in test: 77\. Set task\.data\.te"
    ):
        PredictionScoring(root)(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"results": {}}', r"has no predictions\. ScienceQA's form is"),
        ("[1]", r"does not hold an object\."),
        ('{"results": {"1": "A"}}', r"has 'A' as the prediction of problem 1; it must be a whole number\."),
        ('{"results": {"1": 0', r"is not JSON"),
        ('{"results": {"1": 0, "1": 1}}', r"has 1 more than once in one object\."),
    ],
)
def test_prediction_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_predictions(path)
    with pytest.raises(FileNotFoundError, match=r"No file .*none\.json\."):
        read_predictions(tmp_path / "none.json")


def test_written_predictions_are_read_back(folder, tmp_path):
    problems = read_problems(folder(), "test")
    write_predictions(tmp_path / "predictions.json", problems, [0, 1, UNREADABLE])
    assert read_predictions(tmp_path / "predictions.json") == {"1": 0, "2": 1, "3": -1}


def test_devices_are_joined_without_counting_twice(folder):
    """Two devices with one problem in common, as samplers pad."""
    problems = read_problems(folder(), "test")
    devices = [ScienceQAAccuracy(problems) for _ in range(2)]
    devices[0].update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    devices[1].update(torch.tensor([2, 0]), torch.tensor([UNREADABLE, 0]))
    joined = ScienceQAAccuracy(problems)
    joined.predictions = torch.stack([metric.predictions for metric in devices]).max(dim=0).values
    values = joined.compute()
    assert values["accuracy"] == pytest.approx(100 / 3)
    assert (values["scored"], values["unreadable"]) == (3, 1)
    assert joined._reductions["predictions"] is not None
    metric = ScienceQAAccuracy(problems)
    assert metric.compute() == {"scored": 0, "unreadable": 0}


def test_categories(folder):
    changes = {"1": {"hint": "h"}, "2": {"image": "image.png", "grade": "grade7"}, "3": {}}
    one, two, three = read_problems(folder({pid: record(**change) for pid, change in changes.items()}), "test")
    common = {"accuracy", "acc_natural", "acc_biology"}
    assert categories_of(one) == common | {"acc_grade_1_6", "acc_has_text"}
    assert categories_of(two) == common | {"acc_grade_7_12", "acc_has_image"}
    assert categories_of(three) == common | {"acc_grade_1_6", "acc_no_context"}
    assert len(table({"ours": {"accuracy": 12.345}}).splitlines()) == 7
    assert " 85.19  84.37" in table({}) and next(iter(CATEGORIES)) == "accuracy"
