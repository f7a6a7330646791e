"""`seerbench compare`: check a kernel or method of one's own, then time it beside the baselines.

load.py         finds the kernel or method in a file or module
user_code.py    turns what the user's code raises into one line and the user's own frames
base_commit.py  loads the block-sparse kernel of another commit
trials.py       lists the small cases that a kernel must get right
check.py        runs them and finds out what is wrong
diagnose.py     guesses the mistake behind a wrong output
run.py          loads, checks, times, and writes rows and a figure
present.py      makes the summary, the terminal's table and the figure
"""
