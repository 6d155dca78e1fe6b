"""Images as prompts: from files of any mode to contexts, the same from pixels and from stored features."""

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llama_adapter.architecture import VisionConfig
from llama_adapter.attach import adapters, attach
from llama_adapter.checkpoint import load_adapter, save_adapter
from llama_adapter.data import PaddedCollator
from llama_adapter.examples import image_columns
from llama_adapter.flat_batches import FlatCollator
from llama_adapter.heads import response_loss
from llama_adapter.images import ImageFeatures, PicturedDataset, compute_features, feature_settings, main, read_features
from llama_adapter.vision import ImagePrompt, attach_images, load_tower, prompt_context, read_image
from llama_adapter.zero_init import AdapterConfig
from tests.conftest import tiny_model
from tests.tiny_training import make_examples

SIZE = 16


def tiny_tower() -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=SIZE, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPVisionModel(config).eval()


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    tiny_tower().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
        folder
    )
    return folder


def image_prompt(**options) -> ImagePrompt:
    torch.manual_seed(0)
    options = {"hidden_size": 32, "layers": [1, 3], "projection_width": 5} | options
    tower = tiny_tower()
    return ImagePrompt(tower.config, tower, **options)


def adapted():
    torch.manual_seed(0)
    model = attach_images(tiny_model(), image_prompt())
    return attach(model, AdapterConfig(3, 2, gate_init="random")).eval()


def pictures(folder) -> list:
    """Grey, palette, transparent, one pixel, CMYK, 16 bits: what real data sets hold."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 30, 3), generator=generator, dtype=torch.uint8).numpy()
    colour = Image.fromarray(pixels)
    made = {
        "rgb.png": colour, "grey.png": colour.convert("L"), "palette.png": colour.convert("P"),
        "alpha.png": colour.convert("RGBA"), "one.png": Image.new("RGB", (1, 1), "red"), "bits.png": colour.convert("1"),
        "ink.jpg": colour.convert("CMYK"), "wide.png": Image.new("I;16", (40, 9)), "grey_alpha.png": colour.convert("LA"),
    }  # fmt: skip
    for name, image in made.items():
        image.save(folder / name)
    return [folder / name for name in made]


def test_any_mode_is_read(tower, tmp_path):
    reader = ImageFeatures(tower)
    columns = reader.columns(pictures(tmp_path))
    assert columns["pixel_values"].shape == (9, 3, SIZE, SIZE)
    assert columns["pixel_values"].isfinite().all()
    assert reader.columns([])["pixel_values"].shape == (0, 3, SIZE, SIZE)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    assert torch.equal(*(read_image(path, reader.processor) for path in (clear, tmp_path / "white.png")))


def test_what_is_no_image(tower, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png is not a readable image: .*Replace or remove the file\."):
        ImageFeatures(tower).columns([path])
    pictures(tmp_path)
    whole = (tmp_path / "rgb.png").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"broken\.png is not a readable image"):
        ImageFeatures(tower).columns([path])


def test_features_are_the_class_tokens_of_the_layers(tower):
    pixels = torch.randn(4, 3, SIZE, SIZE)
    states = tiny_tower()(pixels, output_hidden_states=True).hidden_states
    expected = torch.cat((states[1][:, 0], states[3][:, 0]), dim=-1)
    assert torch.equal(image_prompt().features(pixels), expected)
    means = torch.cat((states[1][:, 1:].mean(1), states[3][:, 1:].mean(1)), dim=-1)
    assert torch.equal(image_prompt(patch_mean=True).features(pixels), torch.cat((expected, means), dim=-1))


def test_several_images_are_averaged_and_none_is_zero():
    prompt, pixels = image_prompt(), torch.randn(3, 3, SIZE, SIZE)
    examples = [{"pixel_values": pixels[:2]}, {"pixel_values": pixels[:0]}, {"pixel_values": pixels[2:]}]
    context = prompt(image_columns(examples))
    each = prompt.projection(prompt.features(pixels))
    torch.testing.assert_close(context, torch.stack((each[:2].mean(0), torch.zeros(32), each[2])))
    assert torch.equal(prompt(image_columns(examples[1:2])), torch.zeros(1, 32))


def with_images(count: int = 6) -> list[dict]:
    """Every second example has one."""
    examples = make_examples(count)
    for number, example in enumerate(examples):
        generator = torch.Generator().manual_seed(number)
        example["pixel_values"] = torch.randn(1 - number % 2, 3, SIZE, SIZE, generator=generator)
    return examples


def test_a_step_in_both_forms_of_batch():
    """And only the prompts, the gates and the projection get gradients."""
    results = []
    for collator in (PaddedCollator(0), FlatCollator(0)):
        model = adapted()
        loss, _ = response_loss(model, collator(with_images()))
        loss.backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all(grad is not None and grad.abs().sum() > 0 for grad in trained.values())
        assert {name.split(".")[0] for name in trained} == {"model", "image_prompt"}
        assert all(p.grad is None for p in model.image_prompt.tower.parameters())
        results.append((loss.item(), torch.cat([grad.flatten() for grad in trained.values()])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert (results[0][1] - results[1][1]).norm() < 1e-5 * results[0][1].norm()


def test_examples_without_an_image_see_the_plain_prompts():
    model, examples = adapted(), with_images()
    with_others = response_loss(model, PaddedCollator(0)(examples[1::2]))[0]
    text = [{key: example[key] for key in ("input_ids", "labels")} for example in examples[1::2]]
    assert with_others.item() == pytest.approx(response_loss(model, PaddedCollator(0)(text))[0].item(), rel=1e-6)


def test_the_tower_is_no_part_of_the_model():
    model = adapted()
    assert not any("tower" in name for name, _ in model.named_parameters())
    assert not any("tower" in name for name in model.state_dict())


def test_the_file_holds_the_projection(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path)
    torch.manual_seed(5)
    other = load_adapter(attach_images(tiny_model(), image_prompt(projection_width=5)), tmp_path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(other.get_parameter(name), parameter)
            assert other.get_parameter(name).requires_grad
    batch = PaddedCollator(0)(with_images())
    assert response_loss(other, batch)[0] == response_loss(model, batch)[0]
    with pytest.raises(ValueError, match=r"has a tensor image_prompt\.projection\.1\.bias that the model has no param"):
        load_adapter(tiny_model(), tmp_path)


def test_images_for_a_model_that_takes_none():
    model = attach(tiny_model(), AdapterConfig(3, 2))
    with pytest.raises(
        ValueError, match=r"The batch has images, but the model has no image_prompt\. Call attach_images"
    ):
        prompt_context(model, PaddedCollator(0)(with_images()))


@pytest.mark.parametrize("layers", [[], [0], [4], [1, 1]])
def test_layers_that_the_tower_has_not(layers):
    with pytest.raises(ValueError, match=r"model\.vision\.layers is .*, but the tower has 3 layers\. Choose different"):
        image_prompt(layers=layers)


def test_towers_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No vision tower at .*nowhere\. Set model\.vision\.path=<folder>"):
        load_tower(tmp_path / "nowhere")
    tiny_model().config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds a llama\. model\.vision\.path takes a CLIP model or its vision tower\."
    ):
        load_tower(tmp_path)


def test_paper_sizes():
    """LLaMA-Adapter (arXiv 2303.16199): 1.79M, 1.37M and 0.97M parameters at L = 30, 20, 10, within 0.01M."""
    vision = VisionConfig(path="clip", channels=1024, layers=[6, 12, 18, 24])
    projection = vision.parameters(4096)
    for layers, published in ((30, 1.79), (20, 1.37), (10, 0.97)):
        assert abs((layers * (10 * 4096 + 32) + projection) / 1e6 - published) < 0.01
    prompt = ImagePrompt(tiny_tower().config, hidden_size=32, layers=[1, 2], projection_width=7)
    counted = sum(parameter.numel() for parameter in prompt.parameters())
    assert counted == VisionConfig(channels=16, layers=[1, 2], projection_width=7).parameters(32)
    with pytest.raises(ValueError, match=r"model\.vision\.projection_width must be at least 1, got 0\."):
        VisionConfig(projection_width=0)


# --- stored features --------------------------------------------------------------------------------------------------


def test_training_from_features_is_training_from_pixels(tower, tmp_path):
    paths, prompt = pictures(tmp_path), image_prompt()
    folder = tmp_path / "features"
    assert compute_features(paths[:4], folder, prompt, tower=tower, root=tmp_path, batch_size=3, shard_size=2) == 4
    # What is there is not computed again, and a shard that was being written when a call was killed does not count.
    (folder / "features_00009.safetensors.part").write_bytes(b"half")
    assert compute_features(paths, folder, prompt, tower=tower, root=tmp_path) == 5
    assert compute_features(paths, folder, prompt, tower=tower, root=tmp_path) == 0
    settings = feature_settings(tower, [1, 3])
    stored = ImageFeatures(tower, features=folder, root=tmp_path, settings=settings)
    pixels = ImageFeatures(tower)
    contexts = [prompt(image_columns([reader.columns([p]) for p in paths])) for reader in (stored, pixels)]
    torch.testing.assert_close(*contexts, rtol=1e-5, atol=1e-6)
    assert stored.columns([])["image_features"].shape == (0, 32)
    with pytest.raises(ValueError, match=r"No features of other\.png\. Compute them again, or set task\.features="):
        stored.columns([tmp_path / "other.png"])


def test_features_of_another_tower(tower, tmp_path):
    folder = tmp_path / "features"
    compute_features(pictures(tmp_path)[:2], folder, image_prompt(), tower=tower, root=tmp_path)
    other = feature_settings(tower, [2])
    with pytest.raises(ValueError, match=r"was computed with .*'layers': \[1, 3\].*but this run has .*'layers': \[2\]"):
        read_features(folder, other)
    with pytest.raises(FileNotFoundError, match=r"No image features in .*empty\. Compute them first"):
        read_features(tmp_path / "empty")


def test_adapters_and_images_in_either_order():
    assert len(adapters(adapted())) == 2
    model = attach_images(attach(tiny_model(), AdapterConfig(3, 2)), image_prompt())
    assert all(parameter.requires_grad for parameter in model.image_prompt.parameters())


def test_a_tower_that_was_not_loaded(tower):
    prompt = ImagePrompt(tiny_tower().config, hidden_size=32, layers=[1])
    assert prompt.features(torch.zeros(0, 3, SIZE, SIZE)).shape == (0, 16)
    with pytest.raises(
        ValueError, match=r"The tower was not loaded, but a batch has pixel_values\. Give image_features"
    ):
        prompt.features(torch.zeros(1, 3, SIZE, SIZE))


def test_the_command_that_stores_features(tower, tmp_path, caplog, capsys):
    caplog.set_level("INFO", logger="llama_adapter.images")
    inside = tmp_path / "images/train"
    inside.mkdir(parents=True)
    pictures(inside)
    (inside / "notes.txt").write_text("no image")
    arguments = ["--root", tmp_path / "images", "--tower", tower, "--layers", "1,3", "--output", tmp_path / "features"]
    for made in (9, 0):
        main([*map(str, arguments), "--device", "cpu"])
        assert caplog.messages[-1] == f"{made} of 9 images computed; all are in {tmp_path / 'features'}."
    assert len(read_features(tmp_path / "features", feature_settings(tower, [1, 3]))) == 9
    arguments[1] = tmp_path / "nowhere"
    with pytest.raises(SystemExit):
        main([*map(str, arguments), "--device", "cpu"])
    assert "No folder" in capsys.readouterr().err


def test_a_dataset_with_images_that_is_not_complete():
    class Incomplete(PicturedDataset):
        def __len__(self) -> int:
            return 1

    with pytest.raises(NotImplementedError, match=r"^Incomplete must define text\(index\)\.$"):
        Incomplete(None)[0]
    with pytest.raises(NotImplementedError, match=r"^Incomplete must define image_paths\(index\)\.$"):
        Incomplete(None).image_paths(0)
