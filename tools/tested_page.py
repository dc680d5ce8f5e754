"""Write the figures of docs/how-it-is-tested.md: how many tests there are in each layer, and what else they hold.

A test belongs to a layer by what it uses, itself or through helpers of its own file (``MARKS``), perhaps to several.
Functions are read from the sources; cases, what pytest makes of them with their parameters, come from
``pytest --collect-only``, which takes about a minute and so runs under --record alone.

    python tools/tested_page.py                   say whether the recorded figures still hold; exit code 1 if not
    python tools/tested_page.py --record          count anew, and write the page
    python tools/tested_page.py --record FILE     the same, from a kept output of `pytest --collect-only -q`

A figure holds while there are at least as many, and at most a ninth more: tests are added with every change, and the
page is no reason to count them each time.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from marked import fill
from mutations import MUTANTS
from run_doc_blocks import read_blocks

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "how-it-is-tested.md"
TESTS = ROOT / "tests"

# Layer -> the words that a test of it uses: names, modules, or texts.
MARKS: Mapping[str, frozenset[str]] = {
    "references": frozenset({"mpmath", "reference"}),
    "exact laws and orders": frozenset(
        {"orders", "slope", "coefficients", "affine_map", "law", "error_weights", "gaussian", "GaussianModel"}
        | {"GaussianMixtureModel", "EmpiricalModel", "linear_cases", "exact_bounds", "known"}
    ),
    "properties": frozenset({"given"}),
    "statistics": frozenset({"agrees_with", "kstest", "ks_1samp", "scipy.stats", "p_value", "p_values"}),
    "faults": frozenset({"raises", "watchers", "SIGKILL", "RLIMIT_FSIZE"}),
    "peers": frozenset(
        {"peers", "diffusers", "torchdiffeq", "torchsde", "scipy", "sklearn", "sbi", "lightning", "accelerate"}
    ),
}
CASE = re.compile(r"^(tests/\S+?\.py)::(\w+)")


def list_words(node: ast.AST) -> Iterator[str]:
    """Yield the names, attributes and short texts of a piece of code."""
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Attribute):
            yield one.attr
        elif isinstance(one, ast.Constant) and isinstance(one.value, str) and len(one.value) < 40:
            yield one.value


def list_imports(tree: ast.Module) -> dict[str, set[str]]:
    """Return name -> the words of where it comes from: its module, the parts of that, and the name itself."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            home = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                path = f"{home}.{alias.name}".strip(".")
                name = alias.asname or (alias.name if home else alias.name.split(".")[0])
                parts = path.split(".")
                found.setdefault(name, set()).update({parts[0], ".".join(parts[:2]), parts[-1]})
    return found


@cache
def read_file(path: Path) -> dict[str, set[str]]:
    """Return test function -> the layers of a file's tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = list_imports(tree)
    uses: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            uses[node.name] = set(list_words(node)) | ({a.arg for a in ast.walk(node) if isinstance(a, ast.arg)})
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)):
                uses[name] = set(list_words(node))
    found = {}
    for test in uses:
        if test.startswith("test_"):
            words, new = set(), {test}
            while new:
                words |= new
                new = set().union(*(uses.get(word, set()) | imports.get(word, set()) for word in new)) - words
            found[test] = {layer for layer, marks in MARKS.items() if words & marks}
    return found


def count_functions() -> Counter[str]:
    """Count the test functions: all of them, and of each layer."""
    counts: Counter[str] = Counter()
    for path in sorted(TESTS.rglob("test_*.py")):
        for layers in read_file(path).values():
            counts.update({"all", *(layers or {"others"})})
    return counts


def count_cases(collected: str) -> Counter[str]:
    """Count the cases that pytest collected: all of them, of each layer, and those of the walk of absurd arguments."""
    counts: Counter[str] = Counter()
    for file, test in (match.groups() for match in map(CASE.match, collected.splitlines()) if match):
        counts.update({"all", *(read_file(ROOT / file).get(test) or {"others"})})
        counts["walk"] += test == "test_absurd_arguments_are_refused_or_do_no_harm"
    return counts


def count_rest() -> dict[str, int]:
    """Count what else the page speaks of: cheap, from the sources."""
    tree = ast.parse((ROOT / "scoresde" / "__init__.py").read_text(encoding="utf-8"))
    names = next(ast.literal_eval(one.value) for one in tree.body if isinstance(one, ast.Assign) and _is_all(one))
    # Another test holds this page to the solvers that there are.
    solvers = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8").partition("<!-- begin: table -->")[2]
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    blocks = [block for page in pages for block in read_blocks(page.read_text(encoding="utf-8"))]
    return {
        "mutants": len(MUTANTS),
        "named solvers": solvers.partition("<!-- end: table -->")[0].count("\n| `"),
        "public names": len(names),
        "blocks of code in pages": sum(block.skip is None for block in blocks),
        "examples": len(list(ROOT.glob("examples/*.py"))),
    }


def _is_all(node: ast.Assign) -> bool:
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"


def write_layers(functions: Mapping[str, int], cases: Mapping[str, int]) -> str:
    """Return the table of the layers as Markdown."""
    lines = ["| layer | test functions | cases |", "|---|---|---|"]
    for layer in (*MARKS, "others", "all"):
        lines.append(f"| {layer} | {functions[layer]} | {cases[layer]} |")
    return "\n".join(lines) + "\n"


def write_rest(rest: Mapping[str, int], walk: int) -> str:
    """Return the table of the other figures as Markdown."""
    rows = {**rest, "callables of the walk of absurd arguments": walk}
    return "\n".join(["| what | how many |", "|---|---|", *(f"| {k} | {n} |" for k, n in rows.items())]) + "\n"


def read_recorded(page: str) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return the recorded figures of a page: test functions by layer, cases by layer, and the rest."""
    three = {
        m[1]: (int(m[2]), int(m[3])) for m in re.finditer(r"^\| ([^|]+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    }
    rest = {m[1]: int(m[2]) for m in re.finditer(r"^\| ([^|]+) \| (\d+) \|$", page, re.MULTILINE)}
    return {k: n for k, (n, _) in three.items()}, {k: n for k, (_, n) in three.items()}, rest


def find_stale(recorded: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Say which figures hold no longer: more recorded than there are, or less than nine tenths of what there is."""
    names: Iterable[str] = sorted({*recorded, *found})
    return [
        f"{name}: recorded {recorded.get(name, 0)}, there are {found.get(name, 0)}"
        for name in names
        if not 0.9 * found.get(name, 0) <= recorded.get(name, 0) <= found.get(name, 0)
    ]


def collect() -> str:
    """Return what ``pytest --collect-only -q`` prints."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly", "-n", "0"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def main(arguments: list[str]) -> int:
    """Compare, or count and write; return the exit code."""
    if arguments[:1] not in ([], ["--record"]) or len(arguments) > 2:
        print("usage: python tools/tested_page.py [--record [FILE]]", file=sys.stderr)
        return 2
    page = PAGE.read_text(encoding="utf-8")
    if arguments:
        text = Path(arguments[1]).read_text(encoding="utf-8") if arguments[1:] else collect()
        cases = count_cases(text)
        parts = {"layers": write_layers(count_functions(), cases), "rest": write_rest(count_rest(), cases["walk"])}
        PAGE.write_text(fill(page, parts), encoding="utf-8")
        return 0
    functions, _, rest = read_recorded(page)
    rest.pop("callables of the walk of absurd arguments")
    stale = [*find_stale(functions, count_functions()), *find_stale(rest, count_rest())]
    print(*stale, sep="\n", end="\n" if stale else "")
    print(f"{PAGE.name} is {'out of date: run python tools/tested_page.py --record' if stale else 'current'}")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
