"""Run git in a repository so that its answer depends on that repository alone, not on the caller's settings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Settings that change what git says of a tree. Given on the command line, they outrank every configuration file.
SETTINGS = (
    "safe.directory=*",  # answer in a tree that another user owns, such as one mounted into a container
    f"core.excludesFile={os.devnull}",  # the user's own list of ignored files would hide a new kernel
    f"core.attributesFile={os.devnull}",
    f"core.hooksPath={os.devnull}",
    "core.fsmonitor=false",
    "color.ui=false",
)
NOT_INSTALLED = 127  # the exit code by which a shell says that a command does not exist


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run `git` with arguments in a repository; return its exit code and output in bytes.

    Only a repository whose top folder is `root` answers; for any other the exit code is not 0. The caller's GIT_*
    variables (a hook sets GIT_DIR), configuration, language and home folder play no part. Where git cannot be
    started, the exit code is NOT_INSTALLED.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
        "HOME": os.devnull,
        "XDG_CONFIG_HOME": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(root.resolve().parent),
        "GIT_OPTIONAL_LOCKS": "0",  # `status` must not write into a repository that someone else is using
        "LC_ALL": "C",
    }
    command = ["git", *(part for setting in SETTINGS for part in ("-c", setting)), *arguments]
    try:
        return subprocess.run(command, cwd=root, env=environment, capture_output=True)
    except OSError as error:
        return subprocess.CompletedProcess(
            command, NOT_INSTALLED, b"", f"git is not installed ({error.strerror})".encode()
        )
