"""The house rules that a machine can check: who imports whom, and that every option is documented and read."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from lightrft.algorithms.advantages import ADVANTAGES
from lightrft.algorithms.losses import LOSSES
from lightrft.algorithms.policy_preference import POLICY_LOSSES
from lightrft.algorithms.preference import PREFERENCE_LOSSES
from lightrft.algorithms.selection import GROUP_FILTERS, RESPONSE_FILTERS
from lightrft.config import RUNS, layers
from tests.conftest import EXTENDED

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lightrft"
OPTIONS = list({(n, c): (n, c, f) for kind in RUNS.values() for n, c, f, _ in layers.options(kind)}.values())


def test_imports_follow_the_arrows() -> None:
    """In a process of its own: import-linter switches the loggers of this one off."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("lightrft", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(imports).static_order())) > 200


FILES_OF_A_RUN = {"format.json", "config.yaml", "metrics.jsonl", "summary.json", "curves.png", "log.txt"}


def test_one_room_knows_the_names_of_files_in_a_run_folder() -> None:
    named = {
        str(path.relative_to(PACKAGE)): {
            n.value
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Constant)
        }
        & FILES_OF_A_RUN
        for path in PACKAGE.rglob("*.py")
    }
    assert {file for file, names in named.items() if names} == {"runs/layout.py"}
    assert named["runs/layout.py"] == FILES_OF_A_RUN


@pytest.mark.parametrize(("name", "cls", "field"), OPTIONS, ids=[name for name, *_ in OPTIONS])
def test_every_option_has_a_docstring(name: str, cls: type, field: object) -> None:
    assert layers.field_docs(cls).get(name.split(".")[-1], "").endswith("."), (
        f"{name} needs a sentence under it"
    )


def test_every_option_is_read_somewhere() -> None:
    """By attribute name, in code outside config/: an option that nothing reads is a lie."""
    read: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        if not file.is_relative_to(PACKAGE / "config"):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    unread = [name for name, *_ in OPTIONS if name.split(".")[-1] not in read]
    assert not unread, f"no code reads {', '.join(unread)}"


def test_the_readme_is_at_most_150_lines_and_names_what_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in text
        assert f"\n{target}:" in makefile


ACCELERATORS = re.compile(r"\b(cuda|npu|xpu|mps|hip|rocm|nccl|hccl|xccl)\b", re.IGNORECASE)


def accelerators_named(path):
    """Names of accelerators in the code of a file: attributes, names and texts; not in comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = {
            ast.Attribute: lambda n: n.attr,
            ast.Name: lambda n: n.id,
            ast.Constant: lambda n: n.value if isinstance(n.value, str) and id(n) not in told else "",
        }.get(type(node), lambda n: "")(node)
        yield from ACCELERATORS.findall(text)


def test_no_text_installs_the_package_of_the_index_that_has_our_name() -> None:
    """`lightrft` there is another project, so neither it nor an extra of it may be named in a command."""
    texts = [
        path
        for room in ("lightrft", "docs", "examples", "tests", ".github")
        for path in (ROOT / room).rglob("*")
    ]
    texts += [
        ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
    ]
    named = re.compile(r"install\b[^\n|;]{0,40}[ '\"]lightrft(?![\w/-])|lightrft\\?\[(?!/\]|media\]\",\n)")
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ""}
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in texts
        if path.is_file() and path.suffix in kinds and path != Path(__file__)
        for match in named.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_one_file_alone_knows_kinds_of_accelerators():
    named = {str(p.relative_to(PACKAGE)): list(accelerators_named(p)) for p in PACKAGE.rglob("*.py")}
    assert {file for file, names in named.items() if names} == {"utils/device.py"}


NAMED = re.compile(r"(?:--)?\b([a-z_]+(?:\.[a-z_]+)+)=")


def options_named(path: Path) -> set[str]:
    """Options that texts of a file's code name as `section.option=`; not those of comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and id(n) not in told and isinstance(n.value, str)
    ]
    sections = {name.split(".")[0] for name, *_ in OPTIONS}
    return {name for text in texts for name in NAMED.findall(text) if name.split(".")[0] in sections}


def test_every_option_that_an_error_names_exists() -> None:
    known = {name for name, *_ in OPTIONS}
    named = {str(p.relative_to(PACKAGE)): options_named(p) for p in PACKAGE.rglob("*.py")}
    assert sum(map(len, named.values())) > 100
    # What a dict holds is named behind it: algorithm.options.dual_clip.
    lost = {f: {n for n in names if not {n, n.rpartition(".")[0]} & known} for f, names in named.items()}
    lost = {file: names for file, names in lost.items() if names}
    assert not lost, f"error texts name options that do not exist: {lost}"


def test_an_option_that_does_not_exist_is_seen_in_an_error_text(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        '"""Not rollout.inside="""\nn = 1\nraise ValueError(f"rollout.gruop_size={n}: too few.")\n'
    )
    assert options_named(file) == {"rollout.gruop_size"}


TABLES = {
    "build/tables.py": "the tables",
    "cli/commands.py": "help and errors",
    "cli/help.py": "examples of layers",
    "config/engines.py": "their options",
    "config/foreign_names.py": "options of other frameworks",
    "config/layers.py": "an example of a layer",
    "config/ranges.py": "ranges of their options",
    "config/rewards.py": "the default engine of a judge",
    "config/rollout.py": "the option that chooses one",
    "config/strategy.py": "their options",
    "engines/cuda_graphs.py": "an error that names the option",
    "engines/external.py": "which media they read",
    "engines/footprint.py": "what they hold",
    "engines/paged_kernel.py": "errors that name the option",
    "strategy/base.py": "an error that names the option",
    "strategy/compat.py": "versions of FSDP2 in torch",
    "strategy/memory.py": "which option makes a resident smaller",
}
"""Files that name an engine or a backend other than their own, and what for."""
OWN = {
    "engines/": {
        "vllm": {"vllm", "vllm_server"},
        "sglang": {"sglang"},
        "lmdeploy": {"lmdeploy"},
        "native": {"native"},
    },
    "strategy/": {
        "fsdp": {"fsdp"},
        "zero": {"deepspeed"},
        "deepspeed": {"deepspeed", "fsdp", "zero1", "zero2", "zero3"},
    },
}
"""Room -> how the names of files begin that are an engine or a backend -> what they may call themselves."""
DISTINCT = re.compile(r"\b(vllm|vllm_server|sglang|lmdeploy|fsdp|zero[123]|deepspeed)\b", re.IGNORECASE)
PLAIN = re.compile(r"^(native|single)$|\brollout\.native\b|backend=single\b|\bengines\.native\b")


def parts_named(path: Path) -> set[str]:
    """Names of engines and backends in the code of a file: imports, attributes, names and texts; not in docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        texts = {
            ast.Attribute: lambda n: [n.attr],
            ast.ImportFrom: lambda n: [n.module or "", *(alias.name for alias in n.names)],
            ast.Import: lambda n: [alias.name for alias in n.names],
            ast.Constant: lambda n: [n.value] if isinstance(n.value, str) and id(n) not in told else [],
        }.get(type(node), lambda n: [])(node)
        found |= {match[0] for text in texts for match in [*DISTINCT.finditer(text), *PLAIN.finditer(text)]}
    return found


def own_names(file: str) -> set[str]:
    """What a file that is an engine or a backend may call itself."""
    room, _, name = file.rpartition("/")
    kinds = OWN.get(f"{room}/", {})
    return {one for begin, names in kinds.items() if name.startswith(begin) for one in names}


def test_engines_and_backends_are_named_in_tables_alone() -> None:
    files = {str(p.relative_to(PACKAGE)): p for p in PACKAGE.rglob("*.py")}
    named = {f: {n.lower() for n in parts_named(p)} - own_names(f) for f, p in files.items()}
    named = {file: names for file, names in named.items() if names}
    new = {file: names for file, names in named.items() if file not in TABLES}
    assert not new, f"facts about engines and backends belong to build/tables.py or to themselves: {new}"
    assert set(TABLES) <= set(named), f"no longer needed: {set(TABLES) - set(named)}"


def test_the_name_of_an_engine_is_seen_in_code_and_not_in_a_docstring(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        '"""Not sglang."""\nif config.engine == "native" or config.vllm:\n    raise ValueError("fsdp")\n'
    )
    assert parts_named(file) == {"native", "vllm", "fsdp"}


CHOICES = {
    name
    for table in (ADVANTAGES, LOSSES, PREFERENCE_LOSSES, POLICY_LOSSES, GROUP_FILTERS, RESPONSE_FILTERS)
    for name in table
} - {"none", "dpo"}
"""Functions of algorithms; "none" is also how other options are switched off, "dpo" a command."""


def choices_named(path: Path) -> set[str]:
    """Functions of algorithms that the code of a file names; defaults of options and docstrings may."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr | ast.AnnAssign)}
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in allowed]
    return {text for text in texts if isinstance(text, str)} & CHOICES


def test_options_decide_nothing_by_the_name_of_an_advantage_loss_or_filter() -> None:
    """What a function needs it says itself, by attributes that algorithms/requirements.py reads."""
    named = {
        str(p.relative_to(PACKAGE)): choices_named(p)
        for room in ("config", "datasets", "trainer", "build")
        for p in (PACKAGE / room).glob("*.py")
    }
    named = {file: names for file, names in named.items() if names}
    assert not named


def test_the_name_of_a_loss_is_seen_in_a_comparison_and_not_in_a_default(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text('loss: str = "clipped"\n"""cispo"""\nif loss == "sapo":\n    pass\n')
    assert choices_named(file) == {"sapo"}


def test_no_file_has_more_than_400_lines() -> None:
    long = {
        str(p.relative_to(PACKAGE))
        for p in PACKAGE.rglob("*.py")
        if len(p.read_text(encoding="utf-8").splitlines()) > 400
    }
    assert not long


def test_no_function_has_more_than_60_lines() -> None:
    long = {
        f"{p.relative_to(PACKAGE)}:{node.name}"
        for p in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > 60
    }
    assert not long


LEANING = re.compile(r"(Of|As|That|Those|Its|It|The same|So many|Also|By name)\b")
"""How a docstring begins that is not understood without the name it stands under."""
LEANING_DEFINITION = re.compile(r"(Which|Who|What is new|See [A-Z`])\b|See `")
"""The same for a class or function; an attribute may well be a choice: "Which group"."""


def leaning_docstrings(path: Path) -> set[str]:
    """Docstrings of modules, classes, functions and attributes whose first sentence leans on something else."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, kinds):
            continue
        own = ast.get_docstring(node) or ""
        texts = [
            n.value.value for n in node.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
        ]
        found |= {text for text in texts if isinstance(text, str) and LEANING.match(text)}
        found |= {own} if LEANING_DEFINITION.match(own) else set()
    return found


def test_every_docstring_stands_by_itself() -> None:
    leaning = {str(p.relative_to(PACKAGE)): leaning_docstrings(p) for p in PACKAGE.rglob("*.py")}
    leaning = {file: texts for file, texts in leaning.items() if texts}
    assert not leaning, f"say it with a noun or a verb of its own: {leaning}"


def test_a_docstring_that_leans_on_its_name_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        '"""Files of a run."""\nN = 1\n"""As M."""\nM = 2\n"""Which."""\ndef size():\n    """Which one."""\n'
    )
    assert leaning_docstrings(file) == {"As M.", "Which one."}


def test_tests_that_are_left_out_exist() -> None:
    for line in EXTENDED:
        file, _, name = line.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), line
