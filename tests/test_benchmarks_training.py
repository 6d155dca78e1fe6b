"""The benchmarks of training and generation run, count what they say and compute the same thing in every system."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import generation, training
from benchmarks.examples import count_tokens, draw, random_examples, real_examples
from benchmarks.peak_memory import peak_megabytes
from benchmarks.shapes import PRESETS, Shape, random_model, same_weights
from benchmarks.systems import paper
from benchmarks.systems.system import System, TrainingSteps, Workload
from llama_adapter.examples import IGNORED
from tests.conftest import ROOT

TINY = "--dim 32 --layers 3 --heads 2 --vocab 64 --prompt-length 3 --prompt-layers 2 --rounds 2"
TRAIN = f"{TINY} --batch 6 --max-length 64 --micro-batch 4"
SYSTEMS = ["paper", "padded512", "padded_longest", "flat", "flat_prefix"]


def lines_of(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_system_agrees_and_reports(capsys):
    ratios = training.main(f"{TRAIN} --check --memory --systems {','.join(SYSTEMS)}".split())
    assert list(ratios) == SYSTEMS and ratios["paper"] == 1.0
    lines = lines_of(capsys)
    assert [line["check"] for line in lines if "check" in line] == SYSTEMS
    by_name = {line["system"]: line for line in lines if "system" in line}
    for line in by_name.values():
        assert len(line["seconds"]) == 2 and line["vocab"] == 64 and line["baseline"] == "paper"
        assert line["useful_tokens_per_second"] > line["response_tokens_per_second"] > 0
        assert line["ratio_range"][0] <= line["ratio"] <= line["ratio_range"][1]
        assert line["peak_megabytes"] is None or line["peak_megabytes"] >= 0
    share = {name: line["useful_share"] for name, line in by_name.items()}
    assert share["paper"] == share["padded512"] <= share["padded_longest"] <= share["flat"] == 1 < share["flat_prefix"]


def test_the_systems_of_a_check_have_different_batches():
    # The same numbers from the same rows would prove nothing.
    workload = Workload(Shape(32, 2, 2, 64, 2, 1), max_length=64, micro_batch=4)
    (batch,) = draw(random_examples(64, 64), batch=6, batches=1, seed=0)
    shapes = {
        name: [tuple(micro["input_ids"].shape) for micro in training.SYSTEMS[name](workload).collate(batch)]
        for name in SYSTEMS
    }
    assert shapes["paper"] == shapes["padded512"] == [(4, 64), (2, 64)]
    assert shapes["flat"] == [(1, count_tokens(batch)[0])]
    assert shapes["flat_prefix"][0][1] < shapes["flat"][0][1]


def test_a_system_that_is_wrong_fails_the_check(capsys, monkeypatch):
    def wrong(workload: Workload) -> System:
        right = training.SYSTEMS["flat"](workload)
        return System(right.trainable, right.collate, lambda batch: right.loss(batch) * 1.001)

    monkeypatch.setitem(training.SYSTEMS, "padded512", wrong)
    with pytest.raises(ArithmeticError, match=r"padded512 is off by 1\.0e-03 in the loss and 1\.0e-03 in the grad"):
        training.main(f"{TRAIN} --check --systems paper,padded512".split())


def test_a_system_that_cannot_run_is_skipped_with_its_reason(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)

    def broken(workload: Workload) -> System:
        raise TypeError("forward() got an unexpected keyword\nand more")

    monkeypatch.setitem(training.SYSTEMS, "litgpt", broken)
    ratios = training.main(f"{TRAIN} --systems flat,peft,litgpt".split())
    assert ratios == {"flat": 1.0}  # without the paper's, the first system is the baseline
    captured = capsys.readouterr()
    lines = {line["system"]: line for line in map(json.loads, captured.out.splitlines())}
    assert "pip install 'llama-adapter[benchmarks]'" in lines["peft"]["skipped"]
    assert lines["litgpt"]["skipped"] == "TypeError: forward() got an unexpected keyword"
    assert "skipped: TypeError" in captured.err


@pytest.mark.parametrize("name", ["peft", "litgpt"])
def test_other_implementations_train_their_prompts(capsys, name):
    pytest.importorskip(name, reason="pip install 'llama-adapter[benchmarks]'")
    workload = Workload(Shape(32, 3, 2, 64, 3, 2), max_length=64)
    batches = draw(random_examples(64, 64), batch=4, batches=2, seed=0)
    step = TrainingSteps(training.SYSTEMS[name](workload), batches, "cpu")
    first = [parameter.detach().clone() for parameter in step.system.trainable]
    assert sum(parameter.numel() for parameter in first) == {"peft": 2 * (3 * 32 + 1), "litgpt": 2 * (3 * 32 + 2)}[name]
    for _ in range(3):  # zero gates: the prompts move from the second step on
        step()
    assert not any(torch.equal(a, b) for a, b in zip(first, step.system.trainable, strict=True))


def test_every_round_is_a_step_on_the_next_batch():
    workload = Workload(Shape(32, 2, 2, 64, 2, 1), max_length=64)
    batches = draw(random_examples(64, 64), batch=3, batches=3, seed=0)
    seen: list[int] = []
    right = training.SYSTEMS["flat"](workload)
    system = System(
        right.trainable, right.collate, lambda batch: seen.append(batch["input_ids"].numel()) or right.loss(batch)
    )
    steps = TrainingSteps(system, batches, "cpu")
    before = [parameter.detach().clone() for parameter in system.trainable]
    steps.gradients()
    assert all(torch.equal(a, b) for a, b in zip(before, system.trainable, strict=True))  # it is no step
    for _ in range(3):
        steps()
    assert seen == [steps.positions[0], *steps.positions]
    assert not any(torch.equal(a, b) for a, b in zip(before, system.trainable, strict=True))


def test_the_papers_equations_are_the_frozen_model_when_gates_are_zero():
    model = Workload(Shape(32, 2, 2, 64, 2, 2)).adapted
    for module in model.modules():
        if hasattr(module, "gate"):
            torch.nn.init.zeros_(module.gate)
    ids = torch.randint(3, 64, (2, 9))
    mask = torch.full((9, 9), -torch.inf).triu(1)
    logits, _ = paper.forward(model, ids, torch.arange(9)[None], mask)
    expected = random_model(Shape(32, 2, 2, 64, 2, 2))(ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)  # float32, other summation orders


# --- examples and shapes --------------------------------------------------------------------------------------------


def test_recorded_lengths_are_alpacas():
    examples = random_examples(2048, 512)
    tokens, trained = count_tokens(examples)
    assert len(examples) == 1805
    # the first 1805 records with LLaMA's tokenizer: 123.1 tokens, 60.9 of them trained
    assert (round(tokens / 1805, 1), round(trained / 1805, 1)) == (123.1, 60.9)
    assert max(len(example["input_ids"]) for example in examples) == 512
    first, second, last = examples[0]["input_ids"], examples[1]["input_ids"], examples[-1]["input_ids"]
    assert torch.equal(first[:29], second[:29]) and first[29] != second[29] and first[0] != last[0]
    again = random_examples(2048, 512)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(examples, again, strict=True))


def test_recorded_lengths_equal_the_real_file(shared):
    data = str(shared / "data/alpaca/alpaca_data_first1805.json.gz")
    real = real_examples(data, str(shared / "data/tokenizers/llama"), vocab=32000, max_length=512)
    lengths = [sorted((len(e["labels"]), int((e["labels"] != IGNORED).sum())) for e in some)
               for some in (real, random_examples(64, 512))]  # fmt: skip
    assert lengths[0] == lengths[1]


def test_real_files(capsys):
    data = ["--data", str(ROOT / "miniature/data/alpaca/test.json"), "--tokenizer", str(ROOT / "miniature/llama")]
    options = [*f"{TRAIN} --max-length 256 --systems flat,flat_prefix".split(), *data]
    with pytest.raises(SystemExit):
        training.main(options)
    assert "--vocab is 64, but the tokenizer in" in capsys.readouterr().err
    assert set(training.main([*options, "--vocab", "4096"])) == {"flat", "flat_prefix"}


def test_shorter_limits_cut():
    for example in random_examples(64, 32):
        assert len(example["input_ids"]) <= 32 and (example["labels"] != IGNORED).any()


def test_presets_have_llamas_sizes():
    assert PRESETS["llama-7b"].feed_forward == 11008  # LLaMA-7B's intermediate_size
    assert PRESETS["llama-7b"].adapter.prompt_layers == 30
    assert PRESETS["small"].feed_forward == 1536


def test_models_share_weights_and_nothing_else():
    model = random_model(Shape(32, 2, 2, 64, 2, 1))
    other = same_weights(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.model.layers[0] is not other.model.layers[0]


WRONG = {
    "--preset tiny": "--preset is 'tiny'. Choose small, llama-7b, llama-13b.",
    "--layers 4 --prompt-layers 5": "--prompt-layers is 5, but the model has 4 layers. Choose 1 to 4.",
    "--dim 50 --heads 4": "--dim is 50 and --heads is 4, but a head needs an even number of channels.",
    "--heads 0": "--heads must be at least 1, got 0.",
    "--dtype float8": "--dtype is 'float8'. Choose float32, bfloat16, float16.",
    "--device abacus": "--device is 'abacus', where PyTorch cannot work:",
    "--batch 0": "--batch must be at least 1, got 0.",
    "--rounds 0": "--rounds must be at least 1, got 0.",
}
WRONG_TRAINING = {
    "--batch 5000": "--batch is 5000, but there are 1805 examples. Choose 1 to 1805.",
    "--max-length 1": "--max-length must be at least 2, got 1.",
    "--max-length 4096": "--max-length is 4096, but the model has 2048 positions.",
    "--data x.json": "--data and --tokenizer go together",
    "--systems paper,flatt": "--systems names 'flatt'. Choose from paper,",
    "--data x.json --tokenizer nowhere": "No file or folder nowhere.",
}


@pytest.mark.parametrize("options, sentence", (WRONG | WRONG_TRAINING).items())
def test_training_says_what_is_wrong(capsys, options, sentence):
    with pytest.raises(SystemExit) as error:
        training.main(options.split())
    assert error.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("options, sentence", (WRONG | {"--new-tokens 2048": "positions, prompts included."}).items())
def test_generation_says_what_is_wrong(capsys, options, sentence):
    with pytest.raises(SystemExit):
        generation.main(options.split())
    assert sentence in capsys.readouterr().err


# --- generation, memory, imports ------------------------------------------------------------------------------------


def test_generation_agrees_and_reports(capsys):
    ratios = generation.main(f"{TINY} --batch 3 --new-tokens 5 --check".split())
    assert list(ratios) == ["frozen", "adapted", "adapted_transformers", "paper"] and ratios["frozen"] == 1.0
    lines = lines_of(capsys)
    assert all(line["new_tokens"] == [5] * 3 and len(line["prompt_tokens"]) == 3 for line in lines)
    assert len(set(lines[0]["prompt_tokens"])) == 3  # prompts of different lengths


def test_uneven_answers_have_their_lengths(capsys):
    """More prompts than are decoded together, each with an answer of its own length, the same for every system."""
    generation.main(f"{TINY} --batch 2 --prompts 5 --new-tokens 40 --uneven --rounds 1 --check".split())
    lengths = lines_of(capsys)[0]["new_tokens"]
    assert len(lengths) == 5 and len(set(lengths)) > 1 and max(lengths) <= 40


def test_generation_that_disagrees_fails_the_check():
    with pytest.raises(ArithmeticError, match="b agrees with a on 50% of the greedy tokens, at least 90%"):
        generation.check({"a": lambda: [[1, 2], [3, 4]], "b": lambda: [[1, 2], [4, 3]]})


def test_a_static_cache_gives_the_same_tokens():
    # On a CPU it is no system of its own, but the code is the same.
    workload = Workload(Shape(32, 3, 2, 64, 3, 2))
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    options = {"prompts": prompts, "lengths": [6, 3, 6], "batch": 2}
    static = generation._in_slots(workload.adapted, static=True, compiled=False, **options)
    assert static == generation._in_slots(workload.adapted, **options)
    assert list(map(len, static)) == [6, 3, 6]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's peak")
def test_peak_memory_is_what_was_held_at_once():
    torch.ones(20 * 2**20)  # 80 MB, freed again: not to be counted

    def work() -> None:
        torch.ones(10 * 2**20)  # 40 MB
        torch.ones(15 * 2**20)  # 60 MB, after the first was freed

    assert 55 < peak_megabytes(work, "cpu") < 75


def test_nothing_imports_hydra_or_wandb():
    code = "import sys, benchmarks.training, benchmarks.generation; print({'hydra', 'wandb'} & set(sys.modules))"
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr


@pytest.mark.slow
def test_compiled_systems_agree(capsys):
    training.main(f"{TRAIN} --check --systems paper,paper_compiled,flat_prefix_compiled".split())
    assert {"paper_compiled", "flat_prefix_compiled"} <= {line.get("system") for line in lines_of(capsys)}
