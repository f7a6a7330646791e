"""Steps side by side share out the GPUs: each sees one, the least used."""

import os

import pytest

from seerbench import devices


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Two GPUs, nothing claimed yet, and locks of its own."""
    monkeypatch.setattr(devices, "_gpu_uuids", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(devices.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_claimed", [])
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that what a test leaves there is undone
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_step_takes_the_gpu_with_the_fewest_steps(machine):
    others = [devices._least_claimed(devices.usable_gpus()) for _ in range(3)]
    assert [gpu for gpu, _ in others] == ["GPU-a", "GPU-b", "GPU-a"]
    devices.claim_gpu("cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    others[0][1].close()  # that step is over, and its place is the first that is free
    assert devices._least_claimed({"GPU-b": "GPU-b", "GPU-a": "GPU-a"})[0] == "GPU-a"


def test_a_step_takes_one_of_the_gpus_that_the_user_lists(machine):
    machine.setattr(devices, "_gpu_uuids", lambda: ["GPU-a", "GPU-b", "GPU-c"])
    other = devices._least_claimed({"GPU-c": "GPU-c"})  # a step of another run, which names GPUs by UUID
    machine.setenv("CUDA_VISIBLE_DEVICES", "2, 1")
    assert devices.usable_gpus() == {"2": "GPU-c", "1": "GPU-b"}
    devices.claim_gpu("cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    other[1].close()


def test_parts_of_a_gpu_can_be_listed(machine):
    machine.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-a/1/0,MIG-GPU-a/2/0")
    devices.claim_gpu("cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-GPU-a/1/0"


@pytest.mark.parametrize(
    "given", [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": ""}, {"LOCAL_RANK": "1"}]
)
def test_what_a_scheduler_or_torchrun_gives_is_left_alone(machine, given):
    for name, value in given.items():
        machine.setenv(name, value)
    devices.claim_gpu("cuda")
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == given.get("CUDA_VISIBLE_DEVICES")


def test_on_a_cpu_or_with_one_gpu_there_is_nothing_to_choose(machine):
    devices.claim_gpu("cpu")
    machine.setattr(devices, "_gpu_uuids", lambda: ["GPU-a"])
    devices.claim_gpu("cuda")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.6.0", "2.0.2", True), ("3.6.0", "2.1.0", False), ("3.8.1", "2.4.5", False), ("3.9.0", "2.5.5", True)],
)
def test_which_versions_of_triton_and_numpy_the_interpreter_needs(monkeypatch, triton, numpy, works):
    monkeypatch.setattr(devices.metadata, "version", {"triton": triton, "numpy": numpy}.__getitem__)
    refusal = devices.interpreter_refusal()
    assert (refusal is None) == works
    assert works or (triton in refusal and numpy in refusal)
