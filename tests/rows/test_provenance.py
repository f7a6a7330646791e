"""The commit of an execution comes from git or from the environment, whatever the caller's settings are."""

import os
import subprocess

import pytest

from seerbench.rows.provenance import SELF, commit_and_dirty


def git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", "-C", folder, *author, *arguments], check=True, capture_output=True)


@pytest.fixture
def ours(tmp_path):
    """Return a repository with our code in it, below a repository of somebody else."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "foreign", "--allow-empty")
    folder = tmp_path / "ours"
    (folder / SELF).parent.mkdir(parents=True)
    (folder / SELF).write_text("")
    (folder / "kernel.py").write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "x")
    return folder


def test_the_commit_is_handed_in_or_read_but_never_guessed(monkeypatch, tmp_path, ours):
    monkeypatch.setenv("SEERBENCH_COMMIT", "abc")
    monkeypatch.setenv("SEERBENCH_DIRTY", "0")
    assert commit_and_dirty(tmp_path) == ("abc", False)
    monkeypatch.delenv("SEERBENCH_DIRTY")
    assert commit_and_dirty(tmp_path) == ("abc", None)
    monkeypatch.delenv("SEERBENCH_COMMIT")
    assert commit_and_dirty(tmp_path) == (None, None)  # a repository without our code
    commit, dirty = commit_and_dirty(ours)
    assert len(commit) == 40
    assert dirty is False
    (ours / "new").write_text("x")
    assert commit_and_dirty(ours) == (commit, True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_and_dirty(ours) == (None, None)  # no git


def test_a_folder_inside_another_repository_has_no_commit(monkeypatch, tmp_path, ours):
    monkeypatch.delenv("SEERBENCH_COMMIT", raising=False)
    for state in ("a copy without .git", "an empty .git"):
        copy = tmp_path / state.replace(" ", "-")
        (copy / SELF).parent.mkdir(parents=True)
        (copy / SELF).write_text("")
        if "empty" in state:
            (copy / ".git").mkdir()
        git(tmp_path, "add", copy.name)
        git(tmp_path, "commit", "-qm", state, "--allow-empty")
        assert commit_and_dirty(copy) == (None, None)


def test_a_worktree_and_a_submodule_have_their_own_commit(monkeypatch, tmp_path, ours):
    monkeypatch.delenv("SEERBENCH_COMMIT", raising=False)
    expected = commit_and_dirty(ours)
    git(ours, "worktree", "add", "-q", tmp_path / "tree")
    assert commit_and_dirty(tmp_path / "tree") == expected
    git(tmp_path, "submodule", "add", "-q", str(ours), "sub")
    assert commit_and_dirty(tmp_path / "sub") == expected


HOSTILE = """
[status]
    showUntrackedFiles = no
    branch = true
    short = false
[core]
    excludesFile = EXCLUDES
    fsmonitor = false-monitor
    attributesFile = EXCLUDES
    pager = false
[color]
    ui = always
    status = always
[diff]
    external = false
    ignoreSubmodules = all
[alias]
    st = status
[safe]
    bareRepository = explicit
"""


def test_the_users_settings_change_nothing(monkeypatch, tmp_path, ours):
    monkeypatch.delenv("SEERBENCH_COMMIT", raising=False)
    home = tmp_path / "home"
    (home / "git").mkdir(parents=True)
    (home / "git" / "ignore").write_text("*.py\n")
    (home / ".gitconfig").write_text(HOSTILE.replace("EXCLUDES", str(home / "git" / "ignore")))
    commit = commit_and_dirty(ours)[0]
    (ours / "untracked.py").write_text("x = 2\n")
    settings = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
        "GIT_CONFIG_SYSTEM": str(home / ".gitconfig"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "status.showUntrackedFiles",
        "GIT_CONFIG_VALUE_0": "no",
        "GIT_CONFIG_PARAMETERS": "'status.showuntrackedfiles'='no'",
        "GIT_DIR": str(tmp_path / ".git"),
        "GIT_WORK_TREE": str(tmp_path),
        "GIT_COMMON_DIR": str(tmp_path / ".git"),
        "GIT_INDEX_FILE": str(tmp_path / "no-index"),
        "GIT_OBJECT_DIRECTORY": str(tmp_path / "no-objects"),
        "GIT_NAMESPACE": "other",
        "GIT_CEILING_DIRECTORIES": str(ours),
        "GIT_DISCOVERY_ACROSS_FILESYSTEM": "0",
        "GIT_TRACE": "1",
        "LC_ALL": "de_DE.UTF-8",
        "LANGUAGE": "de",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
        assert commit_and_dirty(ours) == (commit, True), name
    for name in settings:
        monkeypatch.delenv(name)
    if os.geteuid() == 0:  # a tree that another user owns, as in a container
        for path in (ours, ours / ".git"):
            os.chown(path, 12345, 12345)
        assert commit_and_dirty(ours) == (commit, True)
