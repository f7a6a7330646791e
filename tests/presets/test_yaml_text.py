"""Tests of yaml_text.py: what looks like a number or a flag is one or stays text, the rest is one line of error."""

import pytest
import yaml

from seerbench.errors import ConfigError
from seerbench.paths import CONFIG, ROOT
from seerbench.presets.load import read
from seerbench.presets.yaml_text import parse_yaml


@pytest.mark.parametrize("path", [*CONFIG.glob("*.yaml"), ROOT / "tests" / "smoke.yaml"], ids=str)
def test_shipped_presets_read_as_pyyaml_reads_them(path):
    text = path.read_text(encoding="utf-8")
    assert parse_yaml(text, "here") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("Off", "off".capitalize()),
        ("1:30", "1:30"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1e-3", "1e-3"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("9" * 5000, "9" * 5000),
        ("1.0e-3", 0.001),
        ("-.5", -0.5),
        ("-7", -7),
        ("True", True),
        ("~", None),
        ("!!str 12", "12"),
        ("'12'", "12"),
    ],
)
def test_scalars(text, value):
    found = parse_yaml(f"a: {text}", "here")["a"]
    assert (found, type(found)) == (value, type(value))


def test_numbers_that_are_not_finite_are_read_for_the_fields_to_refuse():
    assert parse_yaml("[.inf, -.INF]", "here") == [float("inf"), -float("inf")]
    assert str(parse_yaml(".NaN", "here")) == "nan"


def test_merge_keys():
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], z: 5}\nd: {<<: *b, <<x: 1}"
    assert parse_yaml(text, "here") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed: 0\nblock: 16\nseed: 5\n", "seed: this key is given twice (lines 1 and 3)"),
        ("a:\n  - b: {c: 1, c: 2}\n", "a/0/b/c: this key is given twice"),
        ("a: {<<: {x: 1}, <<: {y: 2}}", "a/<<: this key is given twice"),
        ("a: {<<: 3}", "a: line 1: << takes"),
        ("a: {1: x}", "a: line 1: the key 1 is no text"),
        ("? [a, b]\n: c", "line 1: the key ['a', 'b'] is no text"),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("a: !!python/object:os.system x", "a: line 1: the tag !!python/object:os.system"),
        ("a: !mine {b: 1}", "a: line 1: the tag !mine"),
        ("a: !!int seven", "a: line 1: the tag !!int"),
        ("a: !!timestamp never", "a: line 1: the tag !!timestamp"),
        ("a: !!binary aGk=", "a: line 1: the tag !!binary"),
        ("a: !!set {b}", "a: line 1: the tag !!set"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a:\n\t- b", "line 2, column 1"),
        ("a: [1,\n", "line 2"),
        ("a: *b", "undefined alias"),
        ("a: x\x00y", "special characters are not allowed"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(text, place):
    with pytest.raises(ConfigError) as raised:
        parse_yaml(text, "mine.yaml")
    told = str(raised.value)
    assert told.startswith("mine.yaml")
    assert place in told
    assert "\n" not in told


def test_a_few_aliases_that_stand_for_billions_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match="aliases included"):
        parse_yaml("\n".join(lines), "mine.yaml")


def test_encodings_and_line_ends_of_a_file(tmp_path):
    text = (ROOT / "tests" / "smoke.yaml").read_text(encoding="utf-8").replace("test scale", "Größe à l'été 試験")
    path = tmp_path / "mine.yaml"
    for content in (text.encode(), text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode()):
        path.write_bytes(content)
        assert read(path).scale.startswith("Größe à l'été 試験")
    for content in (
        text.encode("utf-16"),
        "scale: größe".encode("latin-1"),
        b"\x89PNG\r\n\x1a\n\x00\x00",
        b"",
        b"\0",
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as raised:
            read(path)
        assert "\n" not in str(raised.value)
