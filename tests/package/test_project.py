"""The house rules, read from the package's syntax trees; its packaging; the guard on global state."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "scoresde"
FILES = sorted(PACKAGE.rglob("*.py"))

# ---------------------------------------------------------------------------------------------------------------------
# House rules

FORBIDDEN_MODULES = {"cloudpickle", "dill", "imp", "importlib", "joblib", "marshal", "pickle", "runpy", "shelve"}
ALLOWED_SUBMODULES = {"importlib.metadata", "importlib.resources"}
FORBIDDEN_BUILTINS = {"__import__", "compile", "eval", "exec", "hasattr"}
# The command line is a process of its own, and this file of it says how many threads it uses.
MAY_SET_THREADS = PACKAGE / "cli" / "threads.py"
MAY_DROP = PACKAGE / "nn" / "blocks.py"
# These read or write pickles, fetch code, or set what the whole process shares. ``torch.load(..., weights_only=True)``
# reads tensors and no objects.
FORBIDDEN_NAMES = {
    "torch.hub",
    "torch.load",
    "torch.manual_seed",
    "torch.package",
    "torch.save",
    "torch.seed",
    "torch.set_default_device",
    "torch.set_default_dtype",
    "torch.set_num_threads",
    "torch.set_rng_state",
    "torch.use_deterministic_algorithms",
}
RANDOM_NAMES = {
    "numpy.random",
    "random",
    "torch.bernoulli",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.multinomial",
    "torch.normal",
    "torch.poisson",
    "torch.rand",
    "torch.rand_like",
    "torch.randint",
    "torch.randint_like",
    "torch.randn",
    "torch.randn_like",
    "torch.random",
    "torch.randperm",
}
RANDOM_METHOD = re.compile(r"(bernoulli|cauchy|exponential|geometric|log_normal|normal|random|uniform)_")
# Dropout draws from the global generator and takes no other; the initialisers do unless they are given one.
DROPOUT = re.compile(r"torch\.nn\.(functional\.|modules\.dropout\.)?\w*dropout\w*", re.IGNORECASE)
INITIALISER = re.compile(r"torch\.nn\.init\.(kaiming_|xavier_|trunc_)\w+|torch\.nn\.init\.(orthogonal|sparse)_")


def aliases(tree: ast.Module) -> dict[str, str]:
    """Map each name that an import binds to its full dotted name."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """Return the full dotted name of a chain of attributes that starts at an imported name, else None."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in names:
        return ".".join([names[node.id], *reversed(parts)])
    return None


def within(name: str, forbidden: set[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in forbidden)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def keywords(call: ast.Call) -> dict[str | None, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords}


def loads_weights_only(node: ast.AST) -> bool:
    """Whether this is a call with the literal weights_only=True."""
    if not isinstance(node, ast.Call):
        return False
    only = keywords(node).get("weights_only")
    return isinstance(only, ast.Constant) and only.value is True


def violations(
    source: str, *, may_draw: bool = False, may_drop: bool = False, may_set_threads: bool = False
) -> list[str]:
    """Return what a source file does against the house rules.

    ``may_draw`` is for the one file that draws numbers, ``may_drop`` for the one whose dropout ``fit`` seeds,
    ``may_set_threads`` for the one that sets how many threads run.
    """
    tree = ast.parse(source)
    names = aliases(tree)
    found: list[str] = []
    allowed = {"torch.set_num_threads"} if may_set_threads else set()
    tensors_alone = {id(node.func) for node in ast.walk(tree) if loads_weights_only(node)}

    def report(node: ast.stmt | ast.expr, what: str) -> None:
        found.append(f"line {node.lineno}: {what}")

    for node in ast.walk(tree):
        for module in imported(node):
            if within(module, FORBIDDEN_MODULES) and not within(module, ALLOWED_SUBMODULES):
                report(node, f"imports {module}")
            if within(module, FORBIDDEN_NAMES):
                report(node, f"uses {module}")
            if not may_draw and (within(module, RANDOM_NAMES) or RANDOM_METHOD.fullmatch(module.rpartition(".")[2])):
                report(node, f"draws with {module} outside noise.py")
            if not (may_draw or may_drop) and DROPOUT.fullmatch(module):
                report(node, f"draws with {module}, which only knows the global generator")
        if isinstance(node, ast.Global):
            report(node, f"keeps global state in {', '.join(node.names)}")
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_BUILTINS:
            report(node, f"uses {node.id}")
        if isinstance(node, ast.Attribute):
            name = dotted(node, names)
            # The walk reads a chain at its full length and at each prefix, so an exact match reports it once.
            if name in FORBIDDEN_NAMES - allowed and not (name == "torch.load" and id(node) in tensors_alone):
                report(node, f"uses {name}")
            if not may_draw and (name in RANDOM_NAMES or RANDOM_METHOD.fullmatch(node.attr)):
                report(node, f"draws with {name or node.attr} outside noise.py")
            if not (may_draw or may_drop) and name is not None and DROPOUT.fullmatch(name):
                report(node, f"draws with {name}, which only knows the global generator")
        if isinstance(node, ast.Call):
            name = dotted(node.func, names)
            if not may_draw and name == "torch.Generator":
                report(node, "makes a torch.Generator outside noise.py")
            if name is not None and INITIALISER.fullmatch(name) and "generator" not in keywords(node):
                report(node, f"initialises with {name} and no generator")
            allow = keywords(node).get("allow_pickle")
            if allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False):
                report(node, "allows pickles")
            if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                report(node, "moves to a CUDA device of its own choice")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_keeps_the_house_rules(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    found = violations(
        source,
        may_draw=path == PACKAGE / "noise.py",
        may_drop=path == MAY_DROP,
        may_set_threads=path == MAY_SET_THREADS,
    )
    assert found == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("eval('1')", "uses eval"),
        ("run = exec", "uses exec"),
        ("__import__('os')", "uses __import__"),
        ("hasattr(x, 'y')", "uses hasattr"),
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle.loads"),
        ("def f():\n    import importlib", "imports importlib"),
        ("from importlib import import_module", "imports importlib.import_module"),
        ("import torch\ntorch.load('x')", "uses torch.load"),
        ("import torch\ntorch.load('x', weights_only=False)", "uses torch.load"),
        ("import torch\ntorch.load('x', weights_only=flag)", "uses torch.load"),
        ("import torch\ntorch.load('x', weights_only=1)", "uses torch.load"),
        ("import torch\nread = torch.load", "uses torch.load"),
        ("from torch import load\nload('x', weights_only=True)", "uses torch.load"),
        ("import torch\ntorch.save(x, 'y', weights_only=True)", "uses torch.save"),
        ("import torch\ntorch.set_num_threads(1)", "uses torch.set_num_threads"),
        ("from torch import save", "uses torch.save"),
        ("import torch as th\nth.manual_seed(0)", "uses torch.manual_seed"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allows pickles"),
        ("def f():\n    global x\n    x = 1", "keeps global state in x"),
        ("x.cuda()", "moves to a CUDA device"),
        ("import torch\ntorch.randn(3)", "draws with torch.randn"),
        ("import torch\nf = torch.randn_like", "draws with torch.randn_like"),
        ("from torch import randperm", "draws with torch.randperm"),
        ("import torch\ntorch.empty(3).normal_()", "draws with normal_"),
        ("import numpy as np\nnp.random.default_rng(0)", "draws with numpy.random"),
        ("from numpy.random import default_rng", "draws with numpy.random.default_rng"),
        ("from numpy import random", "draws with numpy.random"),
        ("import random", "draws with random"),
        ("import torch\ng = torch.Generator()", "makes a torch.Generator"),
        ("from torch import nn\nnn.init.xavier_uniform_(w)", "initialises with torch.nn.init.xavier_uniform_"),
        ("from torch import nn\nnn.init.normal_(w)", "draws with torch.nn.init.normal_"),
        ("from torch import nn\nnn.Dropout(0.1)", "draws with torch.nn.Dropout"),
        ("from torch.nn import Dropout2d", "draws with torch.nn.Dropout2d"),
        ("from torch.nn.init import normal_", "draws with torch.nn.init.normal_"),
        ("from torch.nn import functional\nfunctional.dropout(x)", "draws with torch.nn.functional.dropout"),
    ],
)
def test_each_rule_bites(source: str, expected: str) -> None:
    found = violations(source)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import torch\ndef f(generator: torch.Generator) -> None: ...",
        "from importlib.metadata import version",
        "from scoresde import noise\nnoise.normal((3,), noise.stream(0))",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import nn\nnn.init.zeros_(w)\nnn.init.xavier_uniform_(w, generator=g)",
        "label_dropout = 0.1\nself.label_dropout(x)",
    ],
)
def test_rules_leave_sound_code_alone(source: str) -> None:
    assert violations(source) == []


def test_only_one_file_may_set_the_threads() -> None:
    source = "import torch\ntorch.set_num_threads(1)\ntorch.set_default_dtype(torch.float64)"
    assert len(violations(source)) == 2
    assert violations(source, may_set_threads=True) == ["line 3: uses torch.set_default_dtype"]
    users = [file for file in FILES if "set_num_threads" in file.read_text(encoding="utf-8")]
    assert users == [MAY_SET_THREADS]


def test_only_the_noise_file_may_draw() -> None:
    source = "import torch\ntorch.randn(3, generator=torch.Generator())"
    assert len(violations(source)) == 2
    assert violations(source, may_draw=True) == []


# ---------------------------------------------------------------------------------------------------------------------
# The package as it is installed


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_no_extra_and_draws_nothing() -> None:
    code = """
import random, sys
import numpy, torch
python, numbers, tensor = random.getstate(), numpy.random.get_state()[1].copy(), torch.get_rng_state()
EXTRAS = {"matplotlib", "sklearn", "tyro", "rich", "PIL", "polars", "torchsde", "torchdiffeq"}
EXTRAS |= {"huggingface_hub", "diffusers"}
import scoresde
assert random.getstate() == python
assert (numpy.random.get_state()[1] == numbers).all()
assert torch.equal(torch.get_rng_state(), tensor)
print(sorted(EXTRAS & set(sys.modules)))
"""
    assert run_python(code) == "[]"


def test_every_public_name_exists_once() -> None:
    code = """
import scoresde
missing = [name for name in scoresde.__all__ if getattr(scoresde, name, None) is None]
print(missing, len(scoresde.__all__) > 0, len(scoresde.__all__) == len(set(scoresde.__all__)))
"""
    assert run_python(code) == "[] True True"


def pyproject() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    project = pyproject()
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in [Requirement(line) for group in groups for line in group]:
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)
    assert {"hatchling", "editables"} <= set(pinned)


def test_pins_carry_no_local_suffix() -> None:
    assert [f"{name}=={version}" for name, version in pins().items() if "+" in version] == []


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version = pyproject()["version"]
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == version
    assert run_python("import scoresde; print(scoresde.__version__)") == version


# ---------------------------------------------------------------------------------------------------------------------
# conftest.py: what changes the global state fails, and only that

STATEFUL_TESTS = """
import random
import numpy, pytest, torch
from hypothesis import given, strategies

@pytest.fixture(scope="module")
def drawn():
    return torch.randn(2)

def test_moved_by_module_fixture(drawn): pass
def test_moved_torch(): torch.randn(2)
def test_moved_numpy(): numpy.random.rand()
def test_moved_python(): random.random()
def test_moved_dtype(): torch.set_default_dtype(torch.float64)
def test_moved_grad_mode(): torch.set_grad_enabled(False)

@given(strategies.integers())
def test_moved_in_property(n): torch.randn(2)

@given(strategies.integers())
def test_sound_property(n): assert n == n
def test_sound(tmp_path): torch.randn(2, generator=torch.Generator().manual_seed(0))
"""


def test_a_test_that_moves_global_state_fails(tmp_path: Path) -> None:
    for name in ("conftest.py", "global_state.py"):
        (tmp_path / name).write_text((ROOT / "tests" / name).read_text(encoding="utf-8"), "utf-8")
    (tmp_path / "test_state.py").write_text(STATEFUL_TESTS, "utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    outcomes = {test: outcome for outcome, test in re.findall(r"^(\w+) \S+::(\w+)", done.stdout, re.MULTILINE)}
    assert outcomes.pop("test_moved_by_module_fixture") == "ERROR", done.stdout
    assert {(test.split("_")[1], outcome) for test, outcome in outcomes.items()} == {
        ("moved", "FAILED"),
        ("sound", "PASSED"),
    }
    assert len(outcomes) == 8
