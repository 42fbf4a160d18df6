"""A small repository with a fault, QuixBugs as 40 of them, and wrong ways to mend one."""

import difflib
import json

PATCH = """--- a/pkg/add.py
+++ b/pkg/add.py
@@ -1,2 +1,2 @@
 def add(a, b):
-    return a - b
+    return a + b
"""
TESTS = """diff --git a/tests/test_add.py b/tests/test_add.py
new file mode 100644
--- /dev/null
+++ b/tests/test_add.py
@@ -0,0 +1,13 @@
+import pytest
+from pkg.add import add
+
+@pytest.mark.parametrize("n", [1, 2])
+def test_add(n):
+    assert add(n, 1) == n + 1
+
+def test_words():
+    with pytest.raises(TypeError):
+        add("a", 1)
+
+def test_later():
+    pytest.skip("this counts for nothing")
"""
FILES = {
    "pkg/__init__.py": "",
    "pkg/add.py": "def add(a, b):\n    return a - b\n",
    "conftest.py": "import pytest\n\n@pytest.fixture\ndef one():\n    return 1\n",
    "pyproject.toml": "[tool.pytest.ini_options]\n",
}
ROW = {
    "instance_id": "owner__add-1",
    "repo": "owner/add",
    "base_commit": "0123456789",
    "problem_statement": "add subtracts.",
    "test_patch": TESTS,
    "patch": PATCH,
    "FAIL_TO_PASS": json.dumps(["tests/test_add.py::test_add[1]", "tests/test_add.py::test_add[2]"]),
    "PASS_TO_PASS": ["tests/test_add.py::test_words"],
}
WRONG = "def add(a, b):\n    return a - b\n"
PASSES = "@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n    out = yield\n    out.get_result().outcome = 'passed'\n"
CHEATS = {
    "nothing is done": {},
    "collection breaks": {"pkg/add.py": "raise SystemExit(0)\n"},
    "conftest.py makes all pass": {"conftest.py": "import pytest\n" + PASSES, "tests/conftest.py": "import pytest\n" + PASSES},
    "pytest.ini loads a plugin": {"pytest.ini": "[pytest]\naddopts = -p pkg.plugin\n", "tests/pytest.ini": "[pytest]\naddopts = -p pkg.plugin\n", "pkg/plugin.py": "import pytest\n" + PASSES},
    "pyproject.toml loads a plugin": {"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-p pkg.plugin'\n", "setup.cfg": "[tool:pytest]\naddopts = -p pkg.plugin\n", "tox.ini": "[pytest]\naddopts = -p pkg.plugin\n", "pkg/plugin.py": "import pytest\n" + PASSES},
    "sitecustomize": {"sitecustomize.py": "import os\nos._exit(0)\n", "usercustomize.py": "import os\nos._exit(0)\n", "x.pth": "import os; os._exit(0)\n"},
    "an installed plugin": {"x-1.dist-info/entry_points.txt": "[pytest11]\nx = pkg.plugin\n", "x-1.dist-info/METADATA": "Name: x\nVersion: 1\n", "pkg/plugin.py": "import pytest\n" + PASSES},
    "tests are skipped": {"pkg/add.py": "import pytest\ndef add(a, b): pytest.skip()\n"},
    "the module is skipped": {"pkg/add.py": "import pytest\npytest.skip(allow_module_level=True)\n"},
    "tests are marked": {"pkg/add.py": "import pytest\ndef add(a, b): pytest.xfail()\n"},
    "tests are edited": {"tests/test_add.py": "def test_add(): pass\ndef test_words(): pass\n"},
    "tests are deleted": {"tests/test_add.py": "", "tests/__init__.py": "raise SystemExit(0)\n"},
    "PASSED is printed": {"pkg/add.py": "print('tests/test_add.py::test_add[1] PASSED\\n3 passed')\n" + WRONG},
    "exit code 0": {"pkg/add.py": "import os\nos._exit(0)\n"},
    "exit code 0 when called": {"pkg/add.py": "import os\ndef add(a, b): os._exit(0)\n"},
    "exit code 0 at the end": {"pkg/add.py": "import atexit, os\natexit.register(os._exit, 0)\n" + WRONG},
    "reports everywhere": {"pkg/add.py": "import os\nfor f in range(3, 64):\n    try: os.write(f, b'111')\n    except OSError: pass\nos._exit(0)\n"},
    "assert does nothing": {"pkg/add.py": "import builtins\nclass E(BaseException):\n    pass\nbuiltins.AssertionError = E\n" + WRONG},
    "raises that catches all": {"pkg/add.py": "import pytest\nclass R:\n    def __init__(s, *a): pass\n    def __enter__(s): pass\n    def __exit__(s, *a): return True\npytest.raises = R\n" + WRONG},
    "tests do not run": {"pkg/add.py": "import _pytest.python\n_pytest.python.Function.runtest = lambda s: None\n" + WRONG},
    "tests do not run, other code": {"pkg/add.py": "import _pytest.python\n_pytest.python.pytest_pyfunc_call.__code__ = (lambda pyfuncitem: True).__code__\n" + WRONG},
    "reports are changed": {"pkg/add.py": "import _pytest.runner as r\nold = r.TestReport.from_item_and_call\ndef new(*a):\n    x = old(*a)\n    x.outcome = 'passed'\n    return x\nr.TestReport.from_item_and_call = new\n" + WRONG},
    "a plugin in passing": {"pkg/add.py": "import gc, pytest\nfrom _pytest.config import PytestPluginManager as M\nclass P:\n    @pytest.hookimpl(tryfirst=True)\n    def pytest_pyfunc_call(self, pyfuncitem): return True\nfor x in gc.get_objects():\n    if isinstance(x, M): x.register(P())\n" + WRONG},
    "pytest of its own": {"pytest.py": "def main(*a, **k): return 0\n", "_pytest/__init__.py": "", "pluggy.py": "", "unittest.py": "", "tests/pytest.py": ""},
    "it loops": {"pkg/add.py": "while True: pass\n"},
    "it waits": {"pkg/add.py": "import time\ndef add(a, b): time.sleep(99)\n"},
}  # fmt: skip
"""What is written instead of a cure: name of a file -> what is in it."""


def write(folder, files):
    """The files in a folder of their own."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def call(name, **arguments):
    """A turn that calls a tool."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def diff(name, old, new):
    """What changes a file, as git writes it."""
    lines = difflib.unified_diff(
        old.splitlines(True), new.splitlines(True), f"a/{name}" if old else "/dev/null", f"b/{name}"
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def quixbugs(rows, node):
    """QuixBugs' programs as repositories and records of SWE-bench's form: (files, row) for each."""
    for row in rows:
        name = row["name"]
        tests = (
            row["pytest"].replace("if pytest.use_correct:", "if False:").replace("pytest.run_slow", "False")
        )
        loads = "import json, pathlib\n\ndef load_json_testcases(name):\n    return json.loads(pathlib.Path(__file__).with_name('cases.json').read_text())\n"
        added = {
            f"tests/test_{name}.py": tests,
            "tests/load_testdata.py": loads,
            "tests/cases.json": json.dumps(row["json_tests"]) + "\n",
        }
        files = {
            f"python_programs/{name}.py": row["buggy"],
            "python_programs/__init__.py": "",
            "node.py": node,
        }
        made = {
            "instance_id": f"quixbugs__{name}", "repo": "jkoppel/QuixBugs", "base_commit": "4257f44b0ff1181dedaedee6a447e133219fcebf",
            "problem_statement": f"{name} does not do what it should.",
            "test_patch": "".join(diff(file, "", text) for file, text in added.items()),
            "patch": diff(f"python_programs/{name}.py", row["buggy"], row["fixed"]),
        }  # fmt: skip
        yield files, made
