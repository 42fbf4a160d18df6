"""What strangers give or reach: run folders and layers that name code, servers without a key, secrets in addresses."""

import asyncio

import pytest

from lightrft import cli
from lightrft.config import ModelConfig, RolloutConfig, ServerConfig
from lightrft.config.addresses import is_loopback
from lightrft.engines.vllm_gate import Gate
from lightrft.engines.vllm_serve import serve
from lightrft.models.load import load_processor
from lightrft.models.packages import package_model
from lightrft.testing import tiny_model

QUIET = [
    "--evaluate.before-and-after=false",
    "--log.tensorboard=false",
    "--log.curves=false",
    "--log.progress=false",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose settings, also those in its capsule, name code that a stranger has put beside them."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write('x')")
    words = ["tiny", *QUIET, "--rewards.workers", "0", "--steps", "1", "--log.capture-steps", "1"]
    imports = ["--model.imports", str(folder / "evil.py")]
    assert cli.main(["train", *words, *imports, "--run", str(folder / "run")]) == 0
    (folder / "ran").unlink()
    return folder / "run"


def forget():
    """The code that this process has imported before."""
    import sys

    for name in [name for name in sys.modules if "evil" in name]:
        del sys.modules[name]


COMMANDS = {
    "export": lambda run, out: ["export", str(run), str(out)],
    "plan": lambda run, out: ["plan", str(run / "config.yaml")],
    "replay": lambda run, out: ["replay", str(run), "--step", "1"],
    "view": lambda run, out: ["view", str(run), "--step", "1"],
    "config": lambda run, out: ["config", str(run / "config.yaml")],
}


@pytest.mark.parametrize("name", ["export", "plan", "replay"])
def test_commands_that_only_look_run_no_code_that_a_run_names_unless_told_to(run, tmp_path, capfd, name):
    forget()
    ran = run.parent / "ran"
    ran.unlink(missing_ok=True)
    words = COMMANDS[name](run, tmp_path / "out")
    assert cli.main(words) == 2
    told = capfd.readouterr().err
    assert "evil.py" in told
    assert "add --run-code" in told
    assert not ran.exists()
    forget()
    assert cli.main([*words, "--run-code"]) == 0
    assert ran.exists()
    ran.unlink()


@pytest.mark.parametrize("name", ["view", "config"])
def test_looking_at_a_run_runs_nothing(run, tmp_path, name):
    forget()
    (run.parent / "ran").unlink(missing_ok=True)
    assert cli.main(COMMANDS[name](run, tmp_path)) == 0
    assert not (run.parent / "ran").exists()


def asked(gate, path, key):
    sent = []

    async def send(message):
        sent.append(message)

    headers = [] if key is None else [(b"authorization", key.encode())]
    asyncio.run(gate({"type": "http", "path": path, "headers": headers}, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/collective_rpc", "/sleep", "/reset_prefix_cache", "/health", "/"]
)
def test_every_route_of_a_server_asks_for_the_key(monkeypatch, path):
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    monkeypatch.setenv("VLLM_API_KEY", "secret")
    gate = Gate(answer)
    assert [asked(gate, path, key) for key in (None, "Bearer wrong", "secret", "Bearer secret")] == [
        401,
        401,
        401,
        200,
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.7", "node7"])
def test_a_server_that_others_reach_needs_a_key(host):
    assert not is_loopback(host)
    processor = load_processor(ModelConfig(path="random:llama"))
    config = RolloutConfig(engine="vllm_server")
    with pytest.raises(ValueError, match=r"without a key.*--rollout.server.key"):
        serve(tiny_model("llama"), processor, config, host=host, port=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_this_machine_is_known_by_its_addresses(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "url", ["http://user:pa55@node7:8000", "http://pa55@node7:8000", "http://node7:8000/?key=pa55"]
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="rollout.server.key") as refused:
        ServerConfig(urls=[url])
    assert "node7" in str(refused.value)
    assert "pa55" not in str(refused.value)


@pytest.mark.parametrize("name", ["--requirement=req.txt", "-r", "a b", "../x", "a;b", ""])
def test_the_name_of_a_package_is_no_option_of_pip(tmp_path, name):
    with pytest.raises(ValueError, match="not the name of a package"):
        package_model(name, tmp_path)
