"""Facts that a search finds and nobody is asked about twice."""

from lightrft.config import EnvironmentConfig
from lightrft.environments.episodes import Episodes
from lightrft.tasks import facts


def test_a_search_for_the_name_finds_every_fact():
    options = EnvironmentConfig(
        name="search",
        options={"corpus": "lightrft.tasks.facts:passages", "top": "1"},
        calls="tags",
        workers=0,
    )
    names = {one["name"]: one for one in facts.people()}
    assert len(names) == facts.PEOPLE
    with Episodes(options) as episodes:
        begun = episodes.begin([(1, {})] * len(names))
        said = [
            (episode, f"<search>{name}</search>", False)
            for (episode, _), name in zip(begun, names, strict=True)
        ]
        for (name, one), reply in zip(names.items(), episodes.step(said), strict=True):
            text = reply.messages[0]["content"]
            assert name in text
            assert all(one[kind] in text for kind in facts.QUESTIONS)


def test_who_is_asked_about_in_training_is_not_in_the_evaluation():
    def asked(split, seed=0):
        return [messages[-1]["content"] for messages, _ in facts.questions(split, seed)]

    assert asked("evaluate") == asked("evaluate", 7)
    assert len(asked("train")) == 3 * (facts.PEOPLE - facts.HELD_OUT)
    held_out = {one["name"] for one in facts.people()[-facts.HELD_OUT :]}
    assert not any(name in question for question in asked("train") for name in held_out)
    assert all(any(name in question for name in held_out) for question in asked("evaluate"))
