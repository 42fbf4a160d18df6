"""Layers and chat templates of strangers: odd, endless or hostile ones are refused in a sentence."""

import json
import time

import pytest
from jinja2 import TemplateError

from lightrft.cli import main
from lightrft.config import ModelConfig
from lightrft.models import template
from lightrft.models.load import load_processor
from lightrft.testing import tiny_folder

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "text",
    [
        "? [a]\n: 1\n",
        "? {a: 1}\n: 1\n",
        "steps: " + "[" * 5000 + "]" * 5000,
        "{a: " * 3000 + "1" + "}" * 3000,
    ],
)
def test_a_layer_that_is_no_table_of_options_is_refused_by_name(tmp_path, capfd, text):
    (tmp_path / "odd.yaml").write_text(text)
    assert main(["config", str(tmp_path / "odd.yaml")]) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"lightrft: {tmp_path}/odd.yaml: n")
    assert len(told) < 500


LOOP = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("kind", ["llama", "llava"])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (LOOP, "it had not written them after 0.5 s"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for a in range(9999) %}0123456789{% endfor %}", "it writes 99,990 characters"),
    ],
)
def test_a_template_that_does_not_end_well_is_refused(tmp_path, monkeypatch, kind, text, complaint):
    monkeypatch.setattr(template, "LONGEST_SECONDS", 0.5)
    monkeypatch.setattr(template, "MOST_CHARACTERS", 50_000)
    (tmp_path / "chat.jinja").write_text(text)
    processor = load_processor(ModelConfig(path=f"random:{kind}", chat_template=str(tmp_path / "chat.jinja")))
    start = time.monotonic()
    with pytest.raises(TemplateError, match=complaint):
        processor.tokens(HELLO)
    assert time.monotonic() - start < 5


HUGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * [1] }}",
    "{{ 10**(10**10) }}",
    "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{{ '%9999999999s' % 'a' }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '%9999999999s' | format('a') }}",
    "{{ '{:>9999999999}'.format('a') }}",
    "{{ '{:>{w}}'.format_map({'w': 9999999999}) }}",
    "{{ 'a'.center(9999999999) }}",
    "{{ 'a'.zfill(width) if width else 'a'.ljust(9999999999) }}",
    "{{ 'a' | center(9999999999) }}",
    "{{ 'a' | indent(width=9999999999, first=true) }}",
    "{{ ('a' * 9999999).replace('a', 'b' * 9999999) }}",
    "{{ 'a' * 9999999 | replace('a', 'b' * 999999999) }}",
    "{{ ('a' * 9999999).join(range(99999) | map('string')) }}",
    "{{ range(99999) | join('a' * 9999999) }}",
    "{{ range(10**12) | list }}",
]


@pytest.mark.parametrize("text", HUGE)
def test_a_template_whose_single_call_would_take_all_memory_is_refused_before_it(text):
    processor = load_processor(ModelConfig(path="random:llama"))
    start = time.monotonic()
    with pytest.raises((TemplateError, OverflowError)):
        template.written(processor.tokenizer, HELLO, answer_next=True, chat_template=text)
    assert time.monotonic() - start < 2


def test_what_templates_usually_make_comes_as_jinja_makes_it():
    text = (
        "{% set n = namespace(x=messages[0].role ~ ':' ~ (1 + 2)) %}{{ n.x ~ none }} {{ '-' * 3 }} {{ 2**10 }} {{ '%03d' % 7 }} {{ 7 % 4 }} "
        "{{ 'a' | center(5) }}|{{ ['x', 'y'] | join(', ') }} {{ 'aXa' | replace('a', 'bb') }} {{ ([1] + [2]) | tojson }} "
        "{{ '{:>3}'.format(1) }} {{ 'a b'.split()[1] }} {{ 'x\ny' | indent(2) }}"
    )
    tokenizer = load_processor(ModelConfig(path="random:llama")).tokenizer
    right = "user:3None --- 1024 007 3   a  |x, y bbXbb [1, 2]   1 b x\n  y"
    assert template.written(tokenizer, HELLO, answer_next=True, chat_template=text) == right


def test_a_model_folder_whose_tokenizer_is_code_is_refused_without_a_question(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "model", "llama", seed=0)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    file.write_text(json.dumps(settings))
    (folder / "code.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked"))
    with pytest.raises(ValueError, match="LightRFT runs no code of a model folder") as refused:
        load_processor(ModelConfig(path=str(folder)))
    assert "trust_remote_code" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_package_that_a_tiny_model_needs_is_named(monkeypatch):
    def lacks(name):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library\nbut it was not found.\n")

    monkeypatch.setattr("lightrft.models.load.tiny_reader", lacks)
    with pytest.raises(
        ValueError, match="model.path=random:qwen2_vl: .* needs another package: .*Torchvision.*pip install"
    ):
        load_processor(ModelConfig(path="random:qwen2_vl"))
