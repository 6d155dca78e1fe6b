"""Real problems and photographs through training steps and evaluation: a pretrained LLaMA, the miniature's tower."""

import gzip
import json
import shutil

import pytest

from tests.tiny_run import call

STEPS = 3


@pytest.fixture
def model_overrides(shared):
    llama = shared / "weights/tinyllamas-stories260K/hf"
    return [
        "model=miniature_llama_clip", f"model.path={llama}", f"model.tokenizer={llama.parent / 'tok512.model'}",
        "trainer=cpu", f"trainer.max_steps={STEPS}", "adapter.prompt_layers=3", "data.global_batch_size=4",
        "data.micro_batch_size=2", "optimizer.warmup_epochs=0.01", "callbacks.samples.records=[]",
    ]  # fmt: skip


def test_science_questions(shared, tmp_path, model_overrides):
    """Diagrams, maps and photographs, and problems without a picture, in one batch; the official files as they are."""
    source, root = shared / "data/scienceqa", tmp_path / "data"
    problems = json.loads(gzip.decompress((source / "problems_first1773.json.gz").read_bytes()))
    pictured = sorted(path.name for path in (source / "images/test").iterdir() if (path / "image.png").is_file())
    assert len(pictured) > 50
    others = [pid for pid, problem in problems.items() if not problem["image"] and problem["split"] == "test"]
    root.mkdir()
    (root / "images").symlink_to(source / "images")
    (root / "problems.json.gz").symlink_to(source / "problems_first1773.json.gz")
    parts = {"train": (0, 24), "val": (24, 28), "test": (28, 36)}
    splits = {split: pictured[start:end] + others[start:end] for split, (start, end) in parts.items()}
    (root / "pid_splits.json").write_text(json.dumps(splits))
    result = call(
        "train.py", "task=scienceqa", f"task.data.root={root}", "task.data.problems_file=problems.json.gz",
        "task.data.max_length=500", "task.evaluation.max_new_tokens=8", *model_overrides, f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.status == 0, result.output
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["test/scored"] == 16
    assert metrics["test/unreadable"] > 0
    assert (
        "of 16 prompts have more than 504 tokens, which leaves no room for an answer: they count as wrong."
        in result.output
    )
    assert 0 < metrics["test/loss"] < 8
    assert (tmp_path / "run/answers.html").read_text().count('src="data:image/png;base64,') == 8


def test_photographs(shared, tmp_path, model_overrides):
    """A picture's captions are trained, others are captioned; without their scores, which need Java."""
    coco = shared / "data/coco"
    annotations = "captions_val2017_with_images.json"
    pictures = tmp_path / "data/val2017"
    shutil.copytree(coco / "images/val2017", pictures)
    (tmp_path / "data" / annotations).symlink_to(coco / annotations)
    tested = sorted(int(path.stem) for path in pictures.iterdir())[:8]
    (tmp_path / "data/test.txt").write_text("\n".join(map(str, tested)))
    result = call(
        "train.py", "task=coco_captions", f"task.data.root={tmp_path / 'data'}",
        f"task.data.train_annotations={annotations}", f"task.data.annotations={annotations}",
        "task.data.split_file=test.txt", "task.evaluation.score=false", "task.evaluation.max_new_tokens=8",
        "objective.metric=train/epoch_loss", *model_overrides, f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.status == 0, result.output
    captions = json.loads((tmp_path / "run/captions.json").read_text())
    assert sorted(row["image_id"] for row in captions) == tested
