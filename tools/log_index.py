"""Rewrite the index of docs/LOG.md from its entries, and name the entries that do not follow the template.

    python tools/log_index.py           rewrite the index
    python tools/log_index.py --check   exit with 1 if the index is out of date or an entry is incomplete

An entry is a second-level heading, one line "date · [tag] ... · outcome: X", and the five sections of SECTIONS in
their order, each beginning with its bold name.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

LOG = Path(__file__).resolve().parent.parent / "docs" / "LOG.md"
BEGIN, END = "<!-- index: written by tools/log_index.py -->", "<!-- end of index -->"
SECTIONS = ("Question", "Setup", "Prediction", "Result", "Decision")
TAGS = ("kernel", "gate", "moa", "timing", "infra", "data")
OUTCOMES = ("+", "-", "open")
LONGEST_TITLE = 80
FACTS = re.compile(r"(?P<date>\d{4}-\d\d-\d\d) · (?P<tags>\[\w+\](?: \[\w+\])*) · outcome: (?P<outcome>\S+)")


@dataclass
class Entry:
    """One experiment: its heading, the text below the heading, and the three facts of its first line."""

    title: str
    body: str
    date: str = ""
    tags: tuple[str, ...] = ()
    outcome: str = ""

    def problems(self) -> list[str]:
        """Return what is missing or wrong in this entry, one phrase per problem."""
        found = []
        if len(self.title) > LONGEST_TITLE:
            found.append(f"the title has {len(self.title)} characters, at most {LONGEST_TITLE} are allowed")
        if not self.date:
            found.append("the line 'date · [tag] · outcome: X' is missing")
        found += [f"unknown tag [{tag}], known: {', '.join(TAGS)}" for tag in self.tags if tag not in TAGS]
        if self.date and self.outcome not in OUTCOMES:
            found.append(f"unknown outcome {self.outcome}, known: {', '.join(OUTCOMES)}")
        names = tuple(re.findall(r"^\*\*(\w+)\.\*\*", self.body, re.M))
        if names != SECTIONS:
            found.append(f"sections {', '.join(names) or 'none'}; expected {', '.join(SECTIONS)}")
        return found


def entries(text: str) -> list[Entry]:
    """Return the entries of the log in the order of the file."""
    found = []
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        facts = FACTS.fullmatch(body.strip().partition("\n")[0])
        entry = Entry(title.strip(), body)
        if facts:
            entry.date, entry.outcome = facts["date"], facts["outcome"]
            entry.tags = tuple(re.findall(r"\w+", facts["tags"]))
        found.append(entry)
    return found


def anchor(title: str) -> str:
    """Return the anchor that GitHub gives to a heading: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def index(text: str) -> str:
    """Return the index as a Markdown table, one line per entry."""
    lines = ["| date | tags | title | outcome |", "|---|---|---|---|"]
    for entry in entries(text):
        tags = " ".join(f"[{tag}]" for tag in entry.tags)
        lines.append(f"| {entry.date} | {tags} | [{entry.title}](#{anchor(entry.title)}) | {entry.outcome} |")
    return "\n".join(lines)


def with_index(text: str) -> str:
    """Return the log with a fresh index between the two markers."""
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{index(text)}\n{END}{after}"


def problems(text: str) -> list[str]:
    """Return every problem of the log: incomplete entries, a wrong order of dates, an index that is out of date."""
    log = entries(text)
    found = [f"{entry.title}: {problem}" for entry in log for problem in entry.problems()]
    dates = [entry.date for entry in log]
    if dates != sorted(dates, reverse=True):
        found.append("the entries are not in order, newest first")
    if with_index(text) != text:
        found.append("the index is out of date; run python tools/log_index.py")
    return found


def main() -> int:
    """Rewrite the index, or with --check report problems."""
    text = LOG.read_text(encoding="utf-8")
    if "--check" not in sys.argv[1:]:
        LOG.write_text(with_index(text), encoding="utf-8")
        text = LOG.read_text(encoding="utf-8")
    found = problems(text)
    print("\n".join(found) or f"{len(entries(text))} entries, no problem")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
