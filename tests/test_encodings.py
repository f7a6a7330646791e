"""Every text file that the project reads or writes is UTF-8, whatever the locale is."""

import ast

from seerbench.paths import ROOT

NAMES = ("read_text", "write_text", "open")
# Their `open` opens no text unless its mode has a "t"; an archive is a zipfile.ZipFile.
OTHER_OPEN = ("archive", "gzip", "os", "tarfile", "webbrowser")
FOLDERS = ("seerbench", "kernels", "baselines", "examples", "notebooks", "tools")
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
        words = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        binary = getattr(getattr(node.func, "value", None), "id", None) in OTHER_OPEN
        mode = next((word for word in reversed(words) if set(word) <= set("rwaxbt+")), "rb" if binary else "r")
        text = name in NAMES and (name != "open" or ("t" in mode if binary else "b" not in mode))
        if text and not any(keyword.arg == "encoding" for keyword in node.keywords):
            lines.append(node.lineno)
    return lines


def test_text_files_are_read_and_written_as_utf_8():
    found = {path: without_encoding(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_missing_encoding_is_seen():
    seen = ["a.read_text()", 'open(b, "w")', "a.write_text(b)", "open(a)", "a.open()", 'gzip.open(a, "rt")']
    fine = ['open("b", "rb")', 'a.write_text(c, encoding="utf-8")', "gzip.open(a)", 'a.open("ab")', "os.open(a, 1)"]
    assert without_encoding("\n".join([*seen, *fine])) == [1, 2, 3, 4, 5, 6]
