"""`seerbench compare`: a kernel or a method of one's own, checked, then timed beside the baselines.

    load -> verify.py (refuse to time a wrong one) -> latency.py's sweeps -> rows, table, figure

A kernel is a function (q, k, v, mask: BlockMask) -> o; one that is named may be any call of four arguments. A
method is a class under `@register`. Both come from a file (`mine.py`, `mine.py:name`) or a module
(`package.module:name`). `--base REF` compares this tree's
block-sparse kernel with that of another commit, in the same process and the same rounds.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from seerbench import latency, statistics, verify
from seerbench.attention import BlockMask, BlockSparse, Case
from seerbench.baselines.dense import Dense
from seerbench.registry import Card, card_of, create
from seerbench.results import ROOT, atomically, files_digest, finish, provenance, write_rows
from seerbench.timing import Timing

ARGUMENTS = ["q", "k", "v", "mask"]


class CompareError(ValueError):
    """A target that cannot be loaded, or a comparison that cannot be made. The text says what to write instead."""


@dataclass
class KernelFunction:
    """A bare function as the sweeps take kernels: implementation, refuses, attend."""

    name: str
    function: verify.Kernel
    digest: str | None = None  # of its file, for the rows
    refusal: Callable[[Case], str | None] = field(default=lambda case: None)

    def implementation(self, case: Case) -> str:
        return self.name

    def refuses(self, case: Case) -> str | None:
        return self.refusal(case)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        return self.function(q, k, v, plan)


def load(target: str, name: str | None = None) -> KernelFunction | type:
    """The kernel or method class that `target` names; CompareError when it names none, or several."""
    place, _, wanted = target.partition(":")
    path = Path(place)
    _reach(Path.cwd())
    if path.suffix == ".py":
        if not path.is_file():
            raise CompareError(f"no file {place}; give a Python file or package.module:object")
        module = _import_file(path)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise CompareError(f"cannot import {place}: {error}; give a file.py or package.module:object") from None
    found = {key: value for key, value in vars(module).items() if _is_kernel(value) or _is_method(value)}
    own = {key: value for key, value in found.items() if value.__module__ == module.__name__ and key[0] != "_"}
    if wanted and takes_four(getattr(module, wanted, None)):
        found[wanted] = getattr(module, wanted)  # named, so that it need not look like a kernel
    if wanted and wanted not in found:
        raise CompareError(f"{place} has no kernel or method {wanted!r}; it has {', '.join(own) or 'none'}")
    if not wanted and len(own) != 1:
        raise CompareError(
            f"{place} has {len(own)} kernels and methods ({', '.join(own) or 'none'}); write {place}:name. "
            f"A kernel is a function ({', '.join(ARGUMENTS)}), a method a class under @register"
        )
    value = found[wanted] if wanted else next(iter(own.values()))
    if _is_method(value):
        return value
    name = name or wanted or path.stem
    digest = files_digest([Path(inspect.getfile(module))])
    return KernelFunction(name, value, digest, getattr(module, "refuses", lambda case: None))


def _import_file(path: Path) -> ModuleType:
    _reach(path.parent)
    spec = importlib.util.spec_from_file_location(f"compared_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _reach(folder: Path) -> None:
    """Make a folder's modules importable, as Python does for a script's own."""
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))


def takes_four(value: Any) -> bool:
    """Whether value(q, k, v, mask) is a call that Python would make: a function, a partial, a compiled one."""
    if inspect.isclass(value) or not callable(value):
        return False
    try:
        inspect.signature(value).bind(*ARGUMENTS)
    except TypeError:
        return False
    return True


def _is_kernel(value: Any) -> bool:
    """A function that is one by its arguments' names, and can be called with these four."""
    named = inspect.isfunction(value) and list(inspect.signature(value).parameters)[:4] == ARGUMENTS
    return named and takes_four(value)


def _is_method(value: Any) -> bool:
    return inspect.isclass(value) and hasattr(value, "plan") and hasattr(value, "cites")


def base_kernel(ref: str, root: Path = ROOT) -> KernelFunction:
    """The block-sparse kernel of another commit, loaded beside this tree's under the package name of its own.

    The commit's files are unpacked into a temporary folder and its imports of `seerbench` renamed, lazy ones
    too, so that neither tree can reach the other's code. It gets masks of its own BlockMask class.
    """
    sha = _git(root, "rev-parse", "--short", "--verify", f"{ref}^{{commit}}").decode().strip()
    package = f"seerbench_at_{sha}"
    folder = TemporaryDirectory(prefix=f"{package}-")
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", sha, "seerbench", "kernels", "baselines"))) as tar:
        tar.extractall(folder.name, filter="data")
    whole = Path(folder.name) / package
    (Path(folder.name) / "seerbench").rename(whole)
    for name in ("kernels", "baselines"):
        (whole / name).unlink(missing_ok=True)  # a link, where the tree has one
        (Path(folder.name) / name).rename(whole / name)
    digest = files_digest((whole / "kernels").glob("*.py"))
    for path in whole.rglob("*.py"):
        path.write_text(re.sub(r"(?m)^(\s*(?:from|import) )seerbench\b", rf"\1{package}", path.read_text()))
    sys.path.insert(0, folder.name)
    kernel = importlib.import_module(f"{package}.kernels.block_sparse_attention")
    attention = importlib.import_module(f"{package}.attention")
    converted: dict[int, tuple[BlockMask, Any]] = {}  # the mask is kept, so that its id stays its own

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
        if id(mask) not in converted:
            converted.clear()
            lists = (mask.kv_num_blocks, mask.kv_indices, mask.tokens, mask.block_q, mask.block_k)
            converted[id(mask)] = (mask, attention.BlockMask(*lists))
        return kernel.block_sparse_attention(q, k, v, converted[id(mask)][1])

    attend.folder = folder  # removed with the kernel: Triton reads its source when it compiles
    return KernelFunction(f"base-{sha}", attend, digest, kernel.refuses)


def _git(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True)
    if done.returncode:
        said = done.stderr.decode().strip().splitlines()
        raise CompareError(
            f"git {' '.join(arguments)}: {said[-1] if said else 'failed'}; --base takes a commit of {root}"
        )
    return done.stdout


def _usual(case: Case, base: bool) -> list[str]:
    """What a kernel is compared with unless `--against` says otherwise: on a GPU its fastest dense kernel too."""
    return ["dense", *(["cudnn"] if case.device == "cuda" else []), *([] if base else ["block_sparse"])]


def kernel_named(name: str) -> Any:
    """A baseline of a kernel: one of latency.DENSE or SPARSE_KERNELS, or a target that `load` takes."""
    if name in latency.DENSE:
        return create(name)
    if name in latency.SPARSE_KERNELS:
        return latency.sparse_kernel(name)
    if ".py" not in name and ":" not in name:
        known = ", ".join((*latency.DENSE, *latency.SPARSE_KERNELS))
        raise CompareError(f"no baseline {name!r} for a kernel; there are {known}, or another file.py")
    loaded = load(name)
    if isinstance(loaded, type):
        raise CompareError(f"{name} is a method; a kernel is compared with kernels")
    return loaded


def _method_named(name: str) -> Card:
    if name in ("seer", "moa"):
        needs = {"seer": "trained gates", "moa": "a plan searched for a model"}[name]
        raise CompareError(f"{name} needs {needs}; time it with `seerbench latency PRESET methods CONTEXT`")
    return card_of(name)


def build(make: Callable[..., Any], sparsity: float, block: int) -> Any:
    """A method at a sparsity and block, as far as its constructor takes them."""
    takes = inspect.signature(make).parameters
    return make(**{key: value for key, value in (("sparsity", sparsity), ("block", block)) if key in takes})


def check(target: Any, case: Case, seed: int) -> tuple[list[verify.Finding], int]:
    """Run verify.py's trials, with a progress bar: the findings, and how many trials there were to fail."""
    if isinstance(target, type):
        found = verify.check_method(lambda sparsity: build(target, sparsity, case.block_q), case, seed)
    else:
        found = verify.check_kernel(target.attend, case, seed)
    outcomes = [finding for _, finding in tqdm(found, desc="checking", unit="trial", leave=False, disable=None)]
    return [finding for finding in outcomes if finding], len(outcomes)


def time_kernels(
    kernels: Mapping[str, Any],
    case: Case,
    contexts: Iterable[int],
    sparsities: Iterable[float],
    timing: Timing,
    run_id: str,
) -> latency.Rows:
    """kernel_sweep over contexts and sparsities, a cell at a time, so that progress shows."""
    rows = latency.Rows([], [])
    cells = [(context, sparsity) for context in contexts for sparsity in sparsities]
    for context, sparsity in tqdm(cells, desc="timing", unit="cell", leave=False, disable=None):
        sparse = {name: kernel for name, kernel in kernels.items() if name not in latency.DENSE}
        dense = {name: kernel for name, kernel in kernels.items() if name in latency.DENSE}
        part = latency.kernel_sweep(replace(case, context=context), [sparsity], timing, run_id, sparse, dense)
        for row in part.cells:
            digest = getattr(kernels.get(row["method"]), "digest", None)
            row["source_digest"] = digest or row["source_digest"]
        rows.cells.extend(part.cells)
        rows.samples.extend(part.samples)
    return rows


def time_methods(
    method: type,
    against: Sequence[str],
    case: Case,
    contexts: Iterable[int],
    sparsities: Sequence[float],
    timing: Timing,
    run_id: str,
) -> latency.Rows:
    """methods_sweep on random q, k, v with Llama's RoPE: it says what a method costs, not what it loses."""
    rows = latency.Rows([], [])
    for context in tqdm(contexts, desc="timing", unit="context", leave=False, disable=None):
        attention = latency.random_attention(replace(case, context=context), timing.seed)
        methods = [("dense", Dense())]
        for sparsity in sparsities:
            methods.append((method.name, build(method, sparsity, case.block_q)))
            methods += [
                (name, create(name, sparsity=sparsity, block=case.block_q)) for name in against if name != "dense"
            ]
        part = latency.methods_sweep("random", attention, methods, timing, run_id, case.block_q)
        rows.cells.extend(part.cells)
        rows.samples.extend(part.samples)
    return rows


def summary(cells: pd.DataFrame, samples: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A line a method and cell: median ms, quartiles, speed-up over `reference` with its 95% interval, TFLOP/s.

    of_dense: TFLOP/s over those of the fastest dense kernel in the same cell, the ceiling of a sparse one: at 1
    a kept block costs what it costs there.
    """
    lines = []
    for _, group in cells.groupby(["context", "cell"], sort=False):
        first = group.iloc[0]
        here = samples[(samples.cell == first.cell) & samples.stage.isin(["attend", "total"])]
        times = {}
        for name, part in here.groupby("method"):
            stage = "total" if "total" in set(part.stage) else "attend"
            times[name] = part[part.stage == stage].set_index("round").ms
        rate = {
            row.method: row.flops / times[row.method].median() / 1e9
            for row in group.itertuples()
            if row.method in times
        }
        ceiling = max(
            (rate[row.method] for row in group.itertuples() if row.mask == "dense" and row.method in rate),
            default=float("nan"),
        )
        asked = group.sparsity_requested.max()
        for row in group.itertuples():
            line = {
                "context": row.context,
                "sparsity_requested": asked,
                "sparsity_realised": row.sparsity_realised,
                "method": row.method,
                "implementation": row.implementation,
                "status": row.status,
                "reason": row.reason,
                "reference": reference,
            }
            if row.method in times:
                line |= dict(zip(("ms", "ms_q1", "ms_q3"), statistics.median_iqr(times[row.method])))
                line |= {"peak_mib": row.peak_mib, "tflops": rate[row.method], "rounds": len(times[row.method])}
                line["of_dense"] = rate[row.method] / ceiling
                if reference in times and row.method != reference:
                    speed = statistics.paired_speedup(times[reference], times[row.method])
                    line |= dict(zip(("speedup", "low", "high"), speed))
            lines.append(line)
    columns = ["ms", "ms_q1", "ms_q3", "peak_mib", "tflops", "rounds", "of_dense", "speedup", "low", "high"]
    frame = pd.DataFrame(lines)
    return frame.reindex(columns=[*frame.columns, *(name for name in columns if name not in frame)])


def table(frame: pd.DataFrame) -> str:
    """The summary for a terminal: a block a cell."""
    reference = frame.reference.iloc[0]
    lines = []
    for (context, sparsity), group in frame.groupby(["context", "sparsity_requested"], sort=False, dropna=False):
        lines.append(f"context {context}, {sparsity:.0%} of the blocks to be skipped")
        lines.append(
            f"  {'method':<22}{'skipped':>8}{'median ms':>11}{'quartiles':>20}"
            f"{'speed-up over ' + reference:>34}{'TFLOP/s':>10}{'of dense':>10}{'peak MiB':>10}"
        )
        for row in group.itertuples():
            if row.status != "measured":
                lines.append(f"  {row.method:<22}{row.status.replace('_', ' ')}: {row.reason}")
                continue
            speed = "-" if pd.isna(row.speedup) else speed_up(row)
            lines.append(
                f"  {row.method:<22}{row.sparsity_realised:>8.1%}{row.ms:>11.3f}"
                f"{f'{row.ms_q1:.3f} to {row.ms_q3:.3f}':>20}{speed:>34}{row.tflops:>10.3f}"
                f"{row.of_dense:>10.0%}{row.peak_mib:>10.1f}"
            )
    return "\n".join(lines)


def speed_up(row: Any) -> str:
    """A line of the summary's speed-up with its interval; below 1, two digits that count."""
    number, low, high = (f"{x:.2f}" if x >= 1 else f"{x:#.2g}" for x in (row.speedup, row.low, row.high))
    return f"{number}x [{low}, {high}]"


def figure(frame: pd.DataFrame, title: str) -> Any:
    """Speed-up against realised sparsity, a panel a context."""
    from matplotlib import rc_context

    from seerbench.artefacts import style

    contexts = sorted(frame.context.unique())
    with rc_context(style.STYLE):
        fig, axes = style.figure(1, len(contexts), 3.0, sharey=True)
        for ax, context in zip(axes, contexts):
            here = frame[(frame.context == context) & (frame.method != frame.reference)]
            for method, rows in here.groupby("method", sort=False):
                points = rows.assign(x=rows.sparsity_realised, y=rows.speedup, source="measured")
                style.line(ax, points, style.display(method), method)
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set(title=f"context {style.size(context)}", xlabel="blocks skipped (realised)")
            ax.set_ylim(bottom=0)
            ax.legend()
        axes[0].set_ylabel(f"speed-up over {frame.reference.iloc[0]} (x)")
        style.caption(fig, frame.assign(label=title), "Bands: 95% over rounds. Below 1: slower.")
    return fig


def below(frame: pd.DataFrame, name: str, least: float) -> pd.DataFrame:
    """The cells in which `name` is slower than `least` times the reference, its whole interval below it.

    A cell in which either was not measured is among them: what could not be compared did not pass.
    """
    high = frame.high.fillna(frame.speedup)
    return frame[(frame.method == name) & ~(high >= least)]


def save(
    name: str, rows: latency.Rows, run: dict[str, Any], frame: pd.DataFrame, results: Path, figures: Path
) -> list[Path]:
    """Write rows (tables `cells` and `samples`) and the figure with its numbers; the files' paths."""
    from seerbench.artefacts import style

    done = finish(run)
    written = []
    for kind, part in (("cells", rows.cells), ("samples", rows.samples)):
        path = results / "compare" / kind / f"{name}.parquet"
        write_rows(path, kind, part, done)
        written.append(path)
    commit = (run["commit"] or "unknown")[:7] + (" (dirty)" if run["dirty"] else "")
    fig = figure(frame, f"measured: {run['device']}; {run['started'][:10]}; commit {commit}")
    contents = {
        ".svg": style.image(fig, "svg"),
        ".png": style.image(fig, "png"),
        ".csv": frame.to_csv(index=False).encode(),
    }
    for suffix, content in contents.items():
        path = figures / f"{name}{suffix}"
        atomically(path, lambda part, content=content: part.write_bytes(content))
        written.append(path)
    return written


def _sane(case: Case, contexts: Sequence[int], sparsities: Sequence[float], timing: Timing) -> None:
    """CompareError for options that no comparison can have."""
    if min(contexts) < 1:
        raise CompareError(f"--contexts are counts of tokens, not {min(contexts)}")
    wrong = [sparsity for sparsity in sparsities if not 0 <= sparsity < 1]
    if wrong:
        raise CompareError(f"--sparsity is the share of blocks to skip, from 0 to below 1, not {wrong[0]}")
    if min(case.batch, case.q_heads, case.kv_heads, case.head_dim, case.block_q) < 1:
        raise CompareError("--batch, --heads, --kv-heads, --head-dim and --block are at least 1")
    if case.q_heads % case.kv_heads:
        raise CompareError(
            f"{case.q_heads} query heads do not split over {case.kv_heads} key/value heads; "
            "--heads is a multiple of --kv-heads"
        )
    if case.dtype not in ("float32", "float16", "bfloat16"):
        raise CompareError(f"no dtype {case.dtype!r}; there are float32, float16, bfloat16")
    if timing.rounds < 2:
        raise CompareError("--rounds is at least 2: an interval needs more than one")
    if case.device == "cuda" and not torch.cuda.is_available():
        raise CompareError("torch sees no GPU here; --device cpu")


@dataclass(frozen=True)
class Outcome:
    """What `run` found: either findings (nothing was timed) or a summary and the files written."""

    name: str
    findings: list[verify.Finding]
    trials: int
    frame: pd.DataFrame | None = None
    files: list[Path] = field(default_factory=list)


def run(
    target: str | None,
    *,
    against: Sequence[str],
    contexts: Sequence[int],
    sparsities: Sequence[float],
    case: Case,
    timing: Timing,
    results: Path,
    figures: Path,
    name: str | None = None,
    base: str | None = None,
) -> Outcome:
    """Load, check, time, write. The first of `against` is what speed-ups are over; dense is always timed too."""
    _sane(case, contexts, sparsities, timing)
    other = base_kernel(base) if base else None
    loaded = load(target, name) if target else None
    if loaded is None and other is None:
        raise CompareError("name a kernel file, or --base REF to compare this tree's kernel with another commit's")
    candidate = BlockSparse() if loaded is None else loaded
    label = name or ("block_sparse" if loaded is None else candidate.name)
    refusal = None if isinstance(candidate, type) else candidate.refuses(case)
    if refusal:
        raise CompareError(f"{label} refuses this case: {refusal}")
    method = isinstance(candidate, type)
    if method and other:
        raise CompareError("--base compares kernels; a method has its plan too")
    if method:
        label = candidate.name
        against = against or ["dense", "streaming"]
        baselines = {name: _method_named(name) for name in against}
    else:
        baselines = {} if other is None else {other.name: other}
        for one in against or _usual(case, bool(other)):
            kernel = kernel_named(one)
            baselines[kernel.name if isinstance(kernel, KernelFunction) else one] = kernel
    if label in baselines:
        raise CompareError(f"{label} is also the name of a baseline; give another with --name (or @register)")
    findings, trials = check(candidate, case, timing.seed)
    if findings:
        return Outcome(label, findings, trials)
    started = provenance(
        f"compare {label}",
        preset="compare",
        scale="one kernel or method, random inputs",
        seed=timing.seed,
        device=case.device,
    )
    if method:
        rows = time_methods(candidate, against, case, contexts, sparsities, timing, started["run_id"])
    else:
        rows = time_kernels(baselines | {label: candidate}, case, contexts, sparsities, timing, started["run_id"])
    reference = next(iter(baselines))
    frame = summary(pd.DataFrame(rows.cells), pd.DataFrame(rows.samples), reference)
    return Outcome(label, [], trials, frame, save(label, rows, started, frame, results, figures))
