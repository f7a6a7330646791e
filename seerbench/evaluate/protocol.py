"""Make the jobs of an evaluation: those of the preset, with dense attention and the method in place of its arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seerbench.errors import ConfigError
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.models.model_source import ModelSource
from seerbench.presets.jobs import (
    ArmJob,
    MethodsLatencyJob,
    ModelArms,
    PerplexityJob,
    RetrievalJob,
    RulerJob,
    Tokens,
)
from seerbench.presets.paths import RunPaths
from seerbench.presets.preset import Preset
from seerbench.presets.types import LongBench, MethodsSweep, QuestionSet, Ruler

# Experiments and the sweep, by name in a preset.
LOSSES, LOOKUPS, RULER, TIMINGS = "contexts", "retrieval", "ruler", "methods"
RULER_LAST = "ruler-last-rows"  # RULER under the second protocol; an evaluation has both in one experiment
LAST_ROWS = 2  # block rows that are dense in the second protocol, as in the authors' task evaluations
SPARSITIES, QUICK_SPARSITIES = (0.5, 0.7, 0.9), (0.5, 0.9)
# The most that --quick takes of each: enough to see a broken method, too few for a narrow interval.
QUICK_DOCUMENTS, QUICK_EXAMPLES, QUICK_ROUNDS = 3, 3, 10


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        model: the model in which everything is measured.
        losses: the perplexity job. Its contexts choose the documents, `loss_contexts` are measured.
        lookups: the job of look-ups, or None if the preset has none in this model.
        ruler: the job of RULER, or None if the preset has none in this model.
        timings: one job per context; () if the preset times no methods in this model.
        quick: whether only the shortest context of each is measured.
    """

    model: ModelSource
    losses: PerplexityJob
    lookups: RetrievalJob | None
    ruler: RulerJob | None
    timings: tuple[MethodsLatencyJob, ...]
    quick: bool

    @property
    def loss_contexts(self) -> tuple[int, ...]:
        """Return the contexts at which losses are measured."""
        return _chosen(self.losses.contexts, self.quick)

    @property
    def lookup_contexts(self) -> tuple[int, ...]:
        """Return the contexts at which look-ups are answered."""
        return _chosen(self.lookups.contexts, self.quick) if self.lookups else ()

    @property
    def ruler_contexts(self) -> tuple[int, ...]:
        """Return the lengths at which RULER is answered."""
        return _chosen(self.ruler.contexts, self.quick) if self.ruler else ()

    @property
    def scored(self) -> list[RetrievalJob | RulerJob]:
        """Return the jobs of tasks."""
        return [job for job in (self.lookups, self.ruler) if job is not None]

    @property
    def texts(self) -> tuple[Tokens, ...]:
        """Return the tokenized corpora that are read."""
        jobs = [self.losses, *self.scored, *self.timings]
        return tuple(dict.fromkeys(job.tokens for job in jobs))

    @property
    def outputs(self) -> list[Path]:
        """Return the files of rows that are written."""
        timed = [file for job in self.timings for file in (job.cells, job.samples)]
        return [self.losses.rows, *(job.rows for job in self.scored), *timed]


def protocol(preset: Preset, method: str, sparsities: Sequence[float], quick: bool, out: RunPaths) -> Protocol:
    """Return the protocol of a preset for one method. Raises ConfigError for a preset that measures no loss.

    Look-ups, RULER and timings in another model than the losses are left out: a card is of one model.

    Args:
        preset: the preset.
        method: the method's name in the catalogue.
        sparsities: requested sparsities, in [0, 1).
        quick: whether to measure few documents and examples at the shortest context alone.
        out: the paths of the rows to write.
    """
    if LOSSES not in preset.file.perplexity:
        raise ConfigError(
            f"the preset {preset.name} has no experiment perplexity/{LOSSES}, so it measures no loss; take another "
            "preset, such as cpu"
        )
    name = preset.file.perplexity[LOSSES].model
    model, block = preset.model(name), preset.setup_in(name).block
    dense = ArmJob("dense", None, block)
    sparse = [ArmJob(method, sparsity, block) for sparsity in sparsities]
    last_rows = [replace(arm, last_rows_dense=LAST_ROWS) for arm in sparse]

    losses = preset.perplexity(LOSSES)
    losses = replace(losses, groups=_in(model, [dense, *sparse]), rows=out.rows("perplexity", LOSSES))
    if quick:
        losses = replace(losses, documents=min(losses.documents or QUICK_DOCUMENTS, QUICK_DOCUMENTS))
    lookups, ruler = _lookups(preset, name), _ruler(preset, name)
    groups = _in(model, [dense, *sparse, *last_rows])
    if lookups is not None:
        lookups = replace(lookups, groups=groups, rows=out.rows("tasks", LOOKUPS))
        lookups = replace(lookups, examples=min(lookups.examples, QUICK_EXAMPLES)) if quick else lookups
    if ruler is not None:
        ruler = replace(ruler, groups=groups, rows=out.rows("tasks", RULER))
        ruler = replace(ruler, examples=min(ruler.examples, QUICK_EXAMPLES)) if quick else ruler
    timings = tuple(_timing(job, sparse, quick, out) for job in _timings(preset, name, quick))
    return Protocol(model, losses, lookups, ruler, timings, quick)


def _chosen(contexts: tuple[int, ...], quick: bool) -> tuple[int, ...]:
    return (min(contexts),) if quick else contexts


def _in(model: ModelSource, arms: Sequence[ArmJob]) -> tuple[ModelArms, ...]:
    return (ModelArms(model, tuple(arms)),)


def _lookups(preset: Preset, model: str) -> RetrievalJob | None:
    """Return the preset's job of look-ups if it is in this model."""
    section = preset.file.tasks.get(LOOKUPS)
    if section is None or isinstance(section, LongBench | Ruler | QuestionSet) or section.model != model:
        return None
    job = preset.tasks(LOOKUPS)
    return job if isinstance(job, RetrievalJob) else None


def _ruler(preset: Preset, model: str) -> RulerJob | None:
    """Return the preset's job of RULER if it is in this model."""
    section = preset.file.tasks.get(RULER)
    if not isinstance(section, Ruler) or section.model != model:
        return None
    job = preset.tasks(RULER)
    return job if isinstance(job, RulerJob) else None


def _timings(preset: Preset, model: str, quick: bool) -> list[MethodsLatencyJob]:
    """Return the preset's jobs that time methods on this model's q, k and v, one per context."""
    section = preset.file.sweeps().get(TIMINGS)
    if not isinstance(section, MethodsSweep) or section.model != model:
        return []
    jobs = [preset.latency(TIMINGS, context) for context in _chosen(tuple(section.contexts), quick)]
    return [job for job in jobs if isinstance(job, MethodsLatencyJob)]


def _timing(job: MethodsLatencyJob, sparse: Sequence[ArmJob], quick: bool, out: RunPaths) -> MethodsLatencyJob:
    """Return a timing job with the preset's dense arms and the method's, and the rows to write."""
    (group,) = job.groups
    dense = [arm for arm in group.arms if arm.method in DENSE]
    part = f"{TIMINGS}-{job.context}"
    rounds = replace(job.rounds, rounds=min(job.rounds.rounds, QUICK_ROUNDS)) if quick else job.rounds
    return replace(
        job,
        groups=_in(group.model, [*dense, *sparse]),
        rounds=rounds,
        cells=out.rows("cells", part),
        samples=out.rows("samples", part),
    )
