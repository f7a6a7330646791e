"""Define a whole preset file as a type, and check its sections against each other: every name must be defined.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from seerbench.data.corpora import SPLITS, Corpus, HubCorpus, ParquetCorpus, UnionCorpus
from seerbench.measure.names import DENSE_DECODE
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.methods.decode_gate_config import RECIPE, DecodeGateConfig
from seerbench.methods.gate_config import RECIPES as GATE_RECIPES
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.registry import card_of
from seerbench.presets.types import (
    DEFAULT_PATTERNS,
    DEVICES,
    DTYPES,
    MIN_PROFILE,
    SEARCHED,
    SWEEPS,
    YARN,
    AnySweep,
    Arm,
    Extend,
    FirstTokenSweep,
    FlatArm,
    FlatDecode,
    Gates,
    Latency,
    LongBench,
    Maps,
    MethodsSweep,
    Model,
    Perplexity,
    Profile,
    PublishedGates,
    QuestionSet,
    RandomModel,
    Recall,
    ReleasedGates,
    Ruler,
    SourceModel,
    Tasks,
    Tokenizer,
    TrainedGates,
    TrainedModel,
    TrainedTokenizer,
    WheelFile,
    flat,
)
from seerbench.rows.gate_ref import EVERY_SET, PAPER_GATE, GateRef
from seerbench.rows.schema import SCALE_KINDS
from seerbench.settings import Block, Name, OneOf, Seed, Settings, Text, advice
from seerbench.training.jobs import Architecture

# What the kernels of a GPU take (their `refuses`); a CPU takes every block and any even head dimension.
GPU_BLOCKS, GPU_HEAD_DIMS = (32, 64, 128), (16, 32, 64, 128)
# What a model may change that continues another one; its weights decide the rest.
CHANGEABLE = {"positions", "first_weights"}


def _choice(arm: Arm) -> tuple[Any, ...]:
    """Return what tells an arm from others of its method, apart from gates, patterns, blocks and sparsities."""
    selection = (arm.last_rows_dense, arm.threshold, arm.spread, arm.forced)
    return (arm.method, arm.kernel, arm.mean_correction, *selection, *sorted((arm.options or {}).items()))


def _wrong(place: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("preset", "{text}", {"place": place, "text": text})


class PresetFile(Settings):
    """A SeerBench preset: everything that decides a number."""

    preset: Name
    """name; results go to results/fresh/<preset>"""
    scale: Text
    """what this run is, in words: printed on every table and figure"""
    scale_kind: Annotated[str, OneOf(SCALE_KINDS)]
    """toy: numbers mean nothing; small: models trained here; real: a released model; paper: the paper's"""
    device: Annotated[str, OneOf(DEVICES)]
    dtype: Annotated[str, OneOf(DTYPES)]
    seed: Seed
    block: Block
    """tokens per block, for gates and accuracy; an existing model may have its own"""
    data: Text = "data"
    """folder that local corpora and models are relative to; SEERBENCH_DATA overrides it"""
    published: Name | None = None
    """folder below results/published to draw where this preset cannot measure"""
    corpora: dict[Name, Corpus] = Field(default_factory=dict)
    """texts by name"""
    tokenizer: Tokenizer | None = None
    """trained on a corpus, or an existing one; needed where a corpus has none of its own"""
    models: dict[Name, Model] = Field(default_factory=dict)
    """trained here, a local folder or hub id, or a geometry with random weights"""
    gates: dict[Name, Gates] = Field(default_factory=dict)
    """distillation jobs, or gates that are there already"""
    extend: Extend | None = None
    profile: Profile | None = None
    perplexity: dict[Name, Perplexity] = Field(default_factory=dict)
    tasks: dict[Name, Tasks] = Field(default_factory=dict)
    recall: dict[Name, Recall] = Field(default_factory=dict)
    maps: Maps | None = None
    latency: Latency | None = None

    @property
    def model_names(self) -> list[str]:
        """Return the names of the models under `models` and of those that `extend` makes."""
        return [*self.models, *(self.extend.models() if self.extend else ())]

    def is_random(self, model: str) -> bool:
        """Return whether a model is a geometry with random weights."""
        return isinstance(self.models.get(model), RandomModel)

    def base_of(self, model: str) -> str:
        """Return the model that a model extends; the model itself if it extends none."""
        return self.extend.model if self.extend and model in self.extend.models() else model

    def of_model(self, model: str, key: Literal["scale", "scale_kind", "block"]) -> Any:
        """Return a setting of runs in a model: the model's own if it states one, else the preset's.

        A model that `extend` makes has the settings of the model that it extends.
        """
        own = getattr(self.models.get(self.base_of(model)), key, None)
        return getattr(self, key) if own is None else own

    def sweeps(self) -> dict[str, AnySweep]:
        """Return the timing sweeps by name."""
        if self.latency is None:
            return {}
        found = {name: getattr(self.latency.sweeps, name) for name in SWEEPS}
        return {name: sweep for name, sweep in found.items() if sweep is not None}

    @model_validator(mode="after")
    def _fits_the_device(self) -> PresetFile:
        if self.device == "cpu":
            processes = {f"gates/{name}": getattr(job, "processes", 1) for name, job in self.gates.items()}
            processes["extend"] = self.extend.processes if self.extend else 1
            for place, count in processes.items():
                if count > 1:
                    raise _wrong(f"{place}/processes", "several processes have a GPU each, and the device is cpu")
            return self
        for place, block in self._blocks():
            if block not in GPU_BLOCKS:
                raise _wrong(place, f"the kernels of a GPU take blocks of {_listed(GPU_BLOCKS)}, not {block}")
        for place, head_dim in self._head_dims():
            if head_dim not in GPU_HEAD_DIMS:
                text = f"the kernels of a GPU take a head_dim of {_listed(GPU_HEAD_DIMS)}, not {head_dim}"
                raise _wrong(place, text)
        return self

    def _blocks(self) -> Iterator[tuple[str, int]]:
        """Yield every block size with its place."""
        yield "block", self.block
        for name, model in self.models.items():
            if isinstance(model, SourceModel) and model.block is not None:
                yield f"models/{name}/block", model.block
        for name, job in self.gates.items():
            if isinstance(job, TrainedGates) and job.block is not None:
                yield f"gates/{name}/block", job.block
        if self.latency is not None:
            yield "latency/shape/block", self.latency.shape.block
            for block in self.latency.sweeps.kernel.blocks if self.latency.sweeps.kernel else ():
                yield "latency/sweeps/kernel/blocks", block

    def _head_dims(self) -> Iterator[tuple[str, int]]:
        """Yield every head dimension with its place."""
        for name, model in self.models.items():
            if isinstance(model, TrainedModel):
                yield f"models/{name}/model/head_dim", model.model.head_dim
            if isinstance(model, RandomModel):
                yield f"models/{name}/random/head_dim", model.random.head_dim
        if self.latency is not None:
            yield "latency/shape/head_dim", self.latency.shape.head_dim

    @model_validator(mode="after")
    def _makes_tokens(self) -> PresetFile:
        for name, corpus in self.corpora.items():
            if isinstance(corpus, UnionCorpus):
                for part in corpus.of:
                    self._need(f"corpora/{name}", "corpora", part)
                    if isinstance(self.corpora[part], UnionCorpus):
                        raise _wrong(f"corpora/{name}", f"{part} is a union itself; list its corpora")
            own = _own_tokenizer(corpus)
            if own is not None:
                self._need(f"corpora/{name}/tokenizer", "models", own)
                if not isinstance(self.models[own], SourceModel):
                    text = f"the model {own} has no tokenizer of its own; name an existing model, or leave it out"
                    raise _wrong(f"corpora/{name}/tokenizer", text)
            elif self.tokenizer is None:
                raise _wrong(f"corpora/{name}", "the preset has no tokenizer to make its tokens with")
        if isinstance(self.tokenizer, TrainedTokenizer):
            self._need_corpus("tokenizer", self.tokenizer.corpus, "train")
        return self

    @model_validator(mode="after")
    def _trains_models(self) -> PresetFile:
        for name, model in self.models.items():
            if not isinstance(model, TrainedModel):
                continue
            place = f"models/{name}"
            self._need_corpus(place, model.corpus, "train", name)
            if self.tokenizer is None:
                raise _wrong(place, "a model that is trained here needs the section tokenizer")
            if model.init is not None:
                self._check_init(f"{place}/init", name, model)
            for number, stage in enumerate(model.stages):
                try:
                    model.mix.changed_by(stage.mix)
                except ValidationError as error:
                    text = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise _wrong(f"{place}/stages/{number}/mix", text) from None
                self._need_positions(f"{place}/stages/{number}/context", name, max(stage.contexts))
        return self

    def _check_init(self, place: str, name: str, model: TrainedModel) -> None:
        """Follow `init` to a fresh model; each must be trained here, with the architecture of the next."""
        seen = [name]
        while model.init is not None:
            before = self.models.get(model.init)
            self._need(place, "models", model.init)
            if not isinstance(before, TrainedModel):
                raise _wrong(place, f"{model.init} is not trained here")
            if model.init in seen:
                raise _wrong(place, f"{' continues '.join([*seen, model.init])}: a model cannot continue itself")
            ours, theirs = (each.model.model_dump(exclude=CHANGEABLE) for each in (model, before))
            changed = next((key for key in ours if ours[key] != theirs[key]), None)
            if changed is not None:
                text = (
                    f"{seen[-1]} continues {model.init}, whose {changed} is {theirs[changed]}, not {ours[changed]}"
                )
                raise _wrong(place, text)
            seen.append(model.init)
            model = before

    @model_validator(mode="after")
    def _trains_gates(self) -> PresetFile:
        for name, job in self.gates.items():
            place = f"gates/{name}"
            if self.extend and name in self.extend.models():
                raise _wrong(place, "extend makes gates of that name; give these another")
            self._need_model(place, job.model, weights=True)
            if isinstance(job, ReleasedGates | PublishedGates):
                if not isinstance(self.models.get(job.model), SourceModel):
                    raise _wrong(place, f"these gates are for a released model, and {job.model} is trained here")
                continue
            self._need_corpus(place, job.corpus, "train", job.model)
            self._need_positions(f"{place}/context", job.model, job.context)
            try:
                job.configs(self.of_model(job.model, "block"))
            except ValueError as error:
                raise _wrong(f"{place}/sets", str(error)) from None
        return self

    @model_validator(mode="after")
    def _extends_a_model(self) -> PresetFile:
        extend = self.extend
        if extend is None:
            return self
        self._need("extend", "models", extend.model)
        model = self.models[extend.model]
        if isinstance(model, RandomModel):
            raise _wrong("extend/model", f"{extend.model} has random weights, which cannot be fine-tuned")
        if isinstance(model, SourceModel) and model.yarn is not None:
            raise _wrong("extend/model", f"YaRN scales {extend.model} already")
        self._need_corpus("extend", extend.corpus, "train", extend.model)
        self._need("extend", "gates", extend.gates)
        taken = [name for name in extend.models() if name in self.models]
        if taken:
            raise _wrong(f"models/{taken[0]}", "extend makes a model of that name; give this one another")
        job = self.gates[extend.gates]
        if job.model != extend.model:
            text = f"the gates {extend.gates} are trained for {job.model}, not for {extend.model}"
            raise _wrong("extend/gates", text)
        self._need_gate("extend/gates", GateRef(extend.gates, PAPER_GATE))
        if isinstance(job, TrainedGates):
            block = self.of_model(extend.model, "block")
            config = job.configs(block)[PAPER_GATE]
            assert isinstance(config, GateConfig)  # _need_gate refuses gates for decoding
            if (config.block, config.query_block) != (block, block):
                blocks = f"{config.query_block} x {config.block}"
                raise _wrong("extend/gates", f"joint training has the model's blocks of {block}, not {blocks}")
        self._need_positions("extend/context", YARN, extend.context)
        return self

    @model_validator(mode="after")
    def _measures_what_there_is(self) -> PresetFile:
        if self.profile:
            self._need_corpus("profile", self.profile.corpus, self.profile.split)
            for name in self.profile.published:
                self._need("profile/published", "models", name)
                if not isinstance(self.models[name], SourceModel):
                    raise _wrong("profile/published", f"{name} is made here, so no published run has its plans")
            searched = [name for name in self.model_names if name not in self.profile.published]
            largest = max(self.of_model(name, "block") for name in searched or [""])
            shortest = max(MIN_PROFILE, 4 * largest)  # MoA profiles a quarter of it, at least one block
            if self.profile.context < shortest:
                text = f"the searches need at least {shortest} tokens, not {self.profile.context}"
                raise _wrong("profile/context", text)
        for table in ("perplexity", "tasks", "recall"):
            for name, experiment in getattr(self, table).items():
                place = f"{table}/{name}"
                self._need_model(place, experiment.model, weights=True)
                if isinstance(experiment, Ruler):  # its text is read as text, whatever its tokens
                    self._need_corpus(place, experiment.corpus, "test")
                    self._need_positions(f"{place}/contexts", experiment.model, experiment.contexts[-1])
                elif not isinstance(experiment, LongBench | QuestionSet):
                    self._need_corpus(place, experiment.corpus, "test", experiment.model)
                self._check_arms(place, experiment.arms, experiment.model)
                if isinstance(experiment, Recall):
                    self._check_recall(place, experiment)
        if self.maps:
            self._need_model("maps", self.maps.model, weights=True)
            self._need_corpus("maps", self.maps.corpus, "test", self.maps.model)
            if self.maps.gate.set == EVERY_SET:
                raise _wrong("maps/gate", f"maps are of one gate set, not of {EVERY_SET}")
            self._need_gate("maps/gate", self.maps.gate, self.maps.model)
            self._need_square_blocks("maps/gate", self.maps.gate)
        for name, sweep in self.sweeps().items():
            if isinstance(sweep, MethodsSweep | FirstTokenSweep):
                self._check_sweep(f"latency/sweeps/{name}", sweep)
        return self

    def _check_sweep(self, place: str, sweep: MethodsSweep | FirstTokenSweep) -> None:
        timing = cast(Latency, self.latency)
        if isinstance(sweep, FirstTokenSweep) and sweep.min_rounds is not None:
            rounds = sweep.rounds or timing.rounds
            if sweep.min_rounds > rounds:
                raise _wrong(f"{place}/min_rounds", f"{sweep.min_rounds} rounds at least, of {rounds} in all")
        for context in sweep.contexts:
            self._check_names(place, sweep.at(context), sweep.model)
        if sweep.model is None:
            self._refuse_what_needs_weights(place, sweep)
            return
        self._need_model(place, sweep.model)
        if self.is_random(sweep.model):
            if isinstance(sweep, MethodsSweep):
                raise _wrong(place, f"{sweep.model} has random weights; leave model, corpus and layer out")
            if sweep.corpus is not None:
                raise _wrong(
                    f"{place}/corpus", f"{sweep.model} has random weights and reads random tokens; leave it out"
                )
            self._refuse_what_needs_weights(place, sweep)
            return
        if sweep.corpus is None:
            text = f"{sweep.model} needs a corpus whose text it reads; only a model with random weights takes"
            raise _wrong(place, f"{text} random tokens")
        self._need_corpus(place, sweep.corpus, "test", sweep.model)
        architecture = self._architecture(sweep.model)
        layer = sweep.layer if isinstance(sweep, MethodsSweep) else None
        if layer is not None and architecture is not None and layer >= architecture.layers:
            raise _wrong(f"{place}/layer", f"{sweep.model} has layers 0 to {architecture.layers - 1}, not {layer}")
        self._check_arms(place, sweep.arms, sweep.model)

    def _refuse_what_needs_weights(self, place: str, sweep: MethodsSweep | FirstTokenSweep) -> None:
        for number, arm in enumerate(sweep.arms):
            if arm.gate is not None or arm.patterns == SEARCHED:
                text = f"{arm.method}: trained gates and searched patterns need a model with weights"
                raise _wrong(f"{place}/arms/{number}", text)
            if "gates" in card_of(arm.method).required() and arm.method != "seer":
                raise _wrong(f"{place}/arms/{number}", f"{arm.method}: its gates need a model with weights")

    def _check_arms(self, place: str, arms: Iterable[Arm], model: str) -> None:
        labels: set[tuple[Any, ...]] = set()
        for number, arm in enumerate(arms):
            at = f"{place}/arms/{number}"
            for each in flat([arm]):
                name = each.model or model
                self._need_model(at, name, weights=True)
                if each.gate:
                    self._need_gate(at, each.gate, name)
                elif "gates" in card_of(arm.method).required():
                    raise _wrong(at, f"the method {arm.method} needs a gate, such as gate: long:v1")
                if each.decode:
                    self._check_decode(f"{at}/decode", each.decode, name)
                self._check_recipe(f"{at}/recipe", each, name)
                if arm.method == "moa" or arm.patterns == SEARCHED:
                    if self.profile is None:
                        text = f"what {arm.method} needs is searched for the model; add a section profile"
                        raise _wrong(at, text)
                    if name not in self.profile.published:
                        self._need_corpus("profile", self.profile.corpus, self.profile.split, name)
                for label in self._labels(each, name):
                    if label in labels and arm.sparsity_by_context is None:
                        raise _wrong(
                            at, f"{arm.method}: the rows of this arm would have the labels of another arm's"
                        )
                    labels.add(label)

    def _labels(self, each: FlatArm, model: str) -> list[tuple[Any, ...]]:
        """Return what tells the rows of an arm from those of another one, for each of its gate sets."""
        arm = each.arm
        patterns = None if arm.patterns == DEFAULT_PATTERNS else arm.patterns
        fixed = (model, *_choice(arm), patterns, each.sparsity, self._decode_label(each.decode, model))
        return [(*fixed, each.gate and each.gate.job, name) for name in self._set_names(each.gate)]

    def _check_decode(self, place: str, decode: FlatDecode, model: str) -> None:
        """Check the gate of an arm's decoding, and its budget against the block."""
        if decode.arm.gate is not None:
            self._need_gate(f"{place}/gate", decode.arm.gate, model, for_decoding=True)
        block = self._decode_block(decode, model)
        if block is not None and decode.budget is not None and decode.budget < block:
            raise _wrong(
                f"{place}/budgets", f"a budget is at least one block of {block} tokens, not {decode.budget}"
            )

    def _decode_block(self, decode: FlatDecode, model: str) -> int | None:
        """Return the tokens per block of an arm's decoding; None where a file that is not read here decides."""
        if decode.arm.gate is None:
            return decode.arm.block or self.of_model(model, "block")
        job = self.gates.get(decode.arm.gate.job)
        return (job.block or self.of_model(job.model, "block")) if isinstance(job, TrainedGates) else None

    def _decode_label(self, decode: FlatDecode | None, model: str) -> tuple[Any, ...] | None:
        """Return what tells the decoding of an arm's rows from that of another one's."""
        if decode is None:
            return None
        arm = decode.arm
        gate = arm.gate and str(arm.gate)
        block = None if arm.method == DENSE_DECODE else self._decode_block(decode, model)
        return (arm.method, gate, block, decode.budget, decode.threshold, arm.rotated_by)

    def _set_names(self, gate: GateRef | None) -> list[str | None]:
        """Return the gate sets that a reference stands for; [None] without a gate."""
        job = self.gates.get(gate.job) if gate else None
        if gate is None or gate.set != EVERY_SET or not isinstance(job, TrainedGates):
            return [None if gate is None else gate.set]
        return list(job.set_names())

    def _check_names(self, place: str, arms: Iterable[Arm], model: str | None) -> None:
        """Refuse a timing in which two methods of one cell would have the same name (`steps.latency.named`).

        model: the sweep's; None: its inputs are random, of the section's shape.
        """
        block = cast(Latency, self.latency).shape.block if model is None else self.of_model(model, "block")
        found = [(each, name) for each in flat(arms) for name in self._set_names(each.gate)]
        several = len({name for each, name in found if each.gate}) > 1
        names: set[tuple[Any, ...]] = set()
        for each, gate_set in found:
            arm, size = each.arm, self._block_of(each, model)
            shown = None if arm.method in DENSE or size in (None, block) else size
            patterns = None if arm.patterns in (None, DEFAULT_PATTERNS) else PurePath(arm.patterns).stem
            key = (
                *_choice(arm),
                patterns,
                each.sparsity,
                shown,
                several and gate_set,
            )
            if key in names:
                raise _wrong(place, f"{arm.method}: two arms would have the same name in one cell; leave one out")
            names.add(key)

    def _block_of(self, each: FlatArm, model: str | None) -> int | None:
        """Return the tokens per block of an arm in a model; None where a file that is not read here decides."""
        job = self.gates.get(each.gate.job) if each.gate else None
        if isinstance(job, TrainedGates):
            return job.block or self.of_model(job.model, "block")
        if isinstance(job, ReleasedGates | PublishedGates):
            return None
        return each.arm.block or (self.block if model is None else self.of_model(model, "block"))

    def _check_recipe(self, place: str, each: FlatArm, model: str) -> None:
        """Check how model and gates of an arm were trained against what the arm says."""
        joint = self.extend.models() if self.extend else {}
        recipe, gate = each.arm.recipe, each.gate
        if recipe == "post" and (gate is None or gate.job in joint):
            raise _wrong(place, "post says that gates were trained after the model; this arm has no such gate")
        if recipe == "joint" and (gate is None or gate.job not in joint):
            raise _wrong(place, "joint says that gates were trained with the model, as those of joint-<sparsity>")
        if recipe == "yarn" and not isinstance(self.models.get(model), SourceModel) and model != YARN:
            raise _wrong(place, f"yarn says that YaRN extends the model, and {model} is not extended")

    def _check_recall(self, place: str, recall: Recall) -> None:
        block = self.of_model(recall.model, "block")
        for number, each in enumerate(recall.arms):
            at = f"{place}/arms/{number}"
            if each.model is not None:
                raise _wrong(at, "recall runs in one model; leave the arm's model out")
            if each.block not in (None, block):
                raise _wrong(at, f"recall compares blocks of the model's size, {block}, not {each.block}")
            if each.gate is not None:
                self._need_square_blocks(at, each.gate, block)

    def _need_square_blocks(self, place: str, gate: GateRef, block: int | None = None) -> None:
        """Refuse a gate set with other blocks than `block`, or with blocks that are not square."""
        job = self.gates.get(gate.job)
        if not isinstance(job, TrainedGates):
            return
        for name, config in job.configs(self.of_model(job.model, "block")).items():
            if isinstance(config, DecodeGateConfig):
                continue
            blocks = {config.block, config.query_block}
            if gate.set in (name, EVERY_SET) and blocks != {block or config.block}:
                wanted = f"blocks of {block}" if block else "square blocks"
                text = f"{gate.job}:{name} has blocks of {config.query_block} x {config.block}; {wanted} are needed"
                raise _wrong(place, text)

    def _need(self, place: str, section: str, name: str) -> None:
        there = getattr(self, section)
        if name not in there:
            raise _wrong(place, f"no {name!r} under {section}; {advice(name, there)}")

    def _need_corpus(self, place: str, name: str, split: str, model: str | None = None) -> None:
        """Refuse a corpus that is not there, that has no such split, or whose tokens are not the model's."""
        self._need(place, "corpora", name)
        corpus = self.corpora[name]
        parts = [self.corpora[part] for part in corpus.of] if isinstance(corpus, UnionCorpus) else [corpus]
        given = {each for part in parts for each in _splits_of(part)}
        if split not in given:
            there = ", ".join(each for each in SPLITS if each in given)
            raise _wrong(place, f"the split {split} of {name} is read, and all of {name} is {there}")
        own = _own_tokenizer(corpus)
        if own is not None and model is not None and self._architecture(model) is not None:
            text = f"the tokens of {name} are those of {own}, and {model} is trained on the preset's tokenizer"
            raise _wrong(place, text)
        if own is None and model is not None and isinstance(self.tokenizer, TrainedTokenizer):
            theirs = self.base_of(model)
            found = self.models.get(theirs)
            if isinstance(found, SourceModel) and isinstance(found.source, WheelFile):
                text = f"the tokens of {name} are made by the tokenizer trained here, and {theirs} has its own"
                raise _wrong(place, f"{text}; take a corpus with `tokenizer: {theirs}`")

    def _need_model(self, place: str, name: str, weights: bool = False) -> None:
        if name not in self.model_names:
            raise _wrong(place, f"no model {name!r}; {advice(name, self.model_names)}")
        if weights and self.is_random(name):
            raise _wrong(place, f"{name} has random weights, which serve for time to first token only")

    def _need_positions(self, place: str, model: str, context: int) -> None:
        """Refuse a training on windows that are longer than the model's positions, where those are known."""
        architecture = self._architecture(model)
        if architecture is None:
            return
        factor = self.extend.factor if self.extend and model not in self.models else 1
        positions = int(architecture.positions * factor)
        if context > positions:
            raise _wrong(place, f"windows of {context} tokens, and {model} has {positions} positions")

    def _architecture(self, model: str) -> Architecture | None:
        """Return the architecture of a model that is trained here, or that extends one; None for any other."""
        found = self.models.get(self.base_of(model))
        return found.model if isinstance(found, TrainedModel) else None

    def _need_gate(self, place: str, gate: GateRef, model: str | None = None, for_decoding: bool = False) -> None:
        """Refuse a gate set that is not there, that is for another purpose, or whose gates do not fit the model.

        for_decoding: whether the gate is to choose blocks for decoding, and not for prefill.
        """
        for_prefill, decoding, trained_for = self._sets_of(place, gate.job)
        if for_decoding and gate.set == EVERY_SET:
            raise _wrong(place, f"decoding takes one gate set, not {EVERY_SET}")
        if for_decoding and gate.set in for_prefill:
            raise _wrong(place, f"{gate} are gates for prefill; decoding takes a set with recipe: {RECIPE}")
        several = gate.set == EVERY_SET and isinstance(self.gates.get(gate.job), TrainedGates)
        if not for_decoding and decoding and (several or gate.set in decoding):
            text = f"{gate.job}:{decoding[0]} are gates for decoding, which an arm takes under decode"
            raise _wrong(place, text)
        names = decoding if for_decoding else for_prefill
        if gate.set not in (*names, EVERY_SET):
            raise _wrong(place, f"the gates {gate.job!r} have no set {gate.set!r}; {advice(gate.set, names)}")
        if model is None:
            return
        ours, theirs = self._architecture(model), self._architecture(trained_for)
        if ours is None or theirs is None:
            return
        for key in ("layers", "heads", "kv_heads", "head_dim"):
            wanted, given = getattr(ours, key), getattr(theirs, key)
            if wanted != given:
                text = f"the gates {gate.job!r} are for {trained_for} with {key} {given}, and {model} has {wanted}"
                raise _wrong(place, text)

    def _sets_of(self, place: str, job: str) -> tuple[list[str], list[str], str]:
        """Return the sets of a gate job for prefill, those for decoding, and the model that they are for."""
        joint = self.extend.models() if self.extend else {}
        if joint.get(job) is not None:
            return [PAPER_GATE], [], job
        self._need(place, "gates", job)
        found = self.gates[job]
        if isinstance(found, TrainedGates):
            decoding = found.for_decoding()
            return [name for name in found.set_names() if name not in decoding], decoding, found.model
        # Released and published gates have sets that are named after their recipes.
        return list(GATE_RECIPES), [RECIPE] if isinstance(found, ReleasedGates) else [], found.model


def _own_tokenizer(corpus: Corpus) -> str | None:
    """Return the model whose tokenizer a corpus has; None if it has the preset's."""
    return getattr(corpus, "tokenizer", None)


def _splits_of(corpus: Corpus) -> Iterable[str]:
    """Return the splits that a corpus may have; a file or data set without named splits may have any."""
    if isinstance(corpus, HubCorpus) and corpus.split is not None:
        return [corpus.split]
    if isinstance(corpus, ParquetCorpus) and corpus.otherwise is not None:
        return corpus.otherwise.splits()
    return SPLITS


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
