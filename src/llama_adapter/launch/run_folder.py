"""What a run leaves in its folder to be recognised, resumed and read by others."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from llama_adapter.checkpoint_files import step_checkpoints
from llama_adapter.files import whole_file

# Keys that may differ between a run and its continuation.
FREE = ("resume", "plan", "output_dir", "local", "sweep")

# What an option of the trainer sets beside its own node: the same steps, cut in another way for other devices.
OF_TRAINER = {"hardware", "data.micro_batch_size", "data.max_tokens"}


def open_folder(config: DictConfig, folder: Path, typed: list[str]) -> None:
    """Marks the folder as this run's, or makes sure that it is the run to resume.

    Args:
        config: composed.
        folder: of the run.
        typed: what the user gave on the command line this time; these keys may differ from the run's.

    A run that ended before its first checkpoint left nothing to lose: another one may take its folder.

    Raises:
        ValueError: the folder holds another run, a finished one, or one with other settings.
    """
    finished, stored = folder / "metrics.json", folder / "config.yaml"
    if finished.is_file():
        raise ValueError(
            f"{folder} holds a finished run (metrics.json). Choose another folder with hydra.run.dir=<folder>, "
            "or remove this one."
        )
    if not config.resume:
        if step_checkpoints(folder / "checkpoints"):
            raise ValueError(
                f"{folder} holds an unfinished run. Continue it with resume={folder}, or choose another hydra.run.dir."
            )
    elif not stored.is_file():
        raise ValueError(f"resume={folder} has no config.yaml: the run was stopped before it began. Start it again.")
    else:
        _check_same(OmegaConf.load(stored), config, folder, typed)
    with whole_file(stored) as temporary:
        temporary.write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")


def _check_same(before: DictConfig, now: DictConfig, folder: Path, typed: list[str]) -> None:
    if changed := changed_key(before, now, folder, typed):
        key, old, new = changed
        raise ValueError(
            f"{key} was {old!r} when {folder} was started and is {new!r} now. "
            f"To go on with a changed value, give it: {key}=<value>."
        )


def changed_key(
    before: DictConfig, now: DictConfig, folder: Path, typed: list[str]
) -> tuple[str, object, object] | None:
    """The first key that differs between a run's settings and those of its continuation, and its two values.

    Args:
        before, now: settings.
        folder: of the run; where a value names it, it may have moved.
        typed: what the user gave on the command line; these keys may differ.
    """
    changeable = {override.split("=", 1)[0].lstrip("+~") for override in typed}
    changeable |= OF_TRAINER if "trainer" in changeable else set()
    old, new = (dict(_leaves(OmegaConf.to_container(config, resolve=True))) for config in (before, now))
    for key in sorted(old.keys() | new.keys()):
        if key.split(".")[0] in FREE or any(key == k or key.startswith(f"{k}.") for k in changeable):
            continue
        if old.get(key) != new.get(key) and str(folder) not in f"{old.get(key)} {new.get(key)}":
            return key, old.get(key), new.get(key)
    return None


def _leaves(value: object, prefix: str = "") -> list[tuple[str, object]]:
    if isinstance(value, dict) and value:
        return [
            leaf for key, item in value.items() for leaf in _leaves(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)]
