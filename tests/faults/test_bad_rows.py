"""Rows that nothing can be made of: each is named by file and line, or counted where on_bad_record=skip; what a row says is kept."""

import datetime
import gzip
import json
from copy import deepcopy
from decimal import Decimal

import pytest

from lightrft.config import SFTConfig, TaskConfig
from lightrft.datasets.conversations import Conversations, conversation
from lightrft.datasets.formats import columns, svamp
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.preferences import pair
from lightrft.datasets.prompts import prepare
from lightrft.models.processor import Processor
from lightrft.tasks.table import load_task
from lightrft.testing import tiny_processor
from lightrft.types import Prompt, Record

GOOD = '{"prompt": "Q", "target": "1"}'
ROWS = {
    "surrogate in the prompt": '{"prompt": "Q \\ud83d", "target": "1"}',
    "surrogate in the target": '{"prompt": "Q", "target": "a\\ud83d"}',
    "surrogate in a key": '{"prompt": "Q", "target": "1", "\\ud83d": 1}',
    "content is a number": '{"prompt": [{"role": "user", "content": 5}], "target": "1"}',
    "part is a number": '{"prompt": [{"role": "user", "content": [5]}], "target": "1"}',
    "content is blank": '{"prompt": [{"role": "user", "content": "  "}], "target": "1"}',
    "role is a list": '{"prompt": [{"from": [], "value": "x"}], "target": "1"}',
    "role is an object": '{"prompt": [{"from": {}, "value": "x"}], "target": "1"}',
    "role in capitals": '{"prompt": [{"role": "User", "content": "x"}], "target": "1"}',
    "speaker unknown": '{"prompt": [{"from": "chatgpt", "value": "x"}], "target": "1"}',
    "tools": '{"prompt": [{"role": "user", "content": "x"}], "target": "1", "tools": [{"name": "f"}]}',
    "tool calls": '{"prompt": [{"role": "user", "content": "x", "tool_calls": [1]}], "target": "1"}',
    "reasoning": '{"prompt": [{"role": "user", "content": "x", "reasoning_content": "hm"}], "target": "1"}',
    "target empty": '{"prompt": "Q", "target": ""}',
    "target blank": '{"prompt": "Q", "target": "  "}',
    "target NaN": '{"prompt": "Q", "target": NaN}',
    "long number": '{"prompt": "Q", "target": ' + "1" * 5000 + "}",
    "deep": '{"prompt": ' + "[" * 100_000 + "}",
    "key twice": '{"prompt": "Q", "target": "1", "target": "2"}',
    "no object": "[1]",
    "cut": '{"prompt": "Q"',
}


def loaded(folder, text, policy="raise", name="rows.jsonl", **options):
    place = folder / name
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = TaskConfig(train_file=str(place), on_bad_record=policy, **options)
    records = load_task("file").load("train", config, "", 0)
    return records, prepare(records, tiny_processor(), config)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_bad_row_is_named_by_file_and_line_or_counted(tmp_path, row):
    text = f"{GOOD}\n{row}\n{GOOD}\n"
    with pytest.raises(ValueError, match=r"rows.jsonl:2: .*(?s:.*)Fix the row"):
        loaded(tmp_path, text)
    records, (prompts, _) = loaded(tmp_path, text, "skip")
    assert (len(prompts), records.skipped) == (2, 1)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"a\xff,1", "not Unicode"),
        (b"a,1,2", "more or fewer columns"),
        (b"x" * 140_000 + b",1", "cannot be read as csv"),
        (b'a"b"c,"1"2', "cannot be read as csv"),
    ],
)
def test_a_bad_line_of_a_csv_is_named_and_the_others_are_read(tmp_path, line, told):
    text = b"prompt,target\nQ,1\n" + line + b"\nR,2\n"
    with pytest.raises(ValueError, match=rf"rows.csv:3: .*{told}"):
        loaded(tmp_path, text, name="rows.csv")
    records, _ = loaded(tmp_path, text, "skip", name="rows.csv")
    assert ([r.target for r in records], records.skipped) == (["1", "2"], 1)


def test_a_csv_whose_header_names_a_column_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="names the column 'target' twice"):
        loaded(tmp_path, "prompt,target,target\nQ,1,2\n", name="rows.csv")


@pytest.mark.parametrize("content", [b"PAR1 no", b"prompt,target\nQ,1\n", b"PAR1" + bytes(200) + b"PAR1"])
def test_a_broken_parquet_is_named(tmp_path, content):
    with pytest.raises(ValueError, match="rows.parquet: cannot be read as parquet"):
        loaded(tmp_path, content, name="rows.parquet")


def test_a_flipped_parquet_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"prompt": [f"question {n}" for n in range(300)], "target": ["\u00e9"] * 300})
    parquet.write_table(table, tmp_path / "good.parquet", compression="snappy")
    raw = bytearray((tmp_path / "good.parquet").read_bytes())
    for place in range(4, 400, 3):
        raw[place] ^= 255
    with pytest.raises(ValueError, match="rows.parquet"):
        loaded(tmp_path, bytes(raw), name="rows.parquet")


def test_an_error_text_is_one_line_without_escapes(tmp_path):
    row = b'{"a\\n": \x1b[2J\x9b forged'
    with pytest.raises(ValueError, match="rows.jsonl:1") as error:
        loaded(tmp_path, row + b"\n")
    assert "\x1b" not in str(error.value)


def refusing(text):
    tiny = tiny_processor()
    found = Processor(deepcopy(tiny.tokenizer), tiny.stop_ids, tiny.vocab_size)
    found.tokenizer.chat_template = text
    return found


TEMPLATE = "{% for m in messages %}{% if m['content'] == 'bad' %}{{ raise_exception('not that') }}{% endif %}{{ m['content'] }}{% endfor %}"


def asked(*contents):
    return [Record(f"t/{n}", [{"role": "user", "content": c}], "1", "t") for n, c in enumerate(contents)]


def test_a_template_that_refuses_a_row_names_it():
    with pytest.raises(ValueError, match="t/1: the chat template refuses it: not that"):
        prepare(asked("x", "bad"), refusing(TEMPLATE), TaskConfig())
    prompts, counts = prepare(asked("x", "bad"), refusing(TEMPLATE), TaskConfig(on_bad_record="skip"))
    assert (len(prompts), counts.broken) == (1, 1)


def test_a_token_beyond_the_models_table_is_named():
    tiny = tiny_processor()
    small = Processor(tiny.tokenizer, tiny.stop_ids, ord("x"))
    with pytest.raises(ValueError, match="t/0: token .* is beyond the model's table of 120"):
        prepare(asked("xyz"), small, TaskConfig())


def test_two_records_of_one_id_are_refused():
    with pytest.raises(ValueError, match="t/0: another record has this id"):
        prepare(asked("x") + asked("y"), tiny_processor(), TaskConfig())


PARTS = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hi."}]


def test_parts_that_are_all_text_are_read_as_text():
    config = TaskConfig()
    prompt = [{"role": "user", "content": PARTS}]
    assert columns({"prompt": prompt, "target": "hi"}, config).prompt == [
        {"role": "user", "content": "Say hi."}
    ]
    talk = [*prompt, {"role": "assistant", "content": PARTS}]
    assert conversation({"messages": talk}, config).target == [{"role": "assistant", "content": "Say hi."}]
    assert tiny_processor().rendered(prompt) == "<|user|>Say hi.<|end|><|assistant|>"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "complete: def f(x):", "completion": "    return x\n"},
        {"instruction": "complete: def f(x):", "output": "    return x\n"},
        {
            "messages": [
                {"role": "user", "content": "complete: def f(x):"},
                {"role": "assistant", "content": "    return x\n"},
            ]
        },
    ],
)
def test_a_completion_keeps_its_blanks(row):
    prompts, _ = Conversations.of(tiny_processor(), SFTConfig()).prompts(
        [Record("r", *conversation(row, TaskConfig()), "t")], lambda record: ""
    )
    assert tiny_processor().text(prompts[0].target.token_ids, special=True) == "    return x\n<|end|>"


ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, {**SAID, "reasoning_content": "hm"}]},
        {"messages": [ASKED, {**SAID, "loss": False}]},
        {"messages": [ASKED, {**SAID, "train": False}]},
        {"messages": [ASKED, {**SAID, "weight": 0}]},
        {"messages": [ASKED, {**SAID, "content": 5}]},
        {"messages": [ASKED, {**SAID, "content": {"text": "x"}}]},
        {"messages": [ASKED, SAID], "tools": [{"name": "f"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0}]},
        {"conversations": [{"from": [], "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "system", "content": "s"}, ASKED, SAID], "system": "be kind"},
        {"instruction": "q", "output": "a", "history": [5]},
    ],
)
def test_what_a_row_says_about_learning_is_refused_and_not_dropped(row):
    with pytest.raises(ValueError, match="not supported|system|history|needs a role|is from"):
        conversation(row, TaskConfig())


def test_a_preference_keeps_its_blanks_and_refuses_what_it_would_drop():
    row = {"prompt": "q", "chosen": "    x\n", "rejected": "y"}
    assert pair(row, TaskConfig()).chosen == [{"role": "assistant", "content": "    x\n"}]
    with pytest.raises(ValueError, match="'reasoning_content', which is not supported"):
        pair({**row, "chosen": [{**SAID, "reasoning_content": "hm"}]}, TaskConfig())


def test_an_empty_system_message_is_none():
    row = {"prompt": [{"role": "system", "content": ""}, ASKED], "target": "1"}
    assert columns(row, TaskConfig()).prompt == [ASKED]


@pytest.mark.parametrize(
    ("number", "text"), [(1000000, "1000000"), (1234567, "1234567"), (123456.7, "123456.7"), (145.0, "145")]
)
def test_numbers_of_svamp_are_written_in_full(number, text):
    assert svamp({"Body": "b", "Question": "q", "Answer": number}, TaskConfig()).target == text


def loader(*targets):
    return PromptLoader([([Prompt(f"q{n}", [1], [], t, "t") for n, t in enumerate(targets)], 1.0)], seed=0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Decimal(8), Decimal(9)),
        (b"a", b"b"),
        (datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)),
        ({1: 2, "a": 3}, {1: 2, "a": 4}),
    ],
)
def test_a_target_that_changed_is_noticed_whatever_its_type(one, other):
    state = loader(one).state()
    loader(one).load(state)
    with pytest.raises(ValueError, match="the training data of 't' changed"):
        loader(other).load(state)


def test_a_prompt_from_a_checkpoint_has_its_target_from_the_data():
    restored = Prompt("q0", [1], [], "Decimal('1.50')", "t")
    assert [p.target for p in loader(Decimal("1.50")).completed([restored])] == [Decimal("1.50")]


def test_a_cut_gzip_is_named(tmp_path):
    text = gzip.compress((json.dumps({"prompt": "Q", "target": "1"}) + "\n").encode() * 500)
    with pytest.raises(ValueError, match="rows.jsonl.gz: broken or cut off gzip"):
        loaded(tmp_path, text[:-20], name="rows.jsonl.gz")
