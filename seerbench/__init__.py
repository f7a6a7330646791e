"""SeerBench: how much attention can be skipped, at what loss, and how much time does it really save?

Data flows one way: config -> rule -> step (cli.py) -> method -> rows (results.py) -> artefact -> report.
"""

__version__ = "0.1.0"
