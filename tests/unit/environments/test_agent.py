"""Agent programs that ask the policy as they would ask a server."""

from pathlib import Path

import pytest

from lightrft.config import EnvironmentConfig
from lightrft.environments.agent import Agent, assistant
from lightrft.environments.episodes import Episodes
from lightrft.utils.imports import load_file

PROGRAMS = Path(__file__).with_name("programs.py")
ROW = {"id": "q", "messages": [{"role": "user", "content": "How far?"}], "target": None, "source": "x"}


@pytest.fixture
def begun():
    """Begins with a program; the environment, what it says first, and the rest."""
    agents = []

    def begin(name, seed=3, row=ROW):
        agents.append(Agent(f"{PROGRAMS}:{name}"))
        return agents[-1], *agents[-1].reset(seed=seed, options=row)

    yield begin
    for agent in agents:
        agent.close()


def test_each_request_is_a_turn_and_its_new_messages_the_reply(begun):
    agent, first, info = begun("three_questions")
    assert first == [{"role": "system", "content": "Seed 3."}, {"role": "user", "content": "How far?"}]
    assert info == {"whole_prompt": True, "tools": []}
    for number in range(2):
        said, reward, done, cut, _ = agent.step(f"five, {number}")
        assert (said, reward, done, cut) == (
            [{"role": "user", "content": f"and then, {number}?"}],
            0.0,
            False,
            False,
        )
    assert agent.step("six") == ("", 0.5, True, False, {"counts": {"refused": 0}})


def test_an_async_program_and_one_without_a_reward(begun):
    agent, first, _ = begun("later")
    assert first == ROW["messages"]
    assert agent.step("five")[:3] == ("", 0.0, True)


def test_calls_are_what_clients_read_and_come_back_as_they_were(begun):
    agent, _, info = begun("with_tools")
    assert info["tools"][0]["function"]["name"] == "weather"
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    said, _, done, _, _ = agent.step(f"Let me see. {call}{call}")
    assert said == [{"role": "tool", "content": '{"city": "Köln"}'}] * 2
    assert not done
    assert agent.step(call)[0] == said[:1], "without a text of its own"
    assert agent.step("Rain.")[1:3] == (1.0, True)


def test_a_call_that_is_none_stays_in_the_text():
    said = assistant('<tool_call>{"name": 5}</tool_call> <tool_call>{"name": "a"}</tool_call> well')
    assert said["content"] == '<tool_call>{"name": 5}</tool_call>  well'
    assert [c["function"] for c in said["tool_calls"]] == [{"name": "a", "arguments": "{}"}]


@pytest.mark.parametrize(
    ("name", "told"),
    [("rewrites", "words of the assistant that the policy never said"), ("begins_anew", "another beginning")],
)
def test_a_past_that_no_row_has_is_a_failure_that_says_so(name, told, begun):
    agent, _, _ = begun(name)
    with pytest.raises(ValueError, match=told):
        agent.step("five")


def test_requests_with_another_past_stand_behind_the_turns_that_they_share(begun):
    """The program asks a second time, goes on with that, back to the first answer with another question, and on with the second again."""
    agent, first, _ = begun("wanders")
    assert first == ROW["messages"]
    found = [agent.step(text) for text in ("a1", "b1", "b2", "a2", "b3")]
    user = [[{"role": "user", "content": text}] for text in ("again b", "on a", "once more b")]
    told = [(said, info.get("past")) for said, *_, info in found[:4]]
    assert told == [([], (0, 0)), (user[0], None), (user[1], (0, 1)), (user[2], (1, 2))]
    assert found[4][1:3] == (1.0, True)


def test_a_question_asked_again_behind_a_turn_is_a_reply_of_its_own(begun):
    agent, _, _ = begun("asks_again")
    assert agent.step("x")[0] == [{"role": "user", "content": "why?"}]
    said, _, _, _, info = agent.step("y")
    assert (said, info["past"]) == ([{"role": "user", "content": "why?"}], (0, 1))
    assert agent.step("z")[2]


def test_what_a_program_raises_or_leaves_undone_is_a_failure(begun):
    with pytest.raises(KeyError, match="no such city"):
        begun("raises")
    with pytest.raises(RuntimeError, match=r"programs.py:silent ended before it had asked"):
        begun("silent")


def test_requests_that_cannot_be_answered_are_refused_in_words(begun):
    row = ROW | {"target": {}}
    agent, _, _ = begun("tells_refusals", row=row)
    _, _, done, _, info = agent.step("five")
    assert (done, info) == (True, {"counts": {"refused": len(row["target"])}})
    found = row["target"]
    assert found["n"].startswith("400 n: one choice")
    assert found["path"].startswith("404 no /")
    for name in ("tools", "nameless"):
        assert found[name].startswith("400 tools: expected a list of functions, each with a name")
    assert found["messages"].startswith("400 messages: expected")


def test_a_second_request_at_the_same_time_is_refused(begun):
    agent, _, _ = begun("two_at_once")
    assert load_file(str(PROGRAMS)).refused.wait(30)
    assert agent.step("five")[1:3] == (1.0, True)


def test_an_answer_can_be_read_as_a_stream(begun):
    agent, _, _ = begun("streams")
    assert agent.step("five")[1:3] == (1.0, True)


def test_a_program_whose_conversation_is_cut_is_told_and_says_what_it_has(begun):
    agent, _, _ = begun("endless")
    agent.step("one")
    agent.step("two")
    assert agent.final_reward() == 2.0


@pytest.mark.parametrize("name", ["gives_up", "gives_up_with_words_of_its_own", "gives_up_in_a_group"])
def test_a_program_that_gives_up_when_it_is_cut_has_no_reward(name, begun):
    agent, _, _ = begun(name)
    agent.step("one")
    assert agent.final_reward() == 0.0


def test_what_fails_for_another_reason_after_the_cut_is_a_failure_and_no_zero(begun):
    agent, _, _ = begun("fails_at_its_end")
    agent.step("one")
    with pytest.raises(KeyError, match="score"):
        agent.final_reward()
    agent, _, _ = begun("asks_for_what_is_not_there")
    agent.step("one")
    with pytest.raises(OSError, match="404"):
        agent.final_reward()


def test_other_tools_than_at_first_are_a_failure_and_none_are_not(begun):
    agent, _, _ = begun("leaves_tools_out")
    agent.step("five")
    assert agent.step("six")[1:3] == (1.0, True)
    agent, _, _ = begun("other_tools")
    with pytest.raises(ValueError, match="name all of them in the first request"):
        agent.step("five")


def test_a_program_that_hangs_is_ended_with_its_process(tmp_path):
    (tmp_path / "hang.py").write_text("import time\ndef solve(base_url):\n    time.sleep(60)\n")
    options = EnvironmentConfig(
        name="agent", options={"program": f"{tmp_path}/hang.py:solve"}, workers=1, timeout_seconds=2
    )
    with Episodes(options) as episodes:
        ((_, found),) = episodes.begin([(5, ROW)])
    assert "timeout_seconds" in found.reason


def test_what_is_no_program_is_refused_by_name():
    for options, told in (({"program": f"{PROGRAMS}:no_such"}, "no_such"), ({}, "program")):
        settings = EnvironmentConfig(name="agent", options=options, workers=0)
        with Episodes(settings) as episodes, pytest.raises(ValueError, match=told):
            episodes.schemas()
    with pytest.raises(ValueError, match=r"environment.calls=tags has no effect with environment.name=agent"):
        EnvironmentConfig(name="agent", calls="tags")


def test_the_client_of_openai_asks_it(begun, tmp_path):
    pytest.importorskip("openai", reason="the package openai is not installed")
    (tmp_path / "solve.py").write_text(
        "from openai import OpenAI\n"
        "def solve(base_url, api_key, row):\n"
        "    client = OpenAI(base_url=base_url, api_key=api_key)\n"
        "    assert [m.id for m in client.models.list()] == ['policy']\n"
        "    said = client.chat.completions.create(model='policy', messages=row['messages'])\n"
        "    more = [*row['messages'], said.choices[0].message, {'role': 'user', 'content': 'and?'}]\n"
        "    stream = client.chat.completions.create(model='policy', messages=more, stream=True)\n"
        "    return float(''.join(c.choices[0].delta.content for c in stream) == 'six')\n"
    )
    agent = Agent(f"{tmp_path}/solve.py:solve")
    agent.reset(seed=1, options=ROW)
    assert agent.step("five")[0] == [{"role": "user", "content": "and?"}]
    assert agent.step("six")[1:3] == (1.0, True)
