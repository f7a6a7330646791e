"""Make the documentation a site that needs no network: open build/site/index.html.

    python tools/make_site.py

MkDocs takes pages from one folder, and ours link to files all over the repository. So every file that links lead
to, from README.md on, is copied to build/site-source at its place in the repository, and the links stay right. A
file of code or settings becomes a page that shows it. A link to nothing fails. mkdocs.yml has menu and theme. The
search of the pages works where a server shows them: python -m http.server --directory build/site
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "build" / "site-source"
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)]*)?\))")
CODE_BLOCK = re.compile(r"(^```.*?^```)", re.S | re.M)
PICTURES = (".png", ".svg")


def main() -> None:
    """Copy the pages and let MkDocs make the site."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for name, content in pages(ROOT / "README.md").items():
        target = SOURCE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of the theme, about other software
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    if subprocess.run(command, cwd=ROOT, env=quiet).returncode:
        sys.exit(1)
    print("build/site/index.html; with search: python -m http.server --directory build/site")


def pages(start: Path) -> dict[str, bytes]:
    """Return the files of the site by their path in it: a page and everything that links lead to from there."""
    found: dict[str, bytes] = {}
    waiting = [start]
    while waiting:
        file = waiting.pop()
        name = page_of(file.relative_to(ROOT).as_posix())
        if name in found:
            continue
        if file.suffix in PICTURES:
            found[name] = file.read_bytes()
        elif file.suffix != ".md":
            found[name] = shown(file).encode()
        else:
            text = file.read_text(encoding="utf-8")
            found[name] = with_pages(text).encode()
            waiting += [(file.parent / link).resolve() for link in links(text)]
    return found


def links(text: str) -> list[str]:
    """Return the targets of a page's links to files, outside its code blocks."""
    return [link[2] for part in CODE_BLOCK.split(text)[::2] for link in LINK.finditer(part)]


def with_pages(text: str) -> str:
    """Return a page whose links lead to the pages that show files."""
    parts = CODE_BLOCK.split(text)
    parts[::2] = [LINK.sub(lambda link: link[1] + page_of(link[2]) + link[3], part) for part in parts[::2]]
    return "".join(parts)


def page_of(name: str) -> str:
    """Return the path in the site of a file of the repository."""
    return name if name.endswith((".md", *PICTURES)) else f"{name}.md"


def shown(file: Path) -> str:
    """Return a page that shows a file."""
    kinds = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".json": "json"}
    return f"# {file.name}\n\n````{kinds.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n````\n"


if __name__ == "__main__":
    main()
