"""The steps of the graph: each resolves one job of a preset, calls one module and writes rows, gates or a model.

`seerbench.cli` gives each step a sub-command, and the rules of the graph call those.
"""
