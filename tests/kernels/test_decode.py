"""Attention of one new token over a cache's blocks: the reference, the kernel in the interpreter and for sm_90."""

import numpy as np
import pytest
import torch
import triton as triton_package
from gpu.decode_cases import KINDS, build_lists, check_decoding, draw_cache, poison, read_by
from gpu.kernel_cases import INTERPRETED, far_apart, run_in_interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.errors import KernelError, MaskError
from seerbench.kernels.decode import api, triton
from seerbench.kernels.decode.lists import CacheLists


def drawn(lengths, kind, heads=4, kv_heads=2, head_dim=16, dtype=torch.float32, block=16):
    """Return q, k, v and lists; what no list reads is NaN."""
    (q, k, v), first = draw_cache(lengths, heads, kv_heads, head_dim, dtype)
    lists = build_lists(kind, lengths, first, kv_heads, block)
    poison(k, v, lists)
    return q, k, v, lists


if not INTERPRETED:

    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("lengths", [[1], [16, 17], [100, 3, 64]], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_reference_against_the_definition(kind, lengths, dtype):
        q, k, v, lists = drawn(lengths, kind, dtype=dtype)
        check_decoding(q, k, v, lists, api.decode_attention(q, k, v, lists))

    @pytest.mark.parametrize("width", [None, 4])
    def test_lists_of_flags(width):
        flags = torch.tensor([[[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], [[0, 0, 0, 0, 1], [1, 1, 0, 0, 1]]]).bool()
        first, end = torch.tensor([[0, 3], [70, 70]], dtype=torch.int32)
        lists = CacheLists.from_flags(flags, first, end, 16, width)
        assert lists.counts.tolist() == [[3, 0], [1, 3]]
        assert lists.blocks[..., :3].tolist() == [[[0, 2, 3], [0, 0, 0]], [[4, 0, 0], [0, 1, 4]]]
        assert lists.blocks.shape[-1] == (width or 5)
        assert float(lists.density()) == pytest.approx((3 + 0 + 1 + 3) / 4 / 5)
        with pytest.raises(MaskError, match="bool"):
            CacheLists.from_flags(flags.int(), first, end, 16)

    @pytest.mark.parametrize("kind", KINDS)
    def test_tokens_of_lists(kind):
        lengths = [100, 3, 64]
        (_, k, _), first = draw_cache(lengths, 4, 2, 16, torch.float32)
        lists = build_lists(kind, lengths, first, 2, 16)
        read = lists.to_tokens(k.shape[2])
        assert read.shape == k.shape[:3]
        for row in range(3):
            for head in range(2):
                assert read[row, head].nonzero()[:, 0].tolist() == sorted(read_by(lists, row, head).tolist())

    @pytest.mark.parametrize("pairs", [1, 8, 64, 256, 4096])
    @pytest.mark.parametrize("tiles", [1, 7, 8, 1000, 16384])
    def test_the_split_is_a_power_of_two_and_no_share_is_tiny(pairs, tiles):
        splits = triton.split_of(pairs, tiles, 132)
        assert splits in (1, 2, 4, 8, 16, 32, 64)
        assert splits == 1 or tiles // splits >= triton.MIN_TILES
        assert splits == 1 or splits * pairs <= triton.PROGRAMS_PER_MULTIPROCESSOR * 132

    CHANGES = {
        "two queries": lambda q, k, v: (q.expand(-1, -1, 2, -1), k, v),
        "three dimensions": lambda q, k, v: (q[0], k[0], v[0]),
        "another batch of k": lambda q, k, v: (q, k[:1], v[:1]),
        "another head_dim": lambda q, k, v: (q, k[..., :8], v[..., :8]),
        "a shorter v": lambda q, k, v: (q, k, v[:, :, 1:]),
        "heads that do not split": lambda q, k, v: (q[:, :3], k, v),
        "no keys": lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]),
        "other dtype of v": lambda q, k, v: (q, k, v.half()),
        "another device of k": lambda q, k, v: (q, k.to("meta"), v),
        "integers": lambda q, k, v: (q.int(), k.int(), v.int()),
        "8-bit floats": lambda q, k, v: tuple(x.to(torch.float8_e4m3fn) for x in (q, k, v)),
    }

    @pytest.mark.parametrize("change", CHANGES)
    def test_tensors_that_do_not_fit_are_refused(change):
        *tensors, lists = drawn([40, 33], "all")
        with pytest.raises(KernelError) as refusal:
            api.decode_attention(*CHANGES[change](*tensors), lists)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("counts", lambda x: x[:, :1]),
            ("counts", lambda x: x.long()),
            ("blocks", lambda x: x[:1]),
            ("blocks", lambda x: x[..., :0]),
            ("first", lambda x: x[:1]),
            ("end", lambda x: x.to("meta")),
        ],
    )
    def test_lists_of_another_problem_are_refused(name, change):
        q, k, v, lists = drawn([40, 33], "all")
        fields = {each: getattr(lists, each) for each in ("counts", "blocks", "first", "end", "block")}
        with pytest.raises(KernelError, match=f"lists' {name}"):
            api.decode_attention(q, k, v, CacheLists(**fields | {name: change(fields[name])}))

    def test_there_is_no_backward_pass():
        q, k, v, lists = drawn([40], "all")
        out = api.decode_attention(q.requires_grad_(), k, v, lists)
        with pytest.raises(KernelError, match="no backward"):
            out.sum().backward()

    @pytest.mark.parametrize(
        ("change", "word"),
        [((torch.float32, 64, 4, 64), "float32"), ((torch.bfloat16, 80, 4, 64), "80"),
         ((torch.bfloat16, 64, 65, 64), "65"), ((torch.bfloat16, 64, 4, 48), "blocks of")],
    )  # fmt: skip
    def test_the_kernel_refuses_with_the_reason(change, word):
        assert api.refuses(torch.bfloat16, 128, 8, 64) is None
        assert word in api.refuses(*change)

    @pytest.mark.parametrize(("block", "group"), [(64, 8), (128, 1)])
    def test_it_compiles_for_hopper_without_a_gpu(block, group):
        """Compile both kernels to machine code of sm_90, which must hold the matrix unit's instruction."""
        kinds = {
            "scale": "fp32",
            "counts_ptr": "*i32",
            "blocks_ptr": "*i32",
            "first_ptr": "*i32",
            "end_ptr": "*i32",
        }
        kinds |= {name: "*bf16" for name in ("q_ptr", "k_ptr", "v_ptr")}
        kinds |= {name: "*fp32" for name in ("shares_ptr", "lse_ptr")}
        sizes = {"HEAD_DIM": 128, "BLOCK": block, "KEYS": 64, "ROWS": max(16, group)}
        attend = compiled(triton._attend, kinds | {"o_ptr": "*fp32"}, sizes, {"num_stages": 3})
        assert "mma" in attend.asm["ptx"]
        assert attend.metadata.shared <= 227 * 1024
        merge = compiled(triton._merge, kinds | {"o_ptr": "*bf16"}, {"HEAD_DIM": 128, "SPLITS": 64}, {})
        assert merge.asm["cubin"]

    def compiled(kernel, kinds, sizes, options):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        signature = {name: "constexpr" if name in sizes else kinds.get(name, "i32") for name in kernel.arg_names}
        target = GPUTarget("cuda", 90, 32)
        return triton_package.compile(
            ASTSource(kernel, signature, sizes), target=target, options={"num_warps": 4, **options}
        )

else:

    def check(lengths, kind, splits=4, **options):
        """Run both kernels into poisoned memory, and compare with float64."""
        q, k, v, lists = drawn(lengths, kind, **options)
        check_decoding(q, k, v, lists, run(q, k, v, lists, splits))

    def run(q, k, v, lists, splits):
        shares = torch.full((*q.shape[:2], splits, q.shape[3]), torch.nan)
        lse, o = torch.full(shares.shape[:3], torch.nan), torch.full_like(q, torch.nan)
        triton.launch_shares(q, k, v, lists, shares, lse)
        triton.launch_merge(shares, lse, o)
        return o

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("lengths", "dtype"), [([1], torch.float16), ([16], torch.float32), ([100, 17], torch.float16)], ids=str
    )
    def test_every_kind_of_list(kind, lengths, dtype):
        check(lengths, kind, dtype=dtype)

    @pytest.mark.parametrize(("block", "splits"), [(16, 2), (32, 1), (64, 1), (64, 32), (128, 2)])
    def test_blocks_and_splits(block, splits):
        check([300, 131], "random", splits, block=block)

    @pytest.mark.parametrize(("group", "head_dim"), [(1, 128), (3, 64), (20, 32), (64, 16)])
    def test_groups_and_head_dims(group, head_dim):
        check([70], "random", heads=2 * group, head_dim=head_dim, dtype=torch.float16)

    @settings(max_examples=8, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 150), min_size=1, max_size=3),
        heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
        block=st.sampled_from([16, 64]),
        splits=st.sampled_from([1, 4]),
        kind=st.sampled_from(KINDS),
        seed=st.integers(0, 2**20),
    )
    def test_any_lists_give_the_definition(lengths, heads, block, splits, kind, seed):
        torch.manual_seed(seed)
        check(lengths, kind, splits, heads=heads[0], kv_heads=heads[1], block=block, dtype=torch.float16)

    def test_large_scores_do_not_overflow():
        q, k, v, lists = drawn([100], "all", dtype=torch.float16)
        check_decoding(100 * q, k, v, lists, run(100 * q, k, v, lists, 4))

    def test_the_function_splits_by_itself():
        q, k, v, lists = drawn([200, 40], "random")
        assert torch.equal(triton.decode_attention(q, k, v, lists), run(q, k, v, lists, 1))

    def test_views_as_models_pass_them():
        """Run on keys [B, N, H, D] seen as [B, H, N, D], and on a part of a static cache."""
        q, k, v, lists = drawn([70, 60], "random")
        apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
        assert torch.equal(run(q, *apart, lists, 2), run(q, k, v, lists, 2))
        room = [torch.nn.functional.pad(x, (0, 0, 0, 50), value=torch.nan)[:, :, :-50] for x in (k, v)]
        assert torch.equal(run(q, *room, lists, 2), run(q, k, v, lists, 2))

    @pytest.mark.parametrize("dimension", [0, 1], ids=["sequences", "heads"])
    def test_offsets_beyond_32_bits(dimension):
        """Put sequences or heads so far apart that an offset in 32 bits would wrap around."""
        (q, k, v), first = draw_cache([50, 50], 2, 2, 16, torch.float16)
        lists = build_lists("all", [50, 50], first, 2, 64)
        far = far_apart([k, v], dimension, 2**31 + 64)
        assert torch.equal(run(q, *far, lists, 2), run(q, k, v, lists, 2))

    def test_the_last_token_may_be_beyond_32_bits():
        """Put tokens so far apart that the offset of the last block has 32 bits; no other block is touched."""
        (q, k, v), first = draw_cache([1030], 1, 1, 16, torch.float16, room=0)
        lists = build_lists("last alone", [1030], first, 1, 64)
        step = 2**21 - 1
        memory = torch.from_numpy(np.zeros(1030 * step, dtype=np.float16))
        far = [memory.as_strided(x.shape, (0, 0, step, 1), 32 * number) for number, x in enumerate((k, v))]
        for into, x in zip(far, (k, v), strict=True):
            into[:, :, 1024:] = x[:, :, 1024:]
        assert torch.equal(run(q, *far, lists, 2), run(q, k, v, lists, 2))
