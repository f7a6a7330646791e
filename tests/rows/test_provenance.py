"""The commit of an execution comes from git or from the environment."""

import subprocess

from seerbench.rows.provenance import commit_and_dirty


def test_the_commit_is_handed_in_or_read_but_never_guessed(monkeypatch, tmp_path):
    monkeypatch.setenv("SEERBENCH_COMMIT", "abc")
    monkeypatch.setenv("SEERBENCH_DIRTY", "0")
    assert commit_and_dirty(tmp_path) == ("abc", False)
    monkeypatch.delenv("SEERBENCH_DIRTY")
    assert commit_and_dirty(tmp_path) == ("abc", None)
    monkeypatch.delenv("SEERBENCH_COMMIT")
    assert commit_and_dirty(tmp_path) == (None, None)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert commit_and_dirty(tmp_path) == (None, None)  # no commit yet
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", tmp_path, *author, "commit", "-qm", "x", "--allow-empty"], check=True)
    commit, dirty = commit_and_dirty(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "new").write_text("x")
    assert commit_and_dirty(tmp_path) == (commit, True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as a git hook of another repository sets it
    assert commit_and_dirty(tmp_path) == (commit, True)
