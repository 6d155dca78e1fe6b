"""LLaMA-Adapter (arXiv 2303.16199): a frozen transformer learns a task from gated prompts in its top layers.

The names below are the public interface; each is imported when it is first used, since torch and transformers take
seconds to import and the answer to a mistyped command should not.
"""

import sys
from importlib import import_module
from types import ModuleType

_HOMES = {
    "AdapterConfig": "zero_init",
    "attach": "attach",
    "detach": "attach",
    "adapter_disabled": "attach",
    "load_backbone": "loading",
    "load_tokenizer": "tokenizer",
    "save_adapter": "checkpoint",
    "load_adapter": "checkpoint",
    "export_authors": "checkpoint",
    "generate": "generation",
}

__all__ = list(_HOMES)
__version__ = "0.1.0"


class _Package(ModuleType):
    """`llama_adapter.attach` is the function, although a submodule has that name and Python would put it there."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{self.__name__}.{_HOMES[name]}"), name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
