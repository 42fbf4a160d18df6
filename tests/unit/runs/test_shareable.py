"""Settings that are passed on name no folder of the machine and no address that is a secret."""

import pytest

from lightrft.runs.shareable import shareable


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"model.path": "/home/alice/base"}, {"model.path": ".../base"}),
        ({"model": {"path": "random:~/shape"}}, {"model": {"path": "random:.../shape"}}),
        ({"log.to": ["/home/alice/s.py:Sink", "wandb"]}, {"log.to": [".../s.py:Sink", "wandb"]}),
        ({"tasks": {"train": {"~/t.py:riddles": 1.0}}}, {"tasks": {"train": {".../t.py:riddles": 1.0}}}),
        ({"tasks.train./home/alice/t.py:r": 1.0}, {"tasks.train..../t.py:r": 1.0}),
        ({"functions": {"r//home/alice/s.py:score": 1.0}}, {"functions": {"r/.../s.py:score": 1.0}}),
        (
            {"functions": {"riddles/math": 1.0, "s.py:f": 2}},
            {"functions": {"riddles/math": 1.0, "s.py:f": 2}},
        ),
        ({"log.notify": "https://hooks.example/T/SECRET"}, {"log.notify": "https://hooks.example/..."}),
        ({"log": {"notify": "HOOK", "to": []}}, {"log": {"notify": "HOOK", "to": []}}),
        ({"tasks.train_file": "hf://owner/rows"}, {"tasks.train_file": "hf://owner/rows"}),
        ({"tasks.system": "Think. /no_think, yes/no ./x"}, {"tasks.system": "Think. /no_think, yes/no ./x"}),
        ({"steps": 3, "evaluate.before": True}, {"steps": 3, "evaluate.before": True}),
    ],
)
def test_folders_and_secrets_are_left_out(given, wanted):
    assert shareable(given) == wanted
