import random
from pathlib import Path

import pytest

from lightrft.config import EnvironmentConfig, TaskConfig
from lightrft.environments.episodes import spec_of
from lightrft.runs.folder import homeless
from lightrft.utils.paths import with_home, without_home


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann.lee")


@pytest.mark.parametrize(
    ("whole", "short"),
    [
        ("/home/ann.lee/models/m", "~/models/m"),
        ("/home/ann.lee", "~/"),
        ("file:///home/ann.lee/x.png", "file://~/x.png"),
        ("random:/home/ann.lee/m", "random:~/m"),
        ("/home/ann.lee/r.py:score", "~/r.py:score"),
        ("python /home/ann.lee/s.py --to=/home/ann.lee/x", "python ~/s.py --to=~/x"),
        ('no file "/home/ann.lee/x" (looked for /home/ann.lee).', 'no file "~/x" (looked for ~/).'),
        ("[/home/ann.lee/a, '/home/ann.lee/b']", "[~/a, '~/b']"),
    ],
)
def test_a_path_below_the_home_folder_begins_with_a_tilde_and_back(whole, short):
    assert without_home(whole) == short
    back = with_home(short)
    assert back.replace("ann.lee/)", "ann.lee)") == whole or (Path(back) == Path(whole) and short == "~/")


def test_every_path_comes_back_as_the_same_one_and_as_itself_from_settings():
    draw = random.Random(0)
    for _ in range(200):
        parts = ["".join(draw.choices("ab.-_ ,:é", k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3))]
        whole = "/".join(["/home/ann.lee", *parts])
        short = without_home(whole)
        assert short.startswith("~/")
        assert Path(with_home(short)) == Path(whole)
        assert without_home(with_home(short)) == short
    assert spec_of(
        EnvironmentConfig(name="agent", options={"root": without_home("/home/ann.lee")})
    ).options == {"root": "/home/ann.lee/"}


@pytest.mark.parametrize(
    "text",
    [
        "/home/ann.leeds/m",
        "/home/ann.lee-2/m",
        "/home/ann.lee.old/m",
        "/backup/home/ann.lee/m",
        "owner/name",
        "",
        "a ~ b",
        "homes",
    ],
)
def test_any_other_text_stays_as_it_is(text):
    assert without_home(text) == text
    assert with_home(text) == text


def test_a_home_folder_that_is_the_root_is_no_reason_to_change_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert without_home("/data/m") == "/data/m"


def test_a_home_folder_behind_a_link_is_known_by_both_names(monkeypatch, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert without_home(f"{tmp_path}/link/m and {tmp_path}/real/m") == "~/m and ~/m"


def test_settings_have_their_paths_shortened_and_what_models_read_as_it_is():
    said = "/home/ann.lee/x is a path."
    found = homeless(
        TaskConfig(
            train={"file": 1.0},
            train_file="/home/ann.lee/rows.jsonl",
            rewards={
                "/home/ann.lee/r.py:a": 1.0,
                "file//home/ann.lee/r.py:b": 0.5,
                "/home/ann.lee/t.py:T//home/ann.lee/r.py:c": 0.5,
            },
            system=said,
            instruction=said,
        )
    )
    assert found.train_file == "~/rows.jsonl"
    assert found.rewards == {"~/r.py:a": 1.0, "file/~/r.py:b": 0.5, "~/t.py:T/~/r.py:c": 0.5}
    assert (found.system, found.instruction) == (said, said)
    assert Path(found.train_file).expanduser() == Path("/home/ann.lee/rows.jsonl")


def test_an_environment_gets_whole_paths():
    config = EnvironmentConfig(name="mcp", options={"command": "python ~/server.py", "several": "[~/a, b]"})
    assert spec_of(config).options == {
        "command": "python /home/ann.lee/server.py",
        "several": ["/home/ann.lee/a", "b"],
    }
