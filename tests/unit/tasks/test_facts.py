"""Facts that a search finds and nobody is asked about twice."""

from lightrft.config import EnvironmentConfig
from lightrft.environments.episodes import Episodes
from lightrft.tasks import facts


def test_a_search_for_the_name_and_what_is_wanted_finds_every_fact():
    options = EnvironmentConfig(
        name="search",
        options={"corpus": "lightrft.tasks.facts:passages", "top": "1"},
        calls="tags",
        workers=0,
    )
    names = {one["name"]: one for one in facts.people()}
    assert len(names) == facts.PEOPLE
    with Episodes(options) as episodes:
        asked = [(name, kind) for name in names for kind in facts.QUESTIONS]
        begun = episodes.begin([(1, {})] * len(asked))
        words = {"born": "born", "goats": "goats", "house": "lives number"}
        said = [
            (episode, f"<search>{name} {words[kind]}</search>", False)
            for (episode, _), (name, kind) in zip(begun, asked, strict=True)
        ]
        for (name, kind), reply in zip(asked, episodes.step(said), strict=True):
            assert (
                reply.messages[0]["content"] == f"[1] {facts.SENTENCES[kind].format(name, names[name][kind])}"
            )


def test_who_is_asked_about_in_training_is_not_in_the_evaluation():
    def asked(split, seed=0):
        return [messages[-1]["content"] for messages, _ in facts.questions(split, seed)]

    assert asked("evaluate") == asked("evaluate", 7)
    assert len(asked("train")) == 3 * (facts.PEOPLE - facts.HELD_OUT)
    held_out = {one["name"] for one in facts.people()[-facts.HELD_OUT :]}
    assert not any(name in question for question in asked("train") for name in held_out)
    assert all(any(name in question for name in held_out) for question in asked("evaluate"))
