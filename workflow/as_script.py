r"""The DAG of a preset as one Python script, for a machine that has a GPU but no Snakemake.

    snakemake --config preset=gpu elsewhere=1 --forceall --dry-run --printshellcmds -- rows \
        | python workflow/as_script.py > run.py
    SEERBENCH_COMMIT=$(git rev-parse HEAD) SEERBENCH_DIRTY=0 SEERBENCH_DATA=folder python run.py   # there

The same steps in an order that the DAG allows, in one process (torch is imported once); one whose outputs are
all there is skipped, so that the script may be ended and started again (a training continues from its
checkpoint). A step that fails is reported, the others go on, and the exit status says so. It needs the package's
dependencies (jsonschema among them).

Several may run at once, on one GPU or many (CUDA_VISIBLE_DEVICES=0, 1, ...): each takes the first step whose
inputs are there and that no other is at, and one that failed elsewhere once again. Most steps of the preset gpu
wait for the host, so that several share a GPU well (docs/gpu-preset.md). Where timings are among the steps start
one a GPU and no more, or a timing would share its device; or take their lines out and run them alone afterwards.
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

LOCKS = "logs/steps"

RUNNER = '''"""Written by workflow/as_script.py: the steps of a preset in order, those that are done left out."""

import fcntl
import gc
import sys
import time
import traceback
from pathlib import Path

from seerbench.cli import app

LOCKS = Path({locks!r})  # one a step; a killed worker gives its lock back by itself
STEPS = [  # inputs, outputs, command
{steps}
]


FAILED = {{}}  # number -> command of the steps that failed here


def there(files):
    return all(Path(file).exists() for file in files)


def release():
    """Give the GPU's memory back: another worker may need it for the next step."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def claimed(number):
    """An open file that holds the lock of a step, or None while another worker is at it."""
    lock = (LOCKS / str(number)).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def work():
    """Run the first step that can be; whether one was run, another worker is at one, or nothing is left."""
    elsewhere, waiting = False, []
    for number, (inputs, outputs, arguments) in enumerate(STEPS):
        if there(outputs) or number in FAILED:
            continue
        lock = claimed(number)
        if lock is None:
            elsewhere = True
            continue
        with lock:
            if there(outputs):  # done since we looked
                continue
            if not there(inputs):
                waiting.append(" ".join(arguments))
                continue
            sys.argv = ["seerbench", *arguments]  # provenance quotes it
            started = time.time()
            print(*arguments, flush=True)
            try:
                app(arguments, standalone_mode=False)
                if not there(outputs):
                    raise RuntimeError("this step ended without " + ", ".join(outputs))
                print(f"  {{time.time() - started:.1f}} s: {{arguments}}", flush=True)
            except Exception:  # of whatever kind: it is reported, and the other steps do not need this one
                traceback.print_exc()
                FAILED[number] = " ".join(arguments)
            return "ran"
    if waiting and not elsewhere:
        FAILED.setdefault(-1, "no step makes what these wait for: " + "; ".join(waiting))
    return "elsewhere" if elsewhere else "done"


LOCKS.mkdir(parents=True, exist_ok=True)
while (state := work()) != "done":
    release()
    if state == "elsewhere":
        time.sleep(1)
if FAILED:
    raise SystemExit("failed: " + "; ".join(FAILED.values()))
'''


def script(dry_run: str) -> str:
    """What `snakemake --dry-run --printshellcmds` printed -> a Python script; ValueError if it names no step."""
    steps, files = [], {}
    for line in dry_run.splitlines():
        if line.startswith("rule "):
            files = {"input": [], "output": []}  # a rule without inputs prints none
        if field := re.match(r"    (input|output): (.*)", line):
            files[field[1]] = field[2].split(", ")
        if command := re.match(r"Shell command: seerbench (.*) 2> ", line):
            steps.append(f"    ({files['input']!r}, {files['output']!r}, {shlex.split(command[1])!r}),")
    if not steps:
        raise ValueError("no seerbench step in what was read; give --forceall --dry-run --printshellcmds")
    return RUNNER.format(steps="\n".join(steps), locks=LOCKS)


if __name__ == "__main__":
    print(script(sys.stdin.read()), end="")
