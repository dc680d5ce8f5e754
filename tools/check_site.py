"""Check the built site: links, images, requests, size and paths. ``make docs`` ends with it.

What it holds of build/site (or FOLDER):
* every link inside the site leads to a file that exists, and every #anchor to an element of that page;
* every image exists and has a text that stands for it; a file's name is none;
* nothing that a page needs is asked for over the network: scripts, styles, fonts, images, frames;
* no file carries a path of the machine that built it;
* it takes less than ``LIMIT`` bytes, and no image more than ``IMAGE_LIMIT``.

    python tools/check_site.py [FOLDER]               exit code 1 if something is wrong
    python tools/check_site.py [FOLDER] --external    list the addresses outside too, and try each of them
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 60_000_000
IMAGE_LIMIT = 1_000_000
IMAGES = (".png", ".gif", ".svg", ".jpg", ".jpeg", ".webp")
# A link element of these kinds only names something.
NAMES = {"canonical", "author", "license", "index", "search", "next", "prev", "help", "copyright"}
# What begins a path of this machine.
PRIVATE = (f"{ROOT}/", f"{Path.home()}/", "file:///")
OUTSIDE = re.compile(r"(?i)^(?:https?:)?//")
IN_STYLES = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")


class Page(HTMLParser):
    """The anchors of a page, its links, what it loads, and its images without a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.without_text: list[str] = []
        self._style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sort the addresses of one element."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        self._style = tag == "style"
        self.loads += [one for pair in IN_STYLES.findall(given.get("style", "")) for one in pair if one]
        if tag in ("a", "area") and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and "href" in given:
            named = set(given.get("rel", "").lower().split()) <= NAMES
            (self.links if named else self.loads).append(given["href"])
        elif tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "track", "input"):
            self.loads += [given["src"]] if "src" in given else []
            self.loads += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        elif tag == "object" and "data" in given:
            self.loads.append(given["data"])
        alternative = given.get("alt", "").strip()
        if tag == "img" and (not alternative or alternative.lower().endswith(IMAGES)):
            self.without_text.append(given.get("src", "an image without a source")[:80])

    def handle_data(self, data: str) -> None:
        """Read the addresses of a style sheet within the page."""
        if self._style:
            self.loads += [one for pair in IN_STYLES.findall(data) for one in pair if one]

    def handle_endtag(self, tag: str) -> None:
        """Leave the style sheet."""
        self._style = False


def find_target(file: Path, address: str, folder: Path) -> Path | None:
    """Return the file that a relative address leads to, or None where it leaves the site."""
    path = unquote(urlsplit(address).path)
    # Behind "/" a browser looks in the root of a server or of a disk: neither is the site.
    start = Path("/") if path.startswith("/") else file.parent
    target = (start / path).resolve() if path else file
    if not target.is_relative_to(folder):
        return None
    return target / "index.html" if target.is_dir() else target


def check_address(file: Path, address: str, folder: Path, pages: dict[Path, Page]) -> str:
    """Return what is wrong with a relative address, or nothing."""
    target = find_target(file, address, folder)
    if target is None:
        return "leaves the site"
    if not target.is_file():
        return "leads to no file"
    anchor = unquote(urlsplit(address).fragment)
    # The explorer, among the static files, keeps its state behind the #.
    if anchor and target in pages and target.parent.name != "_static" and anchor not in pages[target].anchors:
        return "leads to no anchor of the page"
    return ""


def list_problems(folder: Path) -> Iterator[str]:
    """Yield a line for everything that is wrong."""
    folder = folder.resolve()
    files = list_files(folder)
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in files if file.suffix == ".html"}
    for file, page in pages.items():
        name = file.relative_to(folder)
        for address in sorted({*page.links, *page.loads}):
            scheme = urlsplit(address).scheme
            if OUTSIDE.match(address):
                if address in page.loads:
                    yield f"{name}: loads {address} over the network"
            elif scheme in ("", "file") and (wrong := check_address(file, address, folder, pages)):
                yield f"{name}: {address} {wrong}"
        for image in page.without_text:
            yield f"{name}: no text stands for the image {image}"
    for file in files:
        name = file.relative_to(folder)
        if file.suffix == ".css":
            for address in [one for pair in IN_STYLES.findall(file.read_text(encoding="utf-8")) for one in pair if one]:
                if OUTSIDE.match(address):
                    yield f"{name}: loads {address} over the network"
                elif not address.startswith(("data:", "#")) and (wrong := check_address(file, address, folder, pages)):
                    yield f"{name}: {address} {wrong}"
        if file.suffix in IMAGES and file.stat().st_size > IMAGE_LIMIT:
            yield f"{name}: {file.stat().st_size} bytes, the limit of an image is {IMAGE_LIMIT}"
        if file.suffix in (".html", ".js", ".css", ".txt", ".json", ".ipynb", ".md"):
            content = file.read_text(encoding="utf-8", errors="replace")
            for path in PRIVATE:
                if path in content:
                    at = content.index(path)
                    yield f"{name}: a path of this machine, ...{content[max(0, at - 40) : at + 60]!r}..."
    size = sum(file.stat().st_size for file in files)
    if size > LIMIT:
        yield f"the site takes {size} bytes, the limit is {LIMIT}"


def list_files(folder: Path) -> list[Path]:
    """Return the files of the site, without what Sphinx keeps for itself."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and ".doctrees" not in file.parts]


def list_outside(folder: Path) -> dict[str, str]:
    """Return each address outside of the site, with the first page that links it."""
    found: dict[str, str] = {}
    for file in list_files(folder):
        if file.suffix == ".html":
            for address in Page(file.read_text(encoding="utf-8")).links:
                if OUTSIDE.match(address):
                    found.setdefault(address.split("#")[0], str(file.relative_to(folder)))
    return found


def try_address(address: str) -> str:
    """Return what the network says of an address: "found", its refusal, or that there is no answer."""
    try:
        request = Request(address, headers={"User-Agent": "check_site"})
        with urlopen(request, timeout=10):
            return "found"
    except HTTPError as error:
        return f"refused with {error.code}"
    except (URLError, OSError) as error:
        return f"no answer ({error})"


def main(arguments: list[str]) -> int:
    """Print what is wrong; return whether something is."""
    external = "--external" in arguments
    folders = [one for one in arguments if one != "--external"]
    if len(folders) > 1 or any(one.startswith("-") for one in folders):
        print(__doc__)
        return 2
    folder = Path(folders[0]) if folders else ROOT / "build" / "site"
    if not (folder / "index.html").is_file():
        print(f"{folder} holds no index.html; make docs builds the site")
        return 2
    problems = list(list_problems(folder))
    print("\n".join(problems))
    files, outside = list_files(folder), list_outside(folder)
    size = sum(file.stat().st_size for file in files)
    pages = sum(file.suffix == ".html" for file in files)
    print(f"{pages} pages, {size / 1e6:.1f} MB, {len(problems)} problems; {len(outside)} addresses outside", end="")
    print("" if external else " (--external tries them)")
    if external:
        for address, page in sorted(outside.items()):
            print(f"  {address} ({page}): {try_address(address)}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
