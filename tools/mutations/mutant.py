"""What a mutant is: one wrong version of one file."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mutant"]


@dataclass(frozen=True)
class Mutant:
    """A file of the package with one thing wrong.

    Args:
        what: what is wrong, in words.
        file: its path below ``scoresde/``.
        pattern: text that stands in the file exactly once.
        replacement: what stands there in the mutant.
        tests: what must kill it, below ``tests/``: "room/test_file.py::test_name", each one enough by itself.
    """

    what: str
    file: str
    pattern: str
    replacement: str
    tests: tuple[str, ...]

    @property
    def room(self) -> str:
        """The room whose file it is."""
        folder, _, name = self.file.rpartition("/")
        return folder.replace("/", ".") or name.removesuffix(".py")

    def apply(self, text: str) -> str:
        """Return the file's text with the thing wrong; ValueError where the pattern is not there exactly once."""
        count = text.count(self.pattern)
        if count != 1:
            raise ValueError(f"the pattern stands {count} times in {self.file}, not once: {self.pattern!r}")
        return text.replace(self.pattern, self.replacement)
