"""RULER's tasks (arXiv:2404.06654): needles, variable tracking, word counts, questions, at any length in tokens.

tasks.py makes the prompts of a task; the other modules hold one kind of task each, the sizing and the metrics.
Facts are from NVIDIA/RULER at the commit of tasks.DEFINITION; the code is our own. Examples are drawn from streams
of our own, so they are not RULER's own examples of the same seed.
"""
