"""Run git in a repository, without the GIT_* variables that would point it at another one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run `git` with arguments in a folder; return its exit code and output in bytes.

    A git hook sets GIT_DIR and others; inherited, they would make git answer for the hook's repository. Raises
    FileNotFoundError where git is not installed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True)
