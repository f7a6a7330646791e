"""Finding methods: without torch, by name, from plug-ins, with helpful refusals."""

import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from seerbench.errors import MethodError, UnknownMethod
from seerbench.methods import cards as methods_cards
from seerbench.methods import registry
from seerbench.methods.protocol import Method
from seerbench.methods.registry import catalogue, create, register
from seerbench.paths import ROOT


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return a function that installs a module with one method under an entry point."""

    def install(name):
        (tmp_path / "plugin_for_test.py").write_text(
            '@register("x", cites="nobody", needs=("no_such_package",))\n'
            'class Mine:\n    """My method, in one line."""\n'
        )
        monkeypatch.syspath_prepend(tmp_path)
        point = EntryPoint(name, "plugin_for_test:Mine", registry.ENTRY_POINTS)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point])
        catalogue.cache_clear()

    yield install
    catalogue.cache_clear()


def test_the_catalogue_has_every_method_with_a_card():
    cards = catalogue()
    assert {"seer", "dense", "streaming", "moa", "minference", "oracle", "random"} <= set(cards)
    for card in cards.values():
        assert card.summary.endswith(".")
        assert card.cites
        assert card.fidelity


def test_the_readme_of_the_baselines_says_what_the_cards_say():
    """Check each line of its table; a method without a line is shown by `seerbench list` alone."""
    text = (ROOT / "baselines" / "README.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `([\w-]+)` \|.*\| (.*) \|$", text, re.M))
    assert len(said) >= 16
    assert said == {name: catalogue()[name].fidelity for name in said}


def test_every_card_names_its_own_class():
    import importlib

    for name, card in catalogue().items():
        cls = getattr(importlib.import_module(card.module), card.attribute)
        assert cls.name == name
        assert cls.cites == card.cites


def test_listing_imports_no_torch():
    code = (
        "import sys\nfrom seerbench.cli import app\n"
        "try:\n    app(['list'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "seer" in done.stdout
    assert "arXiv:2410.13276" in done.stdout
    assert "fidelity: our port, searched for the model" in done.stdout


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownMethod, match=r"no method 'sear'; known methods: .*cudnn, dense, .*minference"):
        create("sear")


def test_a_plug_in_is_found_and_its_missing_package_is_a_refusal(plugin):
    plugin("mine")
    card = catalogue()["mine"]
    assert card.summary == "My method, in one line."
    assert "needs the package no_such_package" in card.refused_here()


def test_a_plug_in_may_not_take_a_taken_name(plugin):
    plugin("dense")
    with pytest.raises(UnknownMethod, match="the name is taken by"):
        catalogue()


def test_a_gpu_need_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    card = methods_cards.Card("x", "", "", ("cuda",), "m", "C")
    assert "NVIDIA GPU" in card.refused_here()


def test_register_marks_the_class():
    @register("here", cites="nobody")
    class Here(Method[None]):
        pass

    assert (Here.name, Here.cites, Here.needs) == ("here", "nobody", ())


def test_register_refuses_a_class_without_the_base():
    with pytest.raises(MethodError, match="Method"):

        @register("here", cites="nobody")
        class Here:
            pass
