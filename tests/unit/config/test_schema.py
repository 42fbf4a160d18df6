"""The JSON Schema of layers: every option with its sentence, and every shipped layer fits."""

import json
from functools import reduce

import pytest
import yaml

from lightrft import cli
from lightrft.config import RUNS, layers
from lightrft.config.schema import schema


def fits(value, rule):
    """Whether a value meets a rule of a schema; the few words of JSON Schema that ours use, written anew."""
    if "anyOf" in rule or "enum" in rule:
        return value in rule.get("enum", ()) or any(fits(value, one) for one in rule.get("anyOf", ()))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kinds = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": number and float(value).is_integer(),
        "number": number,
    }
    if not kinds[rule["type"]]:
        return False
    if number:
        return (
            value >= rule.get("minimum", value)
            and value <= rule.get("maximum", value)
            and ("exclusiveMinimum" not in rule or value > rule["exclusiveMinimum"])
            and ("exclusiveMaximum" not in rule or value < rule["exclusiveMaximum"])
        )
    if isinstance(value, list):
        return all(fits(one, rule["items"]) for one in value)
    if isinstance(value, dict):
        known, others = rule.get("properties", {}), rule["additionalProperties"]
        return all(
            fits(v, known[k]) if k in known else others is not False and fits(v, others)
            for k, v in value.items()
        )
    return True


@pytest.mark.parametrize("command", RUNS)
def test_every_option_stands_in_the_schema_with_its_sentence_and_its_default_fits(command):
    whole, docs = schema(RUNS[command], command), {}
    for name, holder, field, _ in layers.options(RUNS[command]):
        found = reduce(lambda rule, part: rule["properties"][part], name.split("."), whole)
        docs.setdefault(holder, layers.field_docs(holder))
        assert found["description"] == docs[holder][field.name]
        assert fits(found["default"], found), name


@pytest.mark.parametrize(("layer", "command"), [("demo", "train"), ("sft_tiny", "sft"), ("dpo_tiny", "dpo")])
def test_what_a_layer_resolves_to_fits_the_schema_of_its_command(layer, command):
    tree = yaml.safe_load(layers.to_yaml(layers.load([layer], RUNS[command])))
    assert fits(tree, schema(RUNS[command], command))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"stepz": 1},
        {"steps": "ten"},
        {"rollout": {"top_p": 0}},
        {"rollout": {"priority_floor": 0.001}},
        {"model": "x"},
        {"seed": 2**32},
        {"extends": 1},
    ],
)
def test_what_the_classes_refuse_the_schema_refuses_too(wrong):
    assert not fits(wrong, schema(RUNS["train"], "train"))


def test_the_command_prints_it(capsys):
    assert cli.main(["schema", "sft"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema(RUNS["sft"], "sft")))
    assert cli.main(["schema", "tiny"]) == 2
    assert "expected one of train, sft, reward, dpo" in capsys.readouterr().err
