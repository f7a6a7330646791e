r"""The DAG of a preset as one Python script, for a machine that has a GPU but no Snakemake.

    snakemake --config preset=gpu elsewhere=1 --forceall --dry-run --printshellcmds -- rows \
        | python workflow/as_script.py > run.py
    SEERBENCH_COMMIT=$(git rev-parse HEAD) SEERBENCH_DIRTY=0 SEERBENCH_DATA=folder python run.py   # there

The same steps in an order that the DAG allows, in one process (torch is imported once); one whose outputs are
all there is skipped, so that the script may be ended and started again (a training continues from its
checkpoint), and a step that fails ends it. It needs the package's dependencies (jsonschema among them).
Nothing is drawn there: that needs no GPU. To go on another day, bring back results/fresh/<preset>, but for
corpora/, in parts, and join them there with cat:

    tar -c -C results/fresh/gpu --exclude corpora . | split -b 16M - part.

A model of 30M parameters is 128 MB, eight such parts: two calls where one brings back 64 MiB. Unlike Snakemake
the script does not notice changed settings: delete the outputs that a change touches.
"""

from __future__ import annotations

import re
import shlex
import sys

RUNNER = '''"""Written by workflow/as_script.py: the steps of a preset in order, those that are done left out."""

import sys
import time
from pathlib import Path

from seerbench.cli import app

STEPS = [
{steps}
]
for outputs, arguments in STEPS:
    if all(Path(output).exists() for output in outputs):
        continue
    sys.argv = ["seerbench", *arguments]  # provenance quotes it
    started = time.time()
    print(*arguments, flush=True)
    app(arguments, standalone_mode=False)
    print(f"  {{time.time() - started:.1f}} s", flush=True)
'''


def script(dry_run: str) -> str:
    """What `snakemake --dry-run --printshellcmds` printed -> a Python script; ValueError if it names no step."""
    steps, outputs = [], []
    for line in dry_run.splitlines():
        if field := re.match(r"    output: (.*)", line):
            outputs = field[1].split(", ")
        if command := re.match(r"Shell command: seerbench (.*) 2> ", line):
            steps.append(f"    ({outputs!r}, {shlex.split(command[1])!r}),")
    if not steps:
        raise ValueError("no seerbench step in what was read; give --forceall --dry-run --printshellcmds")
    return RUNNER.format(steps="\n".join(steps))


if __name__ == "__main__":
    print(script(sys.stdin.read()), end="")
