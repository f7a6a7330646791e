"""Every text file that the project reads or writes is UTF-8, whatever the locale is."""

import ast

from seerbench.paths import ROOT

NAMES = ("read_text", "write_text", "open")
FOLDERS = ("seerbench", "kernels", "baselines", "notebooks")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def without_encoding(source: str) -> list[int]:
    """Return the lines that read or write text in the locale's encoding."""
    lines = []
    if not any(f"{name}(" in source for name in NAMES):
        return lines
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        modes = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        text = name in NAMES and (name != "open" or (modes and "b" not in modes[-1]))
        if text and not any(keyword.arg == "encoding" for keyword in node.keywords):
            lines.append(node.lineno)
    return lines


def test_text_files_are_read_and_written_as_utf_8():
    found = {path: without_encoding(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_missing_encoding_is_seen():
    assert without_encoding('a.read_text()\nopen(b, "w")\nopen(b, "rb")\na.write_text(c, encoding="utf-8")') == [
        1,
        2,
    ]
