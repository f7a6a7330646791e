"""Run an evaluation: load the method and the model, check, measure, and write rows and the card.

cli.py calls `evaluate`. A wrong method is not measured: one that fails a trial of `seerbench compare`, does not run
in the preset's model, or misses its budget there.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from seerbench.compare.run import check
from seerbench.compare.trials import Finding
from seerbench.compare.user_code import running
from seerbench.errors import ConfigError, Refused
from seerbench.evaluate.beside import write_beside
from seerbench.evaluate.candidate import Candidate, candidate
from seerbench.evaluate.card import Card, as_markdown, as_page, card
from seerbench.evaluate.measure import Evaluation
from seerbench.evaluate.protocol import Protocol, protocol
from seerbench.measure.inputs import problem_of_model
from seerbench.paths import PUBLISHED
from seerbench.presets.paths import RunPaths
from seerbench.presets.preset import Preset
from seerbench.report.advise import runs_in
from seerbench.rows.store import Run
from seerbench.steps.common import load_model, require
from seerbench.steps.data import make_inputs
from seerbench.writing import write_bytes


@dataclass(frozen=True)
class Outcome:
    """The outcome of an evaluation.

    Attributes:
        name: the method's name.
        findings: the trials that failed; nothing was measured if there are any.
        refusal: why the method cannot be measured in the preset's model, or None.
        card: the card, or None for a wrong method.
        files: the files of the card and the folder of the rows.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    refusal: str | None = None
    card: Card | None = None
    files: list[Path] = field(default_factory=list)


def evaluate(
    target: str,
    preset: Preset,
    *,
    sparsities: Sequence[float],
    quick: bool,
    out: Path,
    published: Path = PUBLISHED,
) -> Outcome:
    """Check a method and, if it is right, measure it as the preset measures its own, and write a card.

    A model that the preset takes out of a wheel, and the texts, are made first if they are missing. Raises
    CompareError for a target that is no method, ConfigError for sparsities that no method can have or a preset
    without losses, and MissingInput for a model that must be trained first.

    Args:
        target: the method, as `candidate` takes it.
        preset: the preset whose protocol is followed.
        sparsities: requested sparsities.
        quick: whether to measure a small part of the protocol.
        out: the folder for rows and cards; those of a method go to `out/<preset>/<method>`.
        published: the folder of published runs, which may have rows to compare with.
    """
    require_sparsities(sparsities)
    for module in ("seerbench.artefacts.style", "tabulate"):  # where one is missing, say so before measuring
        importlib.import_module(module)
    method = candidate(target)
    folder = out / preset.name / method.name
    plan = protocol(preset, method.name, sparsities, quick, RunPaths(folder))
    make_inputs(preset, plan.model, plan.texts)
    require(preset, [*(text.file for text in plan.texts), *plan.model.files], plan.outputs)
    others = _runs_of(preset, published)  # read now, so that a damaged file is found before anything is measured
    setup = plan.losses.setup
    model = load_model(plan.model, setup, plan.losses.tokens)
    with _of_the_user(target):
        findings, _ = check(method.made, problem_of_model(model, 0, setup.block), setup.seed)
        if findings:
            return Outcome(method.name, findings)
        command = _command(target, preset, sparsities, quick)
        try:
            Evaluation(plan, method, model, command).measure()
        except Refused as refusal:
            return Outcome(method.name, refusal=str(refusal))
    for table in ("cells", "samples"):  # of a longer evaluation before this one
        for file in set((folder / table).glob("*.parquet")) - set(plan.outputs):
            file.unlink()
    run = Run(folder)
    beside = write_beside(run, others, method.name)
    content = card(run, method.card.title or method.name, _facts(method, plan, command), beside, preset.reference)
    files = {"card.md": as_markdown(content), "card.html": as_page(content)}
    for name, text in files.items():
        write_bytes(folder / name, text.encode())
    write_bytes(folder / method.file.name, method.file.read_bytes())
    return Outcome(method.name, card=content, files=[*(folder / name for name in files), folder])


def _runs_of(preset: Preset, published: Path) -> list[Run]:
    """Return the runs of a preset that are there: this machine's first, then published ones."""
    runs = [Run(folder) for folder in runs_in(published, preset.folder.parent)]
    found = [run for run in runs if preset.name in set(run.table("runs").preset)]
    return sorted(found, key=lambda run: run.folder != preset.folder)


def require_sparsities(sparsities: Sequence[float]) -> None:
    """Raise ConfigError for requested sparsities that are not above 0 and below 1, or that repeat."""
    wrong = [sparsity for sparsity in sparsities if not 0 < sparsity < 1]
    if wrong:
        raise ConfigError(f"--sparsities are shares of blocks to skip, above 0 and below 1, not {wrong[0]}")
    if len(set(sparsities)) < len(sparsities):
        raise ConfigError("--sparsities: give each sparsity once")


@contextmanager
def _of_the_user(target: str) -> Iterator[None]:
    """Show errors in a user's file as `seerbench compare` does; errors of a known method are our own."""
    if ".py" in target or ":" in target:
        with running([target]):
            yield
    else:
        yield


def _command(target: str, preset: Preset, sparsities: Sequence[float], quick: bool) -> str:
    given = ",".join(f"{sparsity:g}" for sparsity in sparsities)
    words = ["seerbench", "evaluate", target, "--preset", preset.reference, "--sparsities", given]
    return shlex.join([*words, *["--quick"] * quick])


def _facts(method: Candidate, plan: Protocol, command: str) -> list[str]:
    """Return what was evaluated, and on how much."""
    job, documents = plan.losses, plan.losses.documents or "all"
    examples = f", {plan.lookups.examples} look-ups per task and context" if plan.lookups else ""
    examples += f", {plan.ruler.examples} examples per task and length of RULER" if plan.ruler else ""
    return [
        f"{method.card.summary} [{method.card.cites}]",
        f"Model {plan.model.name}; {documents} documents of {job.tokens.corpus} per context{examples}"
        f"{'; a quick look, with few documents and the shortest context' if plan.quick else ''}.",
        f"Command: {command}",
    ]
