"""ScienceQA's files: what is read of them, and what is refused with the file and the problem named."""

import gzip
import json

import pytest

from tasks.scienceqa.problems import SPLITS, check_images, missing_images, read_problems, read_split
from tests.tiny_scienceqa import REAL, record, write_scienceqa


def test_the_real_files(shared, caplog):
    root = shared / "data/scienceqa"
    # ../shared/data/scienceqa/README.md counts them
    sizes = {split: len(read_problems(root, split, problems_file=REAL)) for split in SPLITS}
    assert (sizes["train"], sizes["val"], sizes["test"], sizes["trainval"]) == (1041, 371, 361, 1412)
    assert {split: len(read_split(root, split)) for split in SPLITS} == {
        "train": 12726,
        "val": 4241,
        "test": 4241,
        "trainval": 16967,
        "minitrain": 1272,
        "minival": 424,
        "minitest": 424,
    }
    assert any("holds 361 of the 4241 problems of test; it lacks 1774, " in message for message in caplog.messages)


def test_captions_are_read_where_they_are_asked_for(shared):
    root = shared / "data/scienceqa"
    without = read_problems(root, "test", problems_file=REAL)
    problems = read_problems(root, "test", problems_file=REAL, captions_file="captions.json")
    assert not any(problem.caption for problem in without)
    assert all(bool(problem.caption) == (problem.image is not None) for problem in problems)


def test_the_real_images(shared):
    root = shared / "data/scienceqa"
    problems = [p for p in read_problems(root, "test", problems_file=REAL) if p.image]
    here = [problem for problem in problems if problem.image_path(root).is_file()]
    assert len(here) == 60
    assert len(problems) == len(here) + len(missing_images(problems, root))


def test_problems_come_in_the_order_of_the_split(tmp_path):
    root = write_scienceqa(tmp_path, splits={"minitest": ["3", 1]})
    assert [problem.pid for problem in read_problems(root, "minitest")] == ["3", "1"]


def test_a_problem_as_it_stands_in_the_file(tmp_path):
    changed = record(choices=["a", "b", "c"], answer=2, image="image.png", split="val", hint="Look.", grade="grade12")
    root = write_scienceqa(tmp_path, {"7": changed})
    (problem,) = read_problems(root, "test")
    assert (problem.pid, problem.choices, problem.answer, problem.caption) == ("7", ("a", "b", "c"), 2, "")
    assert problem.image_path(root) == root / "images/val/7/image.png"
    for key in ("question", "hint", "grade", "subject", "topic", "category", "skill", "lecture", "solution", "split"):
        assert getattr(problem, key) == changed[key]


def test_missing_images_are_all_listed(tmp_path):
    root = write_scienceqa(tmp_path, {str(number): record(image="image.png") for number in range(7)} | {"9": record()})
    problems = read_problems(root, "test")
    assert missing_images(problems, root) == [root / f"images/test/{number}/image.png" for number in range(7)]
    with pytest.raises(
        FileNotFoundError,
        match=r"^7 of 7 images are missing: .*/images/test/0/image\.png,.* and 2 more\. Set task\.data\.root to the ",
    ):
        check_images(problems, root)
    for path in missing_images(problems, root):
        path.parent.mkdir(parents=True)
        path.touch()
    check_images(problems, root)


WRONG_PROBLEMS = {
    "has no choices.": lambda: {key: value for key, value in record().items() if key != "choices"},
    "has no answer, image, hint.": lambda: {
        key: value for key, value in record().items() if key not in ("image", "hint", "answer")
    },
    "has 1 choices; it must have 2 to 5.": lambda: record(choices=["apple"]),
    "has 0 choices; it must have 2 to 5.": lambda: record(choices=[]),
    "has 'apple' as its choices; they must be a list of texts.": lambda: record(choices="apple"),
    "has ['apple', 1] as its choices; they must be a list of texts.": lambda: record(choices=["apple", 1]),
    "has the answer 2, but its choices are 0 to 1.": lambda: record(answer=2),
    "has the answer -1, but its choices are 0 to 1.": lambda: record(answer=-1),
    "has the answer True, but its choices are 0 to 1.": lambda: record(answer=True),
    "has the answer 'A', but its choices are 0 to 1.": lambda: record(answer="A"),
    "has None as its hint; it must be a text.": lambda: record(hint=None),
    "has the grade 'grade13'; it must be grade1 to grade12.": lambda: record(grade="grade13"),
    "has the subject 'art'. ScienceQA has natural science, social science, language science.": lambda: record(
        subject="art"
    ),
    "has 3 as its image; it must be a file name or null.": lambda: record(image=3),
    "has the split 'minitest'; it must be train, val, test.": lambda: record(split="minitest"),
    "is no object.": lambda: ["apple"],
}


@pytest.mark.parametrize("message", WRONG_PROBLEMS)
def test_a_problem_that_is_none_is_named(tmp_path, message):
    root = write_scienceqa(tmp_path, {"1": record(), "22": WRONG_PROBLEMS[message]()})
    with pytest.raises(ValueError) as error:
        read_problems(root, "test")
    assert str(error.value) == f"{root}/problems.json, problem 22 {message}"


def test_a_split_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"^ScienceQA has no split 'dev'\. Choose train, val, test, trainval, mini"):
        read_problems(tmp_path, "dev")
    root = write_scienceqa(tmp_path, splits={"test": ["1", "2", "1"]})
    with pytest.raises(ValueError, match=r"pid_splits\.json names problems of test more than once: 1\."):
        read_problems(root, "test")
    with pytest.raises(ValueError, match=r"pid_splits\.json has no list 'val'\. It has test\."):
        read_problems(root, "val")


def test_files_that_are_not_there(tmp_path):
    root = write_scienceqa(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^No file .*/captions\.json\. .* or task\.data\.captions_file to its"):
        read_problems(root, "test", captions_file="captions.json")
    (root / "problems.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"^No file .*/problems\.json\. Set task\.data\.root to the folder of "):
        read_problems(root, "test")
    (root / "pid_splits.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"^No file .*/pid_splits\.json\. Set task\.data\.root to the folder"):
        read_problems(root, "test")


def test_files_that_are_not_whole(tmp_path):
    root = write_scienceqa(tmp_path)
    path = root / "problems.json"
    text = path.read_text()
    path.write_text(text[:-40])
    with pytest.raises(ValueError, match=r"problems\.json is not JSON: .* \(line 1, column \d+\)\. Is it cut off\?"):
        read_problems(root, "test")
    path.write_bytes(b"\xff" + text.encode())
    with pytest.raises(ValueError, match=r"problems\.json cannot be read: .* or not UTF-8 text\?"):
        read_problems(root, "test")
    path.write_text('{"1": {"hint": "", "hint": ""}}')
    with pytest.raises(ValueError, match=r"problems\.json has hint more than once in one object\."):
        read_problems(root, "test")
    path.write_text('{"1": {}, "2": {}, "1": {}}')
    with pytest.raises(ValueError, match=r"problems\.json has 1 more than once in one object\."):
        read_problems(root, "test")
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"problems\.json does not hold an object\."):
        read_problems(root, "test")


def test_a_file_of_other_problems(tmp_path):
    root = write_scienceqa(tmp_path)
    (root / "problems.json").write_text(json.dumps({"8": record()}))
    with pytest.raises(
        ValueError,
        match=r"problems\.json holds none of the 3 problems of test \(1, 2, 3\)\. Set task\.data\.problems_file to ",
    ):
        read_problems(root, "test")


def test_captions_that_are_none(tmp_path):
    root = write_scienceqa(tmp_path)
    path = root / "captions.json"
    path.write_text('{"1": "A tree."}')
    with pytest.raises(ValueError, match=r"captions\.json has no captions\. ScienceQA's form is \{\"captions\": \{pid"):
        read_problems(root, "test", captions_file=path.name)
    path.write_text('{"captions": {"1": null}}')
    with pytest.raises(ValueError, match=r"problem 1 has None as its caption; it must be a text\."):
        read_problems(root, "test", captions_file=path.name)


def test_a_gzipped_file_and_one_that_is_cut_off(tmp_path):
    root = write_scienceqa(tmp_path)
    whole = gzip.compress((root / "problems.json").read_bytes())
    (root / "problems.json").unlink()
    (root / "problems.json.gz").write_bytes(whole)
    assert len(read_problems(root, "test")) == 3
    (root / "problems.json.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"problems\.json\.gz cannot be read: .* Is it cut off, or"):
        read_problems(root, "test")
