"""Runs in a browser, without one: what the answers hold, what the server refuses, and what an exported file is made of."""

import base64
import gzip
import http.client
import json
import re
import threading
from urllib.parse import urlsplit

import pytest

from lightrft import cli
from lightrft.console.web import answers, page
from lightrft.console.web.one_file import export
from lightrft.console.web.server import make_server
from lightrft.runs import trajectories
from lightrft.runs.reader import Run
from lightrft.types import Prompt, Trajectory
from tests.made_runs import learning_run, uniform_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)>\x1b[2J\u202e"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return uniform_run(tmp_path_factory.mktemp("web") / "fine", "fine")


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    return uniform_run(tmp_path_factory.mktemp("web") / "</title><script>alert(2)<", EVIL)


def test_an_overview_has_metrics_by_name_scores_and_settings_without_folders(run):
    told = answers.answer([Run(run)], "0/overview")
    assert told["metrics"]["step"] == [1, 2, 3, 4, 5, 6]
    assert told["metrics"]["reward/mean"][0] == 0.1
    assert told["evaluations"]["after"]["sums"]["score"]["mean"] == 1.0
    assert told["config"] == {"steps": 6, "model.path": ".../small", "model.imports": []}
    assert [one["rule"] for one in told["advice"]] == ["skipped_updates"]
    assert str(run) not in json.dumps(told)


def test_broken_files_are_told_and_the_rest_is_shown(tmp_path):
    run = uniform_run(tmp_path / "broken", "fine", steps=2)
    for file in ("trajectories/step-000002.parquet", "evaluation/after.json", "config.yaml"):
        (run / file).write_text("{broken\n")
    told = answers.answer([Run(run)], "0/overview")
    assert [one.split(":")[0] for one in told["problems"]] == ["evaluation after", "advice", "settings"]
    assert told["metrics"]["step"] == [1, 2]
    assert told["evaluations"]["before"]["sums"]["questions"] == 2
    with pytest.raises(ValueError, match=r"step-000002.parquet: the file is broken"):
        answers.answer([Run(run)], "0/groups/2")


def test_groups_have_their_siblings_and_tokens_all_their_columns(run):
    told = answers.answer([Run(run)], "0/groups/2")["groups"]
    assert [group["number"] for group in told] == [0, 1, 2]
    assert [row["reward"] for row in told[1]["responses"]] == [0.0, 0.25, 0.5, 0.75]
    assert [row["advantage"] for row in told[1]["responses"]] == [-1.5, -0.5, 0.5, 1.5]
    columns = answers.answer([Run(run)], "0/tokens/2/3")["columns"]
    assert columns["difference"] == [0.25, None]
    assert columns["weight"] == [0.5, 0.0]


def test_a_response_without_a_token_has_no_page_of_tokens(tmp_path):
    """As of a model that draws: the page would be empty, and the export would count it as left out or kept."""
    prompt = Prompt("q", [1], [{"role": "user", "content": "?"}], None, "shapes")
    made = [
        Trajectory(prompt, 0, ids, [True] * len(ids), [-0.5] * len(ids), "stop", answer="")
        for ids in ([], [7])
    ]
    trajectories.save(tmp_path, 1, made, pieces=lambda ids: ["a"] * len(ids))
    (group,) = answers.answer([Run(tmp_path)], "0/groups/1")["groups"]
    assert [row["has_tokens"] for row in group["responses"]] == [False, True]
    assert export([Run(tmp_path)], tmp_path / "r.html", 20.0) == [""]
    assert list(saved(tmp_path / "r.html")[1]["0/tokens/1"]) == ["1"]


def test_a_single_response_is_found_without_the_others_over_ranks(tmp_path):
    for rank in (0, 1):
        prompt = Prompt("q", [1], [{"role": "user", "content": "?"}], "5", "sums")
        made = [
            Trajectory(prompt, rank, [7], [True], [-0.5], "stop", answer=f"{rank}.{n}", reward=1.0)
            for n in range(2)
        ]
        trajectories.save(tmp_path, 3, made, rank=rank)
    run = Run(tmp_path)
    assert [run.response(3, place)["response"] for place in range(4)] == ["0.0", "0.1", "1.0", "1.1"]
    assert [row["response"] for row in run.responses(3)] == ["0.0", "0.1", "1.0", "1.1"]
    with pytest.raises(ValueError, match="no response 4 in step 3: its places are 0 to 3"):
        run.response(3, 4)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("0/secrets", "nothing answers '0/secrets'; there are: runs, overview"),
        ("0/tokens/1", "nothing answers"),
        ("7/overview", "no run 7: their numbers are 0 to 0"),
        ("-1/overview", "no run -1"),
        ("0/groups/x", "needs whole numbers"),
        ("0/groups/-1", "needs whole numbers"),
        ("0/groups/99", "no responses of step 99 .*saved steps: 1-6"),
        ("0/tokens/1/99", "no response 99 in step 1: its places are 0 to 11"),
        ("0/evaluation/../../config", "nothing answers"),
        ("0/evaluation/..", r"no evaluation '\.\.'"),
        ("0/pictures/after/9", "no response 9 in evaluation 'after'"),
    ],
)
def test_what_is_not_there_is_named(run, path, said):
    with pytest.raises(ValueError, match=said):
        answers.answer([Run(run)], path)


def test_control_characters_are_written_out_and_what_is_not_finite_is_null():
    told = json.loads(
        answers.encoded({"a\x1b": ["\x1b[2J", "\u202ex\n\ty", float("nan"), float("inf"), 1.5, None, True]})
    )
    assert told == {"a\\x1b": ["\\x1b[2J", "\\u202ex\n\ty", None, None, 1.5, None, True]}


def test_pictures_that_cannot_be_read_say_why_without_their_folder(tmp_path):
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": "/srv/private/a.png"}, {"type": "text", "text": "?"}],
        }
    ]
    prompt = Prompt("q", [1], messages, "5", "sums")
    trajectories.save(
        tmp_path, 1, [Trajectory(prompt, 0, [7], [True], [-0.5], "stop", answer="5", reward=1.0)]
    )
    told = answers.answer([Run(tmp_path)], "0/pictures/1/0")
    assert told["drawn"] == []
    assert "url" not in told["asked"][0]
    groups = answers.answer([Run(tmp_path)], "0/groups/1")
    assert groups["groups"][0]["question"] == "[image a.png]?"
    assert "/srv/private" not in json.dumps([told, groups])


def test_a_picture_of_a_prompt_comes_as_png_whatever_it_was(tmp_path):
    image_class = pytest.importorskip("PIL.Image")
    image_class.new("RGB", (900, 300), (255, 0, 0)).save(tmp_path / "a.jpg")
    (tmp_path / "secret.png").write_text("password")
    parts = [{"type": "image", "image": str(tmp_path / name)} for name in ("a.jpg", "secret.png")]
    prompt = Prompt(
        "q", [1], [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}], "5", "sums"
    )
    trajectories.save(
        tmp_path, 1, [Trajectory(prompt, 0, [7], [True], [-0.5], "stop", answer="5", reward=1.0)]
    )
    shown, refused = answers.answer([Run(tmp_path)], "0/pictures/1/0")["asked"]
    assert base64.b64decode(shown["url"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert refused == {"name": "secret.png", "missing": refused["missing"]}
    assert "password" not in refused["missing"]


@pytest.fixture(scope="module")
def server(run):
    made, address = make_server([Run(run)])
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    assert made.server_address[0] == "127.0.0.1", "nobody else's machine reaches it"
    yield urlsplit(address)
    made.shutdown()
    made.server_close()
    thread.join()


def asked(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection(server.hostname, server.port, timeout=10)
    connection.request(
        method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


def test_the_server_answers_its_own_page_and_parts(server, run):
    reply, body = asked(server, server.path)
    assert reply.status == 200
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in re.findall(r'(?:src|href)="([^"]+)"', body.decode()):
        assert asked(server, server.path + name)[0].status == 200
    reply, body = asked(server, server.path + "api/0/groups/6", Accept_Encoding="gzip")
    assert json.loads(gzip.decompress(body)) == json.loads(
        answers.encoded(answers.answer([Run(run)], "0/groups/6"))
    )
    assert asked(server, server.path, method="HEAD")[1] == b""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "localhost:9999"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[broken"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost", "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"}, 403),
        ({"Host": "localhost", "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
    ],
)
def test_pages_from_elsewhere_are_refused(server, headers, status):
    assert asked(server, server.path, **headers)[0].status == status


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/wrong/",
        "/wrong/api/runs",
        "{}static/../server.py",
        "{}static/%2e%2e/answers.py",
        "{}static//etc/passwd",
        "{}config.yaml",
        "{}api/0/evaluation/..%2f..%2fconfig",
    ],
)
def test_nothing_is_served_but_the_page_and_its_answers(server, path):
    reply, body = asked(server, path.format(server.path))
    assert reply.status == 404
    assert b"import" not in body
    assert b"root:" not in body
    assert b"model" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_the_server_changes_nothing(server, method):
    assert asked(server, server.path + "api/runs", method=method)[0].status == 405


@pytest.mark.parametrize("port", [70000, -1])
def test_a_port_that_cannot_be_is_named(run, port):
    with pytest.raises(ValueError, match=f"--port {port}: .*Set another port, or 0 for a free one"):
        make_server([Run(run)], port)


def test_a_port_that_is_taken_is_named(server, run):
    with pytest.raises(ValueError, match=f"--port {server.port}: .*Set another port"):
        make_server([Run(run)], server.port)


def saved(file):
    text = file.read_text(encoding="utf-8")
    found = json.loads(
        re.search(r'<script type="application/json" id="saved">(.*?)</script>', text, re.DOTALL)[1]
    )
    return text, {path: json.loads(gzip.decompress(base64.b64decode(one))) for path, one in found.items()}


def test_an_export_holds_the_answers_of_the_server(run, tmp_path):
    assert export([Run(run)], tmp_path / "r.html", 20.0) == [""]
    text, kept = saved(tmp_path / "r.html")
    for path in ("runs", "0/overview", "0/evaluation/after", *(f"0/groups/{step}" for step in range(1, 7))):
        assert kept[path] == json.loads(answers.encoded(answers.answer([Run(run)], path)))
    assert kept["0/tokens/6"]["11"] == json.loads(
        answers.encoded(answers.answer([Run(run)], "0/tokens/6/11"))
    )
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S+", "", text)
    assert str(run) not in text
    assert len(text) < 200_000


def test_a_small_export_says_what_it_leaves_out_and_keeps_to_its_size(tmp_path):
    long = uniform_run(tmp_path / "long", text="".join(map(chr, range(0x4E00, 0x5A00))), steps=8)
    size = len(page.alone("", "")) / 2**20 + 0.11
    (told,) = export([Run(long)], tmp_path / "r.html", size)
    text, kept = saved(tmp_path / "r.html")
    assert len(text) <= size * 2**20
    steps = {int(path.split("/")[2]) for path in kept if "/groups/" in path}
    assert {1, 8} <= steps < set(range(1, 9))
    assert f"the responses of {8 - len(steps)} steps" in told
    assert "the tokens of" in told
    assert kept["left_out"] == [told]


def test_a_run_of_the_demos_size_is_a_file_of_a_megabyte_that_says_what_it_leaves_out(tmp_path, capsys):
    """20 steps of 64 responses and 240 held-out prompts. Their log-probs are noise, which nothing packs; the real demo takes half of it."""
    run = learning_run(tmp_path / "run", steps=20, groups=8, siblings=8, held_out=240)
    assert cli.main(["view", str(run), "--export", str(tmp_path / "r.html"), "--export-mib", "0.95"]) == 0
    (told,) = re.findall(
        r"left out of run: (the tokens of \d+ responses)\. A larger", capsys.readouterr().out
    )
    text, kept = saved(tmp_path / "r.html")
    assert len(text.encode()) <= 1_000_000
    assert kept["left_out"] == [told]
    held_out = [len(kept[f"0/evaluation/{when}"]["responses"]) for when in ("before", "after")]
    responses = [
        row
        for step in range(1, 21)
        for group in kept[f"0/groups/{step}"]["groups"]
        for row in group["responses"]
    ]
    assert (held_out, len(responses)) == ([240, 240], 1280)
    assert sum(len(one) for path, one in kept.items() if "/tokens/" in path) == 1280 - int(told.split()[3])


def test_an_export_reads_no_more_of_a_long_run_than_it_has_room_for(run, tmp_path, monkeypatch):
    """The other steps are not opened: with room for reading one step's file, the last step alone is in it."""
    monkeypatch.setattr("lightrft.console.web.one_file.MOST_READ", 1e-9)
    read = []
    load = trajectories.load
    monkeypatch.setattr(trajectories, "load", lambda folder, step: read.append(step) or load(folder, step))
    (told,) = export([Run(run)], tmp_path / "r.html", 20.0)
    assert set(read) == {6}
    assert told == "the responses of 5 steps (1, 2, 3, 4, 5)"


def test_no_text_of_a_run_is_markup_in_an_export(evil, tmp_path):
    export([Run(evil)], tmp_path / "r.html", 20.0)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    outside = text
    for part in (*page.SCRIPTS, *page.STYLES):
        assert page.part(part) in outside
        outside = outside.replace(page.part(part), "")
    assert "alert" not in outside.replace(re.search(r"<title>.*?</title>", outside)[0], "")
    assert "<script>alert" not in outside
    assert "\x1b" not in outside
    assert outside.count("<script") == 1 + len(page.SCRIPTS)


def test_the_policy_of_an_export_allows_its_own_scripts_alone(run, tmp_path):
    import hashlib

    export([Run(run)], tmp_path / "r.html", 20.0)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1].replace(
        "&#x27;", "'"
    )
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    inline = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, re.DOTALL)
    assert {base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in inline} == allowed
    assert "unsafe" not in policy


@pytest.mark.parametrize("words", [["--export-mib", "0"], ["--export-mib", "nan"]])
def test_sizes_that_cannot_be_are_refused(run, tmp_path, capsys, words):
    assert cli.main(["view", str(run), "--export", str(tmp_path / "r.html"), *words]) == 2
    assert "--export-mib" in capsys.readouterr().err


def test_the_command_writes_a_file_of_two_runs(run, tmp_path, capsys):
    assert cli.main(["view", str(run), str(run), "--export", str(tmp_path / "r.html")]) == 0
    assert "MiB" in capsys.readouterr().out
    assert saved(tmp_path / "r.html")[1]["runs"] == ["fine", "fine"]
    assert cli.main(["view", str(run), "--export", str(tmp_path / "no" / "r.html")]) == 2
    assert "--export" in capsys.readouterr().err
    assert cli.main(["view"]) == 2
    assert "which run?" in capsys.readouterr().err
