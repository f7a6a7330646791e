"""Measure a method: losses by document, look-ups by arm, RULER by task, timings by context, each saved once whole.

A killed evaluation goes on where it was: `saved_rows.SavedRows` keeps the pieces of the same method, file and
settings. The first piece also shows whether the method runs in the model at all and keeps to its budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seerbench.data.ruler.tasks import DEFINITION
from seerbench.data.tokens import load_tokenizer, read_card
from seerbench.errors import MeasureError, Refused
from seerbench.evaluate.candidate import Candidate
from seerbench.evaluate.protocol import LOOKUPS, LOSSES, RULER, Protocol
from seerbench.measure import perplexity, tasks
from seerbench.measure.generation import answer_prompts
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.presets.jobs import MethodsLatencyJob, PerplexityJob, RetrievalJob, RulerJob
from seerbench.rows.schema import DISTURBED, REFUSED
from seerbench.rows.source_digest import files_digest, source_digest
from seerbench.steps.accuracy import lookups
from seerbench.steps.arms import make_arms
from seerbench.steps.common import start, tokenizer_of, windows_of
from seerbench.steps.latency import timed_rows, timing_of
from seerbench.steps.prompts import MakesPrompts, question_files, ruler_prompts
from seerbench.steps.saved_rows import SavedRows

Rows = list[dict[str, Any]]
AnyJob = PerplexityJob | RetrievalJob | RulerJob | MethodsLatencyJob


class Evaluation:
    """One evaluation: what is measured, in which model, and the pieces that are saved.

    Args:
        protocol: what is measured.
        method: the method.
        model: the loaded model of the protocol.
        command: the command line that repeats the evaluation.
    """

    def __init__(self, protocol: Protocol, method: Candidate, model: Any, command: str) -> None:
        self.protocol, self.method, self.model, self.command = protocol, method, model, command
        self.saved: list[SavedRows] = []
        self.disturbed = False  # whether timings were; then the same command measures them again, and nothing else

    def measure(self) -> None:
        """Measure everything that is not saved yet, and write the rows.

        Raises Refused where the method does not run in the model, misses its budget there, or makes the loss NaN;
        then nothing is written.
        """
        try:
            self._losses(self.protocol.losses)
        except Refused:
            self.saved[0].discard()
            raise
        if self.protocol.lookups is not None:
            self._lookups(self.protocol.lookups)
        if self.protocol.ruler is not None:
            self._ruler(self.protocol.ruler)
        for job in self.protocol.timings:
            self._timings(job)
        for saved in self.saved:
            saved.join(keep=self.disturbed and saved.table in ("perplexity", "tasks"))

    def _saved(
        self, table: str, job: AnyJob, state: Sequence[object] = (), files: Sequence[Path] = ()
    ) -> SavedRows:
        """Return the pieces of a table; what decides its rows tells them from those of other evaluations.

        state, files: what decides them beside the job, its text, the method's file, and our code and weights.
        """
        out = getattr(job, table) if isinstance(job, MethodsLatencyJob) else job.rows
        step = f"evaluate {self.method.name} {table}"
        run = start(job.setup, step, job.tokens, "test", [self.protocol.model]) | {"command": self.command}
        state = [job, read_card(job.tokens.file).sha256, self._digest, source_digest(), *state]
        saved = SavedRows(table, out, run, state, [*self.protocol.model.files, *files])
        self.saved.append(saved)
        return saved

    @property
    def _digest(self) -> str:
        return files_digest([self.method.file])

    def _losses(self, job: PerplexityJob) -> None:
        """Measure the loss of every document under every arm; one piece per context and document."""
        saved, arms = self._saved("perplexity", job), make_arms(job.groups[0].arms, job.setup.device)
        fixed = {"experiment": LOSSES, "model": self.protocol.model.name, "corpus": job.tokens.corpus}
        windows = {
            context: windows_of(
                job.tokens,
                context,
                job.documents,
                self.model,
                longest=max(job.contexts),
                aligned=job.scored is not None,
                reaching=job.reaching,
            )
            for context in self.protocol.loss_contexts
        }
        pieces = [(context, *window) for context, found in windows.items() for window in found.items()]
        with _bar("losses", len(pieces) * len(arms)) as bar:
            for number, (context, document, window) in enumerate(pieces):

                def measured(document: str = document, window: Any = window, number: int = number) -> Rows:
                    rows = perplexity.perplexity(self.model, {document: window}, arms, bar, job.scored)
                    _require_measured(rows, ("measured",) if number == 0 else ("measured", REFUSED))
                    return [fixed | row for row in rows]

                _piece(saved, f"{context}-{number}", measured, bar, len(arms))

    def _lookups(self, job: RetrievalJob) -> None:
        """Let every arm answer the look-ups; one piece per task, context and arm."""
        saved, arms = self._saved("tasks", job), make_arms(job.groups[0].arms, job.setup.device)
        tokenizer = load_tokenizer(job.tokenizer.location, job.tokenizer.revision)
        fixed = {"experiment": LOOKUPS, "model": self.protocol.model.name, "corpus": job.tokens.corpus}
        chosen = replace(job, contexts=self.protocol.lookup_contexts)
        examples = lookups(chosen, tokenizer)
        with _bar("look-ups", sum(map(len, examples.values())) * len(arms)) as bar:
            for (task, context), asked in examples.items():
                bucket = {"bucket": tasks.bucket_of(list(job.contexts), context)}
                for number, arm in enumerate(arms):

                    def answered(arm: Any = arm, asked: Any = asked, bucket: Any = bucket) -> Rows:
                        found = tasks.retrieval(self.model, tokenizer, asked, [arm], job.batch, bar)
                        return [fixed | bucket | row for row in found]

                    _piece(saved, f"{task}-{context}-{number}", answered, bar, len(asked))

    def _ruler(self, job: RulerJob) -> None:
        """Let every arm answer RULER's tasks; one piece per task and length, whose answers are decoded together."""
        saved = self._saved("tasks", job, [DEFINITION], question_files(job))
        arms = make_arms(job.groups[0].arms, job.setup.device)
        tokenizer = tokenizer_of(self.protocol.model)
        fixed = {"experiment": RULER, "model": self.protocol.model.name, "corpus": job.tokens.corpus}
        makers = {
            (task, context): make
            for (task, context), make in ruler_prompts(job).items()
            if context in self.protocol.ruler_contexts
        }
        answers = job.examples * len(arms)
        with _bar("RULER", answers * len(makers)) as bar:
            for (task, context), make in makers.items():

                def answered(make: MakesPrompts = make) -> Rows:
                    prompts = make(tokenizer, self.model.config.max_position_embeddings)
                    found = answer_prompts(self.model, tokenizer, prompts, arms, job.batch, bar)
                    return [fixed | row for row in found]

                _piece(saved, f"{task}-{context}", answered, bar, answers)

    def _timings(self, job: MethodsLatencyJob) -> None:
        """Time the method beside the dense kernels at one context: one piece."""
        cells, samples = self._saved("cells", job), self._saved("samples", job)
        samples.run = cells.run  # one execution makes both
        with _bar(f"timings at {job.context} tokens", 1) as bar:
            if cells.has("all") and samples.has("all"):
                bar.update()
                return
            timing = timing_of(job.rounds, job.setup.seed)
            found = timed_rows(job, self.model, timing, cells.run["run_id"])
            for row in found.cells:
                if row["method"] not in DENSE:
                    row["source_digest"] = self._digest
                self.disturbed |= row["status"] == DISTURBED
            cells.save("all", found.cells)
            samples.save("all", found.samples)
            bar.update()


def _bar(title: str, total: int) -> tqdm:
    return tqdm(total=total, desc=title, mininterval=1)


def _piece(saved: SavedRows, name: str, measure: Callable[[], Rows], bar: tqdm, size: int) -> None:
    """Save a piece, unless it is there; `measure` moves the bar by itself, by `size` in all."""
    if saved.has(name):
        bar.update(size)
    else:
        saved.save(name, measure())


def _require_measured(rows: Rows, accepted: tuple[str, ...]) -> None:
    """Raise Refused for a method with a row of another status than those accepted.

    At a longer context a method may refuse what it cannot do there, which is a row; on the first document it may
    not, since nothing would be measured then.
    """
    wrong = [row for row in rows if row["status"] not in accepted]
    if any(row["sparsity_requested"] is None for row in wrong):
        raise MeasureError(f"dense attention cannot be measured in this model: {wrong[0]['reason']}")
    if wrong:
        said = [f"asked to skip {row['sparsity_requested']:.0%}: {row['reason']}" for row in wrong]
        raise Refused(f"at {wrong[0]['context']} tokens, {'; '.join(said)}")
