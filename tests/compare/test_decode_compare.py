"""Kernels for decoding: right ones pass their trials, wrong ones are told their mistake, and a run writes rows."""

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from compare.kernels import CASE, EXAMPLES, run
from seerbench import errors
from seerbench.cli import app
from seerbench.compare import load as compare_load
from seerbench.compare.decode_check import check_decode_kernel
from seerbench.compare.decode_trials import decode_trials
from seerbench.compare.present import explain
from seerbench.kernels.decode.api import decode_attention
from seerbench.measure.sweeps.decode_kernel import random_lists
from seerbench.rows.store import Run

PLAIN = dataclasses.replace(CASE, kv_heads=4)
MINE = EXAMPLES / "decode_gather.py"


def findings(kernel, case=CASE):
    return [finding for _, finding in check_decode_kernel(kernel, case) if finding]


@pytest.mark.parametrize(
    "case", [CASE, PLAIN, dataclasses.replace(CASE, dtype="bfloat16", q_heads=6, block_q=32, block_k=32)]
)
@pytest.mark.parametrize(
    "kernel", [decode_attention, compare_load.load(str(MINE)).function], ids=["ours", "example"]
)
def test_a_right_kernel_has_no_findings(kernel, case):
    assert findings(kernel, case) == []


def changed(lists, **changes):
    return dataclasses.replace(lists, **changes)


def head_0(x):
    return x[:, :1].expand_as(x).contiguous()


def sequence_0(x):
    return x[:1].expand_as(x).contiguous()


def everything(lists):
    n = -(-int((lists.end - lists.first).max()) // lists.block)
    counts = torch.full_like(lists.counts, n)
    return changed(lists, counts=counts, blocks=torch.arange(n).int().expand(*counts.shape, n))


def other_kv_heads(q, k, v, lists):
    group = q.shape[1] // k.shape[1]
    order = torch.arange(q.shape[1]).view(group, -1).T.flatten()  # of heads, so that h % Hk groups them
    out = torch.empty_like(q)
    out[:, order] = decode_attention(q[:, order], k, v, lists)
    return out


def nan_without_blocks(q, k, v, lists):
    out = decode_attention(q, k, v, lists)
    empty = (lists.counts == 0).repeat_interleave(q.shape[1] // k.shape[1], 1)
    return out.masked_fill(empty[..., None, None], torch.nan)


def reads_the_room(q, k, v, lists):
    return decode_attention(q, k, v, lists) + 0 * v.sum()


def unwritten(q, k, v, lists):
    out = torch.empty_like(q)
    out[:, 1:] = decode_attention(q, k, v, lists)[:, 1:]
    return out


def with_lists(change):
    return lambda q, k, v, lists: decode_attention(q, k, v, change(lists))


@pytest.mark.parametrize(
    ("kernel", "guess"),
    [
        (with_lists(everything), "ignores the lists"),
        (other_kv_heads, "query head h reads h % Hk"),
        (with_lists(lambda x: changed(x, counts=head_0(x.counts), blocks=head_0(x.blocks))), "takes head 0's list"),
        (
            with_lists(lambda x: changed(x, counts=sequence_0(x.counts), blocks=sequence_0(x.blocks))),
            "takes sequence 0's lists",
        ),
        (lambda q, k, v, x: decode_attention(q * q.shape[-1] ** 0.5, k, v, x), "forgets to scale"),
        (with_lists(lambda x: changed(x, counts=(x.counts - 1).clamp(min=0))), "drops the last block"),
        (with_lists(lambda x: changed(x, first=torch.zeros_like(x.first))), "counts blocks from the cache's first"),
        (nan_without_blocks, "NaN on an empty list"),
        (reads_the_room, "the room behind the last token"),
        (unwritten, "leaves part of the output unwritten"),
        (lambda q, k, v, x: decode_attention(q, k, v, x) * 1.001, "too coarse"),
        (lambda q, k, v, x: decode_attention(q, k, v, x)[:, :, 0], "expected is q's shape"),
        (lambda q, k, v, x: decode_attention(q, k.nan_to_num_(), v, x), "overwrites its inputs"),
    ],
)
def test_a_wrong_kernel_is_told_its_mistake(kernel, guess):
    assert guess in explain(findings(kernel))


def test_a_kernel_that_reads_behind_counts_is_found():
    def kernel(q, k, v, lists):
        seen = torch.zeros(*lists.counts.shape, lists.blocks.shape[-1] + 1, dtype=torch.bool)
        flags = seen.scatter(-1, lists.blocks.long(), True)[..., : lists.blocks.shape[-1]]
        n, width = flags.sum(-1).int(), lists.blocks.shape[-1]
        columns = torch.arange(width).expand_as(flags).where(flags, width).sort(-1).values
        return decode_attention(q, k, v, changed(lists, counts=n, blocks=columns.clamp(max=width - 1).int()))

    assert "entries behind counts" in explain(findings(kernel))


def test_a_finding_says_which_sequence_and_head():
    def kernel(q, k, v, lists):
        out = decode_attention(q, k, v, lists)
        out[1:3, 2] += 1
        return out

    (first, *_) = findings(kernel)
    assert "2 of 128 sequences, first 1; head 2 of 4" in first.where


def test_trials_cover_odd_lengths_groups_padding_and_extreme_lists():
    trials = decode_trials(CASE)
    assert {trial.problem.context % 16 for trial in trials} == {0, 1, 9}
    assert {trial.problem.kv_heads for trial in trials} == {2, 4}
    assert {"nothing", "empty", "last", "first", "shuffled", "padded"} <= {trial.pattern for trial in trials}
    assert "grouped heads" not in [trial.name for trial in decode_trials(PLAIN)]


def test_random_lists_have_the_current_block_and_the_requested_share():
    problem = dataclasses.replace(CASE, batch=3, context=1600)  # 101 blocks
    lists = random_lists(problem, 0.9, 0)
    assert lists.counts.eq(10).all()
    assert lists.blocks[..., -1].eq(100).all()
    assert (lists.blocks.diff(dim=-1) > 0).all()
    assert len({tuple(each) for each in lists.blocks.flatten(0, 1).tolist()}) == 6
    assert float(lists.density()) == pytest.approx(10 / 101)


def test_a_kernel_is_timed_beside_dense_and_ours(tmp_path):
    outcome = run(str(MINE), tmp_path, against=[], sparsities=[0.9], contexts=[400])
    assert outcome.findings == []
    assert list(outcome.frame.method) == ["dense", "split_kv", "decode_gather"]
    assert outcome.frame.status.eq("measured").all()
    assert set(outcome.frame.reference) == {"dense"}
    cells = Run(tmp_path / "rows" / "compare").table("cells").set_index("method")
    assert set(cells.sweep) == {"decode"}
    assert cells.source_digest["decode_gather"] != cells.source_digest["dense"]
    assert cells.sparsity_realised["decode_gather"] == cells.sparsity_realised["split_kv"] == pytest.approx(23 / 26)


def test_a_wrong_one_ends_with_exit_code_3_and_is_not_timed(tmp_path):
    places = ["--device", "cpu", "--block", "16", "--results", str(tmp_path), "--figures", str(tmp_path)]
    wrong = CliRunner().invoke(app, ["compare", str(EXAMPLES / "wrong" / "decode_padding.py"), *places])
    assert wrong.exit_code == 3
    assert "counts blocks from the cache's first place" in wrong.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        ("def a(q, k, v, lists): ...", {}, "needs kind = 'decode' in its file"),
        ("kind = 'both'\ndef a(q, k, v, mask): ...", {}, "kind is prefill or decode, not 'both'"),
        ("kind = 'decode'\ndef a(q, k, v, lists): ...", {"against": ["cudnn"]}, "there are dense, split_kv"),
        ("kind = 'decode'\ndef a(q, k, v, lists): ...", {"base": "HEAD"}, "--base is for kernels for prefill"),
        (
            "kind = 'decode'\ndef a(q, k, v, lists): ...",
            {"against": [str(EXAMPLES / "gather_attention.py")]},
            "has a kernel for prefill, and yours is for decode",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(content, options, text, tmp_path, monkeypatch):
    monkeypatch.setattr("seerbench.compare.run.base_kernel", lambda ref: compare_load.load(str(MINE)))
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(errors.CompareError, match=text) as raised:
        run(str(tmp_path / "mine.py"), tmp_path, **options)
    assert "\n" not in str(raised.value)
