"""Define a whole preset file as a type, and check its sections against each other: every name must be defined.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from seerbench.data.corpora import Corpus, UnionCorpus
from seerbench.presets.types import (
    DEVICES,
    DTYPES,
    SEARCHED,
    SWEEPS,
    AnySweep,
    Arm,
    Extend,
    FirstTokenSweep,
    Gates,
    Latency,
    LongBench,
    Maps,
    MethodsSweep,
    Model,
    Perplexity,
    Profile,
    RandomModel,
    Recall,
    ReleasedGates,
    Tasks,
    Tokenizer,
    TrainedGates,
    TrainedModel,
    TrainedTokenizer,
    flat,
)
from seerbench.rows.gate_ref import EVERY_SET, PAPER_GATE, GateRef
from seerbench.rows.schema import SCALE_KINDS
from seerbench.settings import Count, Integer, Name, OneOf, Settings, Text, advice


def _wrong(place: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("preset", "{text}", {"place": place, "text": text})


class PresetFile(Settings):
    """A SeerBench preset: everything that decides a number."""

    preset: Name
    """name; results go to results/fresh/<preset>"""
    scale: Text
    """what this run is, in words: printed on every table and figure"""
    scale_kind: Annotated[str, OneOf(SCALE_KINDS)]
    """toy: numbers mean nothing; small: small models; paper: the paper's shapes or models"""
    device: Annotated[str, OneOf(DEVICES)]
    dtype: Annotated[str, OneOf(DTYPES)]
    seed: Integer
    block: Count
    """tokens per block, for gates and accuracy"""
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

    def sweeps(self) -> dict[str, AnySweep]:
        """Return the timing sweeps by name."""
        if self.latency is None:
            return {}
        found = {name: getattr(self.latency.sweeps, name) for name in SWEEPS}
        return {name: sweep for name, sweep in found.items() if sweep is not None}

    @model_validator(mode="after")
    def _makes_tokens(self) -> PresetFile:
        for name, corpus in self.corpora.items():
            if isinstance(corpus, UnionCorpus):
                for part in corpus.of:
                    self._need(f"corpora/{name}", "corpora", part)
                    if isinstance(self.corpora[part], UnionCorpus):
                        raise _wrong(f"corpora/{name}", f"{part} is a union itself; list its corpora")
            own = getattr(corpus, "tokenizer", None)
            if own is not None:
                self._need(f"corpora/{name}/tokenizer", "models", own)
            elif self.tokenizer is None:
                raise _wrong(f"corpora/{name}", "the preset has no tokenizer to make its tokens with")
        if isinstance(self.tokenizer, TrainedTokenizer):
            self._need("tokenizer", "corpora", self.tokenizer.corpus)
        return self

    @model_validator(mode="after")
    def _trains_what_it_can(self) -> PresetFile:
        for name, model in self.models.items():
            if isinstance(model, TrainedModel):
                self._need(f"models/{name}", "corpora", model.corpus)
                if model.init is not None:
                    self._need(f"models/{name}/init", "models", model.init)
                    if not isinstance(self.models[model.init], TrainedModel):
                        raise _wrong(f"models/{name}/init", f"{model.init} is not trained here")
        for name, job in self.gates.items():
            self._need_model(f"gates/{name}", job.model)
            if isinstance(job, TrainedGates):
                self._need(f"gates/{name}", "corpora", job.corpus)
                try:
                    job.configs(self.block)
                except ValueError as error:
                    raise _wrong(f"gates/{name}/sets", str(error)) from None
        if self.extend:
            self._need("extend", "models", self.extend.model)
            self._need("extend", "corpora", self.extend.corpus)
            self._need("extend", "gates", self.extend.gates)
            taken = [name for name in self.extend.models() if name in self.models]
            if taken:
                raise _wrong(f"models/{taken[0]}", "extend makes a model of that name; give this one another")
        if self.profile:
            self._need("profile", "corpora", self.profile.corpus)
        return self

    @model_validator(mode="after")
    def _measures_what_there_is(self) -> PresetFile:
        for table in ("perplexity", "tasks", "recall"):
            for name, experiment in getattr(self, table).items():
                place = f"{table}/{name}"
                self._need_model(place, experiment.model)
                if not isinstance(experiment, LongBench):
                    self._need(place, "corpora", experiment.corpus)
                self._check_arms(place, experiment.arms, experiment.model)
        if self.maps:
            self._need_model("maps", self.maps.model)
            self._need("maps", "corpora", self.maps.corpus)
            self._need_gate("maps/gate", self.maps.gate)
        for name, sweep in self.sweeps().items():
            if isinstance(sweep, MethodsSweep | FirstTokenSweep):
                self._check_sweep(f"latency/sweeps/{name}", sweep)
        return self

    def _check_sweep(self, place: str, sweep: MethodsSweep | FirstTokenSweep) -> None:
        if sweep.corpus is not None:
            self._need(place, "corpora", sweep.corpus)
        if sweep.model is None:
            self._refuse_what_needs_weights(place, sweep)
            return
        self._need_model(place, sweep.model)
        if self.is_random(sweep.model):
            self._refuse_what_needs_weights(place, sweep)
            return
        if sweep.corpus is None:
            text = f"{sweep.model} needs a corpus whose text it reads; only a model with random weights takes"
            raise _wrong(place, f"{text} random tokens")
        self._check_arms(place, [arm for context in sweep.contexts for arm in sweep.at(context)], sweep.model)

    def _refuse_what_needs_weights(self, place: str, sweep: MethodsSweep | FirstTokenSweep) -> None:
        for arm in sweep.arms:
            if arm.gate is not None or arm.patterns == SEARCHED:
                raise _wrong(place, f"{arm.method}: trained gates and searched patterns need a model with weights")

    def _check_arms(self, place: str, arms: Iterable[Arm], model: str) -> None:
        for each in flat(arms):
            name = each.model or model
            self._need_model(place, name)
            if each.gate:
                self._need_gate(place, each.gate)
            searched = each.arm.method == "moa" or each.arm.patterns == SEARCHED
            if searched and not self.is_random(name) and self.profile is None:
                text = f"what {each.arm.method} needs is searched for the model; add a section profile"
                raise _wrong(place, text)

    def _need(self, place: str, section: str, name: str) -> None:
        there = getattr(self, section)
        if name not in there:
            raise _wrong(place, f"no {name!r} under {section}; {advice(name, there)}")

    def _need_model(self, place: str, name: str) -> None:
        if name not in self.model_names:
            raise _wrong(place, f"no model {name!r}; {advice(name, self.model_names)}")

    def _need_gate(self, place: str, gate: GateRef) -> None:
        joint = self.extend.models() if self.extend else {}
        if gate.job in joint and joint[gate.job] is not None:
            names = [PAPER_GATE]
        else:
            self._need(place, "gates", gate.job)
            job = self.gates[gate.job]
            if isinstance(job, ReleasedGates):
                return  # the name of the set is the recipe in the released file, which is unknown here
            names = job.set_names()
        if gate.set not in (*names, EVERY_SET):
            raise _wrong(place, f"the gates {gate.job!r} have no set {gate.set!r}; {advice(gate.set, names)}")
