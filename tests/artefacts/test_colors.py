"""The palette: each method has its own color and marker, and variants have those of their method."""

from seerbench.artefacts import colors


def test_each_method_has_its_own_color():
    looks = [(colors.color(name), colors.marker(name)) for name in colors.METHODS]
    assert len(set(looks)) == len(looks)
    sparse = [colors.color(name) for name in colors.METHODS if name not in ("dense", "fa2")]
    assert len(set(sparse)) == len(sparse)


def test_an_unknown_method_has_a_color_that_follows_from_its_name():
    assert colors.color("mine") in colors.OTHER_COLORS
    assert colors.marker("mine") in colors.OTHER_MARKERS
    assert colors.display("mine") == "mine"
    assert colors.rank("mine") == len(colors.METHODS)


def test_a_variant_looks_like_its_method():
    for variant, method in (
        ("flexprefill-128", "flexprefill"),
        ("seer+mean", "seer"),
        ("seer+fa4-128", "seer-128"),
    ):
        assert colors.color(variant) == colors.color(method)
        assert colors.display(variant) != colors.display(method)
    assert colors.rank("seer+mean") == colors.rank("seer")


def test_the_budget_of_a_moa_plan_is_not_shown():
    assert colors.display("moa", "moa-long-0.50") == "MoA (moa-long)"
    assert colors.display("moa", "moa-long-kv0.50") == "MoA (moa-long)"
    assert colors.display("moa", "moa-long-0.50-last2") == "MoA (moa-long)"
    assert colors.display("seer", "long:v1") == "SeerAttention (long:v1)"


def test_variants_say_in_words_what_differs_and_have_their_own_marker():
    names = {
        "seer+layer": "SeerAttention, one threshold per layer",
        "seer+forced": "SeerAttention, sink and diagonal forced (ours)",
        "streaming+last2": "StreamingLLM, last 2 rows dense",
        "seer+layer+last2": "SeerAttention, one threshold per layer, last 2 rows dense",
        "oracle-mass+layer": "Oracle by mass, one threshold per layer",
    }
    assert {name: colors.display(name) for name in names} == names
    looks = [(colors.color(name), colors.marker(name)) for name in [*names, *colors.METHODS]]
    assert len(set(looks)) == len(looks)
    assert colors.base_of("oracle-mass+layer") == "oracle-mass"
    assert colors.rank("oracle-mass+layer") == colors.rank("oracle-mass")
