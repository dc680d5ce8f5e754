"""What is said of a release agrees with it: citation, notes, the page of benchmarks, the description on an index."""

from __future__ import annotations

import re
import sys
import tomllib

from helpers import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import try_wheel
from long_description import describe

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def field(text: str, name: str) -> str:
    """Return the value of a line of YAML or BibTeX, without its quotes or braces."""
    found = re.search(rf"^ *(?:- )?{name}\s*[:=] *(.+?),?$", text, re.MULTILINE)
    assert found is not None, name
    return found[1].strip("\"'{}")


def test_the_citation_agrees_with_its_page_and_the_package() -> None:
    citation, page = read("CITATION.cff"), read("docs/cite.md")
    assert field(citation, "version") == field(page, "version") == PROJECT["version"]
    assert field(citation, "title") == field(page, "title")
    assert field(citation, "title").partition(": ")[0] == PROJECT["name"]
    assert field(citation, "title").partition(": ")[2].lower() in PROJECT["description"].lower()
    assert field(citation, "license") == field(page, "license") == PROJECT["license"]
    assert field(citation, "name") == field(page, "author") == PROJECT["authors"][0]["name"]
    assert field(citation, "date-released").partition("-")[0] == field(page, "year")


def test_the_changelog_and_the_notes_are_of_this_version_and_day() -> None:
    day = field(read("CITATION.cff"), "date-released")
    released = re.findall(r"^## \[(\d.*?)\] - (\S+)$", read("CHANGELOG.md"), re.MULTILINE)
    assert released[0] == (PROJECT["version"], day)
    notes = read(f"docs/release-{PROJECT['version']}.md")
    assert notes.startswith(f"# New in {PROJECT['version']}\n")
    assert f"release-{PROJECT['version']}" in read("docs/index.md")


def test_every_benchmark_and_every_record_has_its_line() -> None:
    page = read("docs/benchmarks.md")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    scripts = {path.name for path in ROOT.glob("benchmarks/*.py")} - {"mixtures.py", "record.py", "run.py"}
    assert sorted(name for name in scripts if not any(f"`{name}`" in line for line in lines)) == []
    records = {path.stem for path in ROOT.glob("benchmarks/results/*.json")}
    dated = {m[1] for line in lines if (m := re.match(r"\| `(\w+)(?:\.py|/)`.*\| 20\d\d-\d\d-\d\d \|", line))}
    assert dated == records


README = """# Title

![A picture](docs/a.png)

[A page](docs/page.md) and [another of
two lines](docs/two.md#part), [a site](https://example.org), ![far](https://example.org/a.png).

<!-- repository only -->
What a picture shows.
<!-- end -->

```python
x = [y](z)  # no link
```
"""


def test_a_description_has_no_picture_or_link_that_is_broken_on_an_index() -> None:
    assert describe(README) == (
        "# Title\n\nA page and another of\ntwo lines, [a site](https://example.org), ![far](https://example.org/a.png)."
        "\n\n```python\nx = [y](z)  # no link\n```\n"
    )
    text = describe(read("README.md"))
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\]\((?!https?:)", outside) == []
    assert "<!--" not in text
    assert text.count("```") == read("README.md").count("```")
    assert "docs/images" not in text


def test_what_the_check_of_the_wheel_lacks_is_said_in_one_line() -> None:
    assert try_wheel.find_missing(["json", "tarfile"]) == ""
    said = try_wheel.find_missing(["json", "no_such_module"])
    assert re.fullmatch(
        r"try_wheel.py needs no_such_module: \S+ -m pip install -c constraints.txt no_such_module", said
    )


def test_the_forms_name_the_private_way_and_this_package() -> None:
    for name in ("bug", "feature", "question"):
        form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert re.search(r"^name: .+\ndescription: .+\nlabels: \[\w+\]\nbody:\n", form)
    assert "SECURITY.md" in read(".github/ISSUE_TEMPLATE/bug.yml")
    assert f"| {PROJECT['version'].rpartition('.')[0]} | yes |" in read("SECURITY.md")
