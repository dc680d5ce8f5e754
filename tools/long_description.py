"""The package's description on an index: README.md without what only the repository has.

An index shows the text alone: a picture by a relative path is broken there, and a link leads nowhere. So pictures go, a
relative link becomes its words, and what stands between ``<!-- repository only -->`` and ``<!-- end -->`` is left out.
hatchling calls the hook for every build (``[tool.hatch.metadata.hooks.custom]`` of pyproject.toml).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOT = Path(__file__).resolve().parent.parent

FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
ONLY_HERE = re.compile(r"<!-- repository only -->\n.*?<!-- end -->\n*", re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*")
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)")


def describe(readme: str) -> str:
    """Return the description for an index; blocks of code stay as they are."""
    parts = FENCE.split(ONLY_HERE.sub("", readme))
    for k in range(0, len(parts), 2):
        parts[k] = LINK.sub(r"\1", PICTURE.sub("", parts[k]))
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip() + "\n"


class LongDescription(MetadataHookInterface):
    """Gives the field ``readme``, which pyproject.toml names as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in the description."""
        text = describe((ROOT / "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
