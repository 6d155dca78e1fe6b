"""One node of the configuration to one object, with errors that name the key."""

import re
from collections.abc import Iterable

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from llama_adapter.launch.schema import suggestion


def node(config: DictConfig, name: str, **values: object) -> object:
    """Builds one node from plain values.

    Args:
        config: the parent.
        name: of the node.
        values: further arguments, handed over as they are (Hydra would turn a dataclass into a config).

    Raises:
        ValueError: an argument that the constructor does not have; or the constructor's own error.
    """
    try:
        factory = instantiate(config[name], _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise ValueError(f"{name}: {error}") from error
    try:
        return factory(**values)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(f"{name}: {error}.{_nearest_key(error, config[name])}") from error


def _nearest_key(error: TypeError, known: Iterable[str]) -> str:
    surplus = re.search(r"unexpected keyword argument '([^']+)'", str(error))
    return suggestion(surplus[1], {*known} - {surplus[1]}) if surplus else ""
