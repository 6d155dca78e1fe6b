"""Schemas: names, types and defaults of the dataclasses, and keys that nothing reads."""

from dataclasses import fields

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from llama_adapter.launch.schema import NODES, TOP_LEVEL, ModelConfig, check_keys, schema_of, suggestion


@pytest.mark.parametrize("name", NODES)
def test_a_schema_has_its_dataclass_fields_types_and_defaults(name):
    node = NODES[name]
    schema = schema_of(node)
    assert [f.name for f in fields(schema)] == ["_target_", *[f.name for f in fields(node)]]
    assert {f.name: f.type for f in fields(schema)} == {"_target_": str} | {f.name: f.type for f in fields(node)}
    config = OmegaConf.structured(schema)
    assert config._target_ == f"{node.__module__}.{node.__name__}"
    if name != "model":  # whose name and paths must be given
        values = OmegaConf.to_container(config)
        values.pop("_target_")
        assert node(**values) == node()


def test_values_are_converted_or_refused():
    config = OmegaConf.structured(schema_of(NODES["adapter"]))
    config.prompt_length = "12"
    assert config.prompt_length == 12
    for value in ("ten", 2.5):
        with pytest.raises(ValidationError, match="could not be converted to Integer"):
            config.prompt_length = value


def test_what_a_model_must_say():
    config = OmegaConf.structured(schema_of(ModelConfig))
    assert OmegaConf.missing_keys(config) == {"name", "path", "tokenizer"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "float64"}, "model.dtype is 'float64'. Choose float32, bfloat16, float16."),
        ({"quantization": "int3"}, "model.quantization is 'int3'. Choose int8, nf4 or null."),
    ],
)
def test_model_values(values, message):
    with pytest.raises(ValueError) as error:
        ModelConfig("a", "b", "c", **values)
    assert str(error.value) == message


def test_keys_that_nothing_reads():
    check_keys(OmegaConf.create(dict.fromkeys(TOP_LEVEL)))
    with pytest.raises(ValueError) as error:
        check_keys(OmegaConf.create({"seed": 0, "sead": 1}))
    assert str(error.value) == "Unknown key 'sead'. Did you mean 'seed'?"
    with pytest.raises(ValueError) as error:
        check_keys(OmegaConf.create({"xyzzy": 1}))
    assert str(error.value) == "Unknown key 'xyzzy'."


def test_suggestions():
    assert suggestion("alpacca", ["alpaca", "squad"]) == " Did you mean 'alpaca'?"
    assert suggestion("alpacca", ["squad"]) == ""
