"""The errors that a user can mend. The command line prints each as one line, without a traceback.

The text of each says what was wrong, what was expected and what to do. Code tells them apart by their types alone.
"""

from __future__ import annotations


class UserError(Exception):
    """An error that a user can mend: its text is for her, and the exit code of the command is 1."""


class ConfigError(UserError, ValueError):
    """A preset that does not exist or that holds a wrong key or value; the text names the place."""


class UnknownMethod(UserError, ValueError):
    """No method has this name, or a plug-in takes a name that is taken; the text lists the known names."""


class ResultsError(UserError, ValueError):
    """A file of rows that cannot be used, or rows that do not fit their table; the text names file and field."""


class CorpusError(UserError, ValueError):
    """Texts or tokens that cannot be read or used; the text names the file and what it lacks."""


class ModelError(UserError, ValueError):
    """A model that cannot be loaded, or that methods cannot enter; the text says what to do."""


class Refused(UserError, RuntimeError):
    """A method cannot run what it was given; the text is its reason and becomes a row."""


class CompareError(UserError, ValueError):
    """A comparison that cannot be made; the text says what to write instead."""


class NotebookError(UserError, RuntimeError):
    """A notebook that cannot be executed; the text names the cell and the error."""
