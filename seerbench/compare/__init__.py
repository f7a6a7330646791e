"""`seerbench compare`: check a kernel or method of one's own, then time it beside the baselines.

load.py         find the kernel or method in a file or module        base_commit.py  load another commit's
kernel trials.py       small cases that a kernel must get right             check.py        run them, find what
is wrong diagnose.py     guess the mistake behind a wrong output              run.py          load, check, time,
write present.py      summary, terminal table, figure
"""
