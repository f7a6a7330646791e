"""The errors that a user can mend. The command line prints each as one line, without a traceback.

The text of an error says what was wrong, what was expected and what to do. Code tells errors apart by type and
field alone, never by their text.
"""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """An error that a user can mend. The command line prints its text and exits with code 1."""


class ConfigError(UserError, ValueError):
    """A preset that does not exist, or that has a wrong key or value; the text names the place."""


class UnknownMethod(UserError, ValueError):
    """A method name that is not registered, or that a plug-in may not use; the text lists the known names."""


class MethodError(UserError, TypeError):
    """A method that does not follow the protocol; the text names the class and what it must do."""


class ResultsError(UserError, ValueError):
    """A file of rows that cannot be used, or rows that do not fit their table; the text names file and field."""


class MissingRows(ResultsError):
    """A run without the rows that an artefact or claim needs.

    Attributes:
        table: the table that lacks them, a key of rows.schema.TABLES.
        what: the missing rows in words, e.g. "cells of the sweep 'kernel'".
        step: the sub-command that measures them, e.g. "latency PRESET kernel CONTEXT"; None if there are several.
        folder: the folder of the run; None where several runs or no particular one are meant.
    """

    def __init__(self, table: str, what: str, step: str | None = None, folder: Path | None = None) -> None:
        self.table, self.what, self.step, self.folder = table, what, step, folder
        hint = f"; `seerbench {step}` measures them if PRESET has them" if step else ""
        super().__init__(f"{folder or 'the run'} has no {what}{hint}")


class CorpusError(UserError, ValueError):
    """Texts or tokens that cannot be read or used; the text names the file and what it lacks."""


class ModelError(UserError, ValueError):
    """A model that cannot be loaded, or that a method cannot be put into; the text says what to do."""


class TrainingDiverged(UserError, ArithmeticError):
    """A training whose loss is not a finite number; the text names the training and the step."""


class MissingInput(UserError, FileNotFoundError):
    """A file that an earlier step makes; the text names the file and the step."""


class Refused(UserError, RuntimeError):
    """A method that cannot run its input; the text is the reason, which becomes a row."""


class MaskError(UserError, ValueError):
    """A block mask with malformed lists or flags; the text names the first fault and its place."""


class KernelError(UserError, ValueError):
    """Tensors or a mask that do not fit together, or that a kernel cannot run; the text says what does not fit."""


class MeasureError(UserError, ValueError):
    """Inputs or settings that cannot be timed or evaluated together; the text says which and why."""


class UnknownCommit(UserError, ValueError):
    """A commit whose files git cannot give: it is not in this repository, or there is no repository or no git."""


class CompareError(UserError, ValueError):
    """A comparison that cannot be made; the text says what to write instead."""


class NotebookError(UserError, RuntimeError):
    """A notebook that cannot be executed; the text names the cell and the error."""


class GraphError(UserError, RuntimeError):
    """A graph that cannot run in its folder now; the text says what holds it up."""
