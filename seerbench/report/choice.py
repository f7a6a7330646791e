"""The report's answer to "which method at my length and budget": what `seerbench advise` recommends, by machine."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd

from seerbench.artefacts import colors, labels, style
from seerbench.report import advise
from seerbench.report.page_style import wide
from seerbench.rows.store import Run

BUDGETS = (0.02, 0.1)  # nats per token over dense that a reader accepts: 2% and 10% of perplexity
NONE = "dense: no method is faster within this loss"


def section(runs: Sequence[Run]) -> str:
    """Return one table per machine with the fastest method by length and budget, and where the losses come from."""
    quality = advise.strongest_quality(runs)
    tables = [_table(device, timed, quality) for device, timed in advise.machines_of(runs, None).items()]
    if quality is None or not any(tables):
        return (
            "<p>A recommendation needs timings of whole methods and losses of a model. The runs that this page "
            "reads lack one of the two.</p>"
        )
    origin = labels.label(quality.run, quality.rows).text
    return (
        "<p>The fastest method, planning included, whose whole loss interval is within the budget and whose whole "
        "speed-up interval over the fastest dense kernel of the machine is above 1. For another length or budget: "
        "<code>seerbench advise --context 16384 --loss 0.05</code>.</p>"
        f'{"".join(tables)}<ul class="label"><li>Losses, at the nearest measured length: {escape(origin)}. Another '
        "model may lose more or less.</li></ul>"
    )


def _table(device: str, timed: dict[str, advise.Timed], quality: advise.Quality | None) -> str:
    """Return the table of one machine, or nothing if none of its timed methods has a loss."""
    head = ("time of", *(f"loss up to {budget:g} nats per token" for budget in BUDGETS))
    rows = []
    for sweep, (_, meaning) in advise.TIMES.items():
        contexts = sorted(timed[sweep].lines.context.unique()) if sweep in timed else []
        for context in contexts:
            known = advise.with_loss(timed[sweep].lines, quality, context)
            if known.empty:
                continue
            best = [advise.recommended(known, budget)[0] for budget in BUDGETS]
            cells = "".join(f"<td>{escape(NONE if line is None else _cell(line))}</td>" for line in best)
            rows.append(f'<tr><th scope="row">{meaning}, {style.size(context)}</th>{cells}</tr>')
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = f"<thead><tr>{names}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return wide(f'<table class="wrap"><caption>{escape(device)}</caption>{body}</table>', escape(device))


def _cell(best: pd.Series) -> str:
    return (
        f"{colors.display(best['name'])}, {best.sparsity_realised:.0%} skipped: {best.value:.2f}x "
        f"[{best.low:.2f}, {best.high:.2f}], loss {best.delta:+.3f}"
    )
