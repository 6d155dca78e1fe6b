"""The metrics against the official program's numbers, and what is said where a part of it is missing."""

import gzip
import json

import pytest

pytest.importorskip("pycocoevalcap", reason="needs the extra `captions`")

from tasks.coco_captions import java_programs, scorers
from tasks.coco_captions.annotations import read_images, read_split
from tasks.coco_captions.java_programs import Meteor, find_java, tokenise
from tasks.coco_captions.scorers import CaptionScorer, python_scores
from tasks.coco_captions.scoring import read_results

OFFICIAL = {
    "Bleu_1": "BLEU-1",
    "Bleu_2": "BLEU-2",
    "Bleu_3": "BLEU-3",
    "Bleu_4": "BLEU-4",
    "METEOR": "METEOR",
    "ROUGE_L": "ROUGE-L",
    "CIDEr": "CIDEr",
}
# The same program on the same words gives the same bits; another numpy may sum in another order.
EXACT = {"rel": 1e-9, "abs": 1e-12}

try:
    find_java()
    java_found = True
except FileNotFoundError:
    java_found = False
needs_java = pytest.mark.skipif(not java_found, reason="needs Java")


@pytest.fixture(scope="module")
def scorer():
    with CaptionScorer() as scorer:
        yield scorer


@pytest.fixture
def coco(shared):
    return shared / "data/coco"


def case(coco, name: str, official: dict) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Candidates and references of a golden case, as its description says."""
    if isinstance(official["references"], dict):
        candidates = {int(id): caption for id, caption in official["candidates"].items()}
        return candidates, {int(id): captions for id, captions in official["references"].items()}
    images = read_images(coco / "captions_val2017.json")
    references = {id: list(image.captions) for id, image in images.items()}
    if name == "fakecap_126":
        results = read_results(coco / "captions_val2014_fakecap_results.json.gz")
        return {id: results[id] for id in official["image_ids"]}, references
    if name == "results_karpathytest_593_perturbed":
        return read_results(coco / "golden/results_karpathytest_593_perturbed.json.gz"), references
    with gzip.open(coco / "captions_val2017.json.gz", "rt") as file:
        annotations = sorted(json.load(file)["annotations"], key=lambda annotation: annotation["id"])
    references = {}
    for annotation in annotations:
        references.setdefault(annotation["image_id"], []).append(annotation["caption"])
    ids = [id for id in read_split(coco / "karpathy_test_images.txt", "test") if id in references]
    return {id: references[id][0] for id in ids}, {id: references[id][1:] for id in ids}


@needs_java
@pytest.mark.parametrize(
    "name",
    [
        "fakecap_126",
        "human_first_vs_rest_593",
        "results_karpathytest_593_perturbed",
        "tiny_identical",
        "tiny_short",
        "tiny_empty_second",
        "tiny_repeats",
    ],
)
def test_official_scores(coco, scorer, name):
    cases = json.loads((coco / "golden/official_scores.json").read_text())["cases"]
    assert len(cases) == 7
    candidates, references = case(coco, name, cases[name])
    scores = scorer.score(candidates, references)
    expected = {ours: cases[name]["official"][theirs] for theirs, ours in OFFICIAL.items()}
    assert scores.overall == pytest.approx(expected, **EXACT)
    assert list(scores.overall) == list(OFFICIAL.values())
    assert all(list(each) == list(candidates) for each in scores.per_image.values())
    for theirs, each in cases[name].get("per_image", {}).items():
        assert list(scores.per_image[OFFICIAL[theirs]].values()) == pytest.approx(each, **EXACT)


def test_scores_of_tokenised_captions_need_no_java(coco, monkeypatch, capsys):
    monkeypatch.setattr(java_programs, "find_java", lambda: pytest.fail("Java was looked for"))
    with gzip.open(coco / "golden/fakecap_126_tokenised_and_per_image.json.gz", "rt") as file:
        golden = json.load(file)
    references = {id: golden["references_tokenised"][str(id)] for id in golden["order"]}
    candidates = {id: golden["candidates_tokenised"][str(id)] for id in golden["order"]}
    candidates = {id: [c] if isinstance(c, str) else c for id, c in candidates.items()}
    official = json.loads((coco / "golden/official_scores.json").read_text())["cases"]["fakecap_126"]["official"]
    scores = python_scores(candidates, references)
    assert set(scores) == set(OFFICIAL.values()) - {"METEOR"}
    for theirs, ours in OFFICIAL.items():
        if ours in scores:
            assert scores[ours][0] == pytest.approx(official[theirs], **EXACT)
            assert list(scores[ours][1]) == pytest.approx(golden["per_image"][theirs], **EXACT)
    assert capsys.readouterr().out == ""  # the package prints unless it is told not to


@needs_java
def test_the_official_tokenisation(coco, scorer):
    cases = json.loads((coco / "golden/ptb_tokenizer_cases.json").read_text())
    made = tokenise({1: [c["caption"] for c in cases]}, **scorer.programs)
    assert made == {1: [c["tokenised"] for c in cases]}
    with gzip.open(coco / "golden/fakecap_126_tokenised_and_per_image.json.gz", "rt") as file:
        golden = json.load(file)
    images = read_images(coco / "captions_val2017.json")
    made = tokenise({id: images[id].captions for id in golden["order"]}, **scorer.programs)
    assert made == {int(id): captions for id, captions in golden["references_tokenised"].items()}


@needs_java
def test_what_could_put_the_tokeniser_out_of_step(scorer, monkeypatch):
    """Line breaks of every kind, empty captions, tokens that hold a blank, and a locale without accents."""
    monkeypatch.setenv("LC_ALL", "C")
    captions = {1: ["a\u2028b", "c\x85d\r\ne", "f\n"], 2: ["", "1 1/2 cups"], 3: ["..."], 4: ["Café", ""]}
    assert tokenise(captions, **scorer.programs) == {
        1: ["a b", "c d e", "f"],
        2: ["", "1\xa01/2 cups"],
        3: [""],
        4: ["café", ""],
    }


@needs_java
def test_meteors_separator_in_a_caption(scorer):
    """Where it got through, a reference would become two, and METEOR would be asked nonsense."""
    scorer.meteor = scorer.meteor or Meteor(**scorer.programs)
    plain = scorer.meteor.score({1: ["a dog runs"]}, {1: ["a dog runs fast"]})
    assert scorer.meteor.score({1: ["a dog ||| runs"]}, {1: ["a dog runs ||| fast"]}) == plain


@needs_java
def test_meteors_process_ends_with_the_scorer():
    with CaptionScorer() as scorer:
        scorer.meteor = Meteor(**scorer.programs)
        process = scorer.meteor.process
        assert process.poll() is None
    assert process.poll() is not None
    assert scorer.meteor is None


@needs_java
def test_nothing_to_score_and_no_references(scorer):
    with pytest.raises(ValueError) as error:
        scorer.score({}, {1: ["a"]})
    assert str(error.value) == "There are no captions to score."
    with pytest.raises(ValueError) as error:
        scorer.score({1: "a", 2: "b", 3: "c"}, {1: ["a"], 3: []})
    assert str(error.value) == "2 captions are of images without references, such as image 2."


def broken_java(tmp_path, *lines: str) -> dict:
    """A program that fails as Java does, in the place of Java."""
    program = tmp_path / "java"
    program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    program.chmod(0o755)
    return {"java": str(program), "package": scorers._package()}


def test_a_tokeniser_that_fails(tmp_path):
    programs = broken_java(tmp_path, "echo one", "echo 'Could not reserve enough' >&2", "echo 'space.' >&2", "exit 1")
    with pytest.raises(ChildProcessError) as error:
        tokenise({1: ["a", "b"]}, **programs)
    assert str(error.value) == (
        "The tokeniser (a Java program) gave 2 of 2 captions. It said: Could not reserve enough space. - Is Java whole, "
        "and is there memory for it (2 GB)?"
    )


@pytest.mark.parametrize(
    "lines",
    [["echo 'Out of memory' >&2", "exit 1"], ["read line", "echo 1.0 2.0", "echo 'Out of memory' >&2", "exit 1"]],
    ids=["at once", "midway"],
)
def test_meteor_that_ends(tmp_path, lines):
    meteor = Meteor(**broken_java(tmp_path, *lines))
    with pytest.raises(ChildProcessError) as error:
        meteor.score({1: ["a"], 2: ["b"]}, {1: ["a"], 2: ["b"]})
    assert str(error.value) == (
        "METEOR (a Java program) ended before it had scored all captions. It said: Out of memory - Is Java whole, and "
        "is there memory for it (2 GB)?"
    )
    meteor.close()


def test_java_is_found(tmp_path, monkeypatch):
    programs = broken_java(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert find_java() == programs["java"]
    home = tmp_path / "jdk"
    (home / "bin").mkdir(parents=True)
    (home / "bin/java").write_text("#!/bin/sh\n")
    (home / "bin/java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert find_java() == str(home / "bin/java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    assert find_java() == programs["java"]


def test_no_java(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(FileNotFoundError) as error:
        CaptionScorer()
    assert str(error.value) == (
        "Java is not found. The official tokeniser and METEOR are Java programs, and without that tokeniser no caption "
        "metric is comparable. Install a Java runtime (apt install default-jre-headless, or conda install openjdk) or "
        "set JAVA_HOME to one."
    )


def test_no_pycocoevalcap(monkeypatch):
    monkeypatch.setattr(scorers, "find_java", lambda: "java")
    monkeypatch.setattr(scorers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        CaptionScorer()
    assert str(error.value) == 'Caption metrics need pycocoevalcap: pip install "llama-adapter[captions]".'


def test_spice_without_its_models(tmp_path, monkeypatch):
    monkeypatch.setattr(scorers, "find_java", lambda: "java")
    monkeypatch.setattr(scorers, "_package", lambda: tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        CaptionScorer(spice=True)
    assert str(error.value) == (
        f"SPICE needs stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar in {tmp_path}/spice/lib: they are "
        "in stanford-corenlp-full-2015-12-09.zip of nlp.stanford.edu/software. Put them there, or leave SPICE out "
        "(task.evaluation.spice=false)."
    )
