"""The race's columns on rows made by hand, in a process of its own: its modules are no package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers import ROOT

CHECK = """
import sys
from pathlib import Path

sys.path[:0] = sys.argv[1:3]
import torch
import peers
import report
from quality import Row, Target, run_peer
from mixtures import ring

rows = []
errors = {("a", "one"): (0.1, 0.04), ("a", "two"): (0.2, 0.01), ("b", "three"): (0.3, 0.3)}
for k, target in enumerate(("x", "y", "z")):
    for (who, name), (rms, median) in errors.items():
        usual = who == "b" or name == "two"
        # On z the second is worse than on the others.
        worse = 100.0 if (target, name) == ("z", "two") else 1.0
        rows.append(Row(target, who, name, 5, rms * worse, median, 0.1, usual))
    rows.append(Row(target, "scoresde", "default", 5, 0.05, 0.005, 0.1, True))
    rows.append(Row(target, "a", "noisy", 5, sw2=0.01))
    rows.append(Row(target, "a", "broken", 5, why="ImportError: no such thing"))
table = report.Table(rows, ["z"])
assert (table.targets, table.calls) == (["x", "y", "z"], [5])
assert (table.best("x", 5, "rms").name, table.best("x", 5, "median").name, table.best("x", 5, "sw2").who) == (
    "one", "two", "a")
assert table.usual("x", 5).name == "two" and table.usual("z", 5).name == "three"
# On y and z the first is better, on x and y the second.
assert table.elsewhere("x", 5).name == "one" and table.elsewhere("z", 5).name == "two"
ratio = report.ratios(table, "x", 5, "default")
assert abs(ratio[0] - 0.5) < 1e-12 and abs(ratio[1] - 0.5) < 1e-12
assert report.ratios(table, "x", 5, "tune") is None
folder = Path(sys.argv[3])
text = report.write(folder, table, {"machine": "one"}, {"x": 0.2}, ["the end"]).read_text()
assert "| 5 | 2 exact | 0.50 (0.50) / 0.50 (0.50) |  |  |  |" in text, text
assert "0.2 (a two)" not in text.split("## z")[0].split("## x")[0]
assert (folder / "error.png").stat().st_size > 5000
document = report.to_document(table, rows)
assert document["not run"] == {"a: ImportError: no such thing": 3}
assert {row["name"] for row in document["rows"]} == {"one", "two", "three", "default"}

# A peer by hand: DDIM's one step from the top is the data prediction there; calls are counted, levels clipped.
target = Target("ring", ring(), 50)
ask = peers.Ask(target.model)
first = ask(target.z.double(), 1e9)
assert ask.calls == 1
torch.testing.assert_close(first, ask(target.z.double(), peers.LEVELS[0]))
one = peers.Configuration("hand", "one step", lambda ask, z, calls: ask(z, peers.LEVELS[0]) if calls == 1 else None)
row = run_peer(target, one, 1)
assert not row.why and row.rms > 0.5 and row.sw2 > target.floor
assert run_peer(target, one, 2).why == "has no run of so many evaluations"
wrong = peers.Configuration("hand", "two", lambda ask, z, calls: ask(ask(z, 1.0), 1.0))
assert run_peer(target, wrong, 1).why == "asked 2 times"
broken = peers.Configuration("hand", "none", lambda ask, z, calls: 1 / 0)
assert run_peer(target, broken, 1).why == "ZeroDivisionError: division by zero"
"""


def test_the_columns_of_the_race(tmp_path: Path) -> None:
    folders = [str(ROOT / "benchmarks" / "race"), str(ROOT / "benchmarks")]
    command = [sys.executable, "-c", CHECK, *folders, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
