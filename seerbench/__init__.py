"""SeerBench: how much attention can be skipped, at what loss, and how much time does it really save?

Data flows one way: preset -> job (presets/) -> step (steps/) -> method (methods/) -> rows (rows/) -> artefact
(artefacts/) -> report (report/). docs/architecture.md lists the modules and follows one number through them.
"""

__version__ = "0.2.0"
