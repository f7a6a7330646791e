import pytest
from tiny_jobs import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Make a folder with a toy corpus, its tokenizer and a toy Llama of two layers. No test writes into it."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder
