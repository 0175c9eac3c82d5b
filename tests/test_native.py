"""The C backend: the same numbers from every body of its source, and a way out of every failure."""

import errno
import itertools
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gptoss_lite as gl
from gptoss_lite import LADDER, Transformer, mxfp4, use_backend
from gptoss_lite.attention import attend
from gptoss_lite.cache import KVCache
from gptoss_lite.errors import BackendError, ShapeError
from gptoss_lite.ffn import clamped_swiglu, gelu, swiglu
from gptoss_lite.kernels import build, compiled, native
from gptoss_lite.linear import linear
from gptoss_lite.model import logits
from gptoss_lite.moe import ExpertLinear, apply_experts, route
from gptoss_lite.mxfp4 import PackedExpertLinear, dequantize
from tests.hostile import GPT_OSS_MXFP4, hostile, packed, seeded, tokens, without_type_checks

U32, U16 = 2.0**-24, 2.0**-8  # how far rounding to float32 and to bfloat16 can move 1
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
# What each body of the C files needs; the first is what this machine's CPU gets.
BODIES = {"this CPU": (), "portable": ("-DBODY=PORTABLE",)}
if "avx2" in build._cpu():
    BODIES["AVX2"] = ("-DBODY=AVX2",)
if "avx512bw" in build._cpu():
    BODIES["AVX512"] = ("-DBODY=AVX512",)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Build the C files once for each body."""
    if reason := build.missing():
        pytest.skip(reason)
    compiler = build._compiler()
    built = {}
    for name, flags in BODIES.items():
        target = tmp_path_factory.mktemp("native") / "native.so"
        build._compile(compiler, target, flags)
        built[name] = build._declare(build.ctypes.CDLL(str(target)))
    return built


@pytest.fixture(params=list(BODIES))
def body(request: pytest.FixtureRequest, libraries: dict[str, Any]) -> Iterator[str]:
    """Force the backend, with one body of its source after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build._BUILT, "library", libraries[request.param])
        use_backend("native")
        yield request.param
        use_backend("auto")


@pytest.fixture
def forced() -> Iterator[None]:
    if reason := build.missing():
        pytest.skip(reason)
    use_backend("native")
    yield
    use_backend("auto")


def misaligned(tensor: Tensor, offset: int = 1) -> Tensor:
    """Copy a tensor to an address that is `offset` bytes past a multiple of 64."""
    room = torch.zeros(tensor.nbytes + 192, dtype=torch.uint8)
    start = -room.data_ptr() % 64 + offset
    memory = memoryview(room.numpy())  # keeps the room alive
    there = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start)
    assert there.data_ptr() % 64 == offset
    return there.view(tensor.shape).copy_(tensor)


def test_the_bodies_are_different_programs(libraries: dict[str, Any]) -> None:
    numbers = {name: library.body() for name, library in libraries.items()}
    assert numbers["portable"] == 0
    assert numbers.get("AVX2", 2) == 2
    assert numbers.get("AVX512", 3) == 3
    assert numbers["this CPU"] > 0


# --- linear --------------------------------------------------------------------------------------


def assert_dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Compare with float64: any order of n float32 sums errs by n roundings of sum |w x|."""
    got = linear(x, weight, bias)
    assert got.dtype == x.dtype
    exact = linear.plain(*(None if t is None else t.double() for t in (x, weight, bias)))
    assert got.shape == exact.shape
    size = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        size += bias.double().abs()
    bound = (weight.shape[1] + 2) * U32 * size
    if x.dtype == torch.bfloat16:
        bound = bound + U16 * exact.abs()  # rounded once
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_dense_products_of_any_size(body: str, dtype: torch.dtype, has_bias: bool) -> None:
    generator = seeded()
    widths = (1, 7, 31, 32, 33, 63, 64, 65, 127, 130, 259)
    sizes = ((1, 1), (3, 37), (7, 16), (2, 17))
    for width, (n_tokens, n_rows) in itertools.product(widths, sizes):
        x = torch.randn(n_tokens, width, generator=generator).to(dtype)
        weight = torch.randn(n_rows, width, generator=generator).to(dtype)
        bias = 3 * torch.randn(n_rows, generator=generator).to(dtype) if has_bias else None
        assert_dense(x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_dense_products_from_strided_and_misaligned_memory(
    body: str, dtype: torch.dtype, offset: int
) -> None:
    generator = seeded(offset)
    whole = misaligned(torch.randn(11, 3, 75, generator=generator).to(dtype), offset)
    x = torch.randn(2, 3, 70, generator=generator).to(dtype)
    assert_dense(x, whole[:, 1, 3:73], whole[:, 2, 5].contiguous())
    assert_dense(x.transpose(0, 1), whole[4:, 2, :70], None)
    assert_dense(x[0, 0], whole[:, 0, 5:], None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_products_keep_infinities_and_nan(body: str, dtype: torch.dtype) -> None:
    weight = torch.ones(3, 40, dtype=dtype)
    x = torch.ones(3, 40, dtype=dtype)
    x[1, 7], x[2, 39] = torch.inf, torch.nan
    got = linear(x, weight)
    assert (got[0] == 40).all()
    assert (got[1] == torch.inf).all()
    assert got[2].isnan().all()


def test_only_the_product_of_bfloat16_pairs_takes_tiny_numbers_for_zero(body: str) -> None:
    """What tells from outside that a CPU's own bfloat16 product is used where there is one."""
    weight = torch.full((3, 40), 2.0**-130)
    x = torch.full((2, 40), 2.0**100)
    pairs = build.library().body() == native.BF16_BODY
    assert (linear(x, weight) == 40 * 2.0**-30).all()
    expected = 0.0 if pairs else 40 * 2.0**-30
    assert (linear(x.bfloat16(), weight.bfloat16()) == expected).all()


# --- packed experts ------------------------------------------------------------------------------


def random_layer(
    n_experts: int, rows: int, width: int, dtype: torch.dtype, seed: int, layout: str = "whole"
) -> PackedExpertLinear:
    """Draw packed matrices, as they lie in memory when loaded; "halves" are in turn in the file."""
    generator = seeded(seed)
    shape = (n_experts, rows, width // 32)
    blocks = torch.randint(256, (*shape, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(120, 125, shape, generator=generator).to(torch.uint8)
    bias = torch.randn(n_experts, rows, generator=generator).to(dtype)
    if layout != "whole":
        blocks, scales = misaligned(blocks, 3), misaligned(scales, 5)
    if layout == "halves":
        blocks, scales = (t.unflatten(1, (-1, 2)).transpose(1, 2) for t in (blocks, scales))
    return PackedExpertLinear(blocks, scales, None if layout == "no bias" else bias)


def exact_experts(
    x: Tensor, weights: Tensor, ids: Tensor, up: Any, down: Any, act: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute in float64 throughout."""
    return experts_and_size(x, weights, ids, up, down, act)[0]


def experts_and_size(
    x: Tensor, weights: Tensor, ids: Tensor, up: Any, down: Any, act: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the exact answer, and the sum of the sizes of what is added up in the last product."""
    wide = []
    for layer in (up, down):
        dense = dequantize.plain(layer.blocks, layer.scales, torch.float64)
        copy = ExpertLinear(1, 1, 1, bias=layer.bias is not None)
        copy.weight = nn.Parameter(dense.flatten(1, -2))
        if layer.bias is not None:
            copy.bias = nn.Parameter(layer.bias.double())
        wide.append(copy)
    total, size = torch.zeros(2, *x.shape, dtype=torch.float64)
    up_bias, down_bias = ([0.0] * len(w.weight) if w.bias is None else w.bias for w in wide)
    for n in range(len(x)):
        for a, e in enumerate(ids[n].tolist()):
            hidden = act(x[n].double() @ wide[0].weight[e].T + up_bias[e])
            answer = hidden @ wide[1].weight[e].T + down_bias[e]
            total[n] += weights[n, a].double() * answer
            size[n] += weights[n, a].double() * (hidden.abs() @ wide[1].weight[e].abs().T)
    return total, size


def routing(n_tokens: int, n_experts: int, n_active: int, seed: int) -> tuple[Tensor, Tensor]:
    return route(torch.randn(n_tokens, n_experts, generator=seeded(seed)), n_active)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n_tokens", "layout"),
    [(1, "halves"), (2, "no bias"), (3, "whole"), (5, "halves"), (7, "whole"), (40, "halves")],
)
def test_packed_experts_are_exact_but_for_the_last_rounding(
    body: str,
    dtype: torch.dtype,
    n_tokens: int,
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However few tokens an expert has: float32 all the way, then a rounding to x's dtype.

    A body that multiplies bfloat16 rounds once more, between the matrices.
    """
    n_experts, n_active, width, hidden = 9, 3, 96, 160
    act = {"whole": clamped_swiglu, "halves": swiglu, "no bias": gelu}[layout]
    gates = 1 if act is gelu else 2
    up = random_layer(n_experts, gates * hidden, width, dtype, 1, layout)
    down = random_layer(n_experts, width, hidden, dtype, 2, layout if layout != "halves" else "")
    x = torch.randn(n_tokens, width, generator=seeded(n_tokens)).to(dtype)
    weights, ids = routing(n_tokens, n_experts, n_active, n_tokens)
    monkeypatch.setattr(native, "FEW_ROWS", 40)
    with torch.no_grad():
        got = apply_experts(x, weights, ids, up, down, act)
        exact, size = experts_and_size(x, weights, ids, up, down, act)
    assert got.dtype == dtype
    # Rounding errors behave like those of one sum of `width + hidden` terms of the result's size.
    bound = (width + hidden) * U32 * exact.abs().max()
    if dtype == torch.bfloat16:
        bound = bound + U16 * exact.abs()
        if build.library().body() == native.BF16_BODY:  # what enters the second matrix is rounded
            bound = bound + U16 * size
    assert ((got.double() - exact).abs() <= bound).all()


def test_few_tokens_of_a_bfloat16_model_come_closer_than_the_plain_version(body: str) -> None:
    up = random_layer(5, 320, 96, torch.bfloat16, 1)
    down = random_layer(5, 96, 160, torch.bfloat16, 2)
    x = torch.randn(3, 96, generator=seeded(1)).bfloat16()
    call = x, *routing(3, 5, 2, 1), up, down, clamped_swiglu
    with torch.no_grad():
        exact = exact_experts(*call)
        ours, plain = (f(*call).double() - exact for f in (apply_experts, apply_experts.plain))
    assert ours.norm() < 0.7 * plain.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_tokens", [23, 40])
def test_many_tokens_get_the_numbers_of_the_plain_version(
    body: str, dtype: torch.dtype, n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts with more tokens are unpacked and multiplied as ever: bit for bit."""
    monkeypatch.setattr(native, "FEW_ROWS_BF16", native.FEW_ROWS)
    up = random_layer(4, 320, 96, dtype, 1, "halves")
    down = random_layer(4, 96, 160, dtype, 2)
    x = torch.randn(n_tokens, 96, generator=seeded(1)).to(dtype)
    weights, ids = routing(n_tokens, 4, 2, 3)
    assert ids.flatten().bincount(minlength=4).min() > native.FEW_ROWS
    call = x, weights, ids, up, down, clamped_swiglu
    with torch.no_grad():
        assert torch.equal(apply_experts(*call), apply_experts.plain(*call))


@pytest.mark.parametrize("layout", ["halves", "whole"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_rows_are_unpacked_some_at_a_time(
    body: str, layout: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same float32 products, whose order of sums the library may choose by their number."""
    up = random_layer(4, 322, 96, torch.float32, 1, layout)
    down = random_layer(4, 96, 160, torch.float32, 2)
    down.blocks, down.scales = down.blocks[..., :5, :], down.scales[..., :5]
    x = torch.randn(23, 96, generator=seeded(1))
    gate = lambda both: swiglu(both)[:, :160]  # noqa: E731  # 161 rows a half, one too many
    call = x, *routing(23, 4, 2, 3), up, down, gate
    monkeypatch.setattr(native, "TILE_BYTES", rows * 96 * 4)
    with torch.no_grad():
        torch.testing.assert_close(
            apply_experts(*call), apply_experts.plain(*call), rtol=1e-5, atol=1e-5
        )


def test_popular_and_rare_experts_meet_in_one_call(body: str) -> None:
    up, down = (random_layer(6, r, w, torch.float32, r) for r, w in ((128, 32), (32, 64)))
    x = torch.randn(9, 32, generator=seeded(1))
    ids = torch.tensor([[5, 0]] * 7 + [[0, 3], [1, 5]])  # 5 and 0: 8 tokens; 3 and 1: one each
    weights = torch.rand(9, 2, generator=seeded(2))
    call = x, weights, ids, up, down, clamped_swiglu
    with torch.no_grad():
        got, exact = apply_experts(*call), exact_experts(*call)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max())


def matvec(
    x: Tensor, x_rows: list[int], layer: PackedExpertLinear, experts: list[int], starts: list[int]
) -> Tensor:
    """Multiply without an activation, in the way that this body has for this dtype."""
    quads = x.dtype == torch.bfloat16 and build.library().body() == native.BF16_BODY
    groups = native._array(experts), native._array(starts)
    return native._matvec(x, x_rows, layer, groups, quads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_from_zero_to_254_multiply_and_255_is_nan(body: str, dtype: torch.dtype) -> None:
    """One weight of 0.5 in each row, and x = 2: the product is the scale itself."""
    blocks = torch.zeros(1, 256, 1, 16, dtype=torch.uint8)
    blocks[..., 4] = 0x10  # weight 9
    scales = torch.arange(256).to(torch.uint8).view(1, 256, 1)
    layer = PackedExpertLinear(blocks, scales, None)
    x = torch.zeros(1, 32, dtype=dtype)
    x[0, 9] = 2.0
    out = matvec(x, [0], layer, [0], [0, 1])
    assert torch.equal(out[0, :255].double(), 2.0 ** (torch.arange(255).double() - 127))
    assert out[0, 255].isnan()
    layer.blocks.fill_(0x22)  # no weight is zero, so an infinite scale would give infinity
    out = matvec(x + 1, [0], layer, [0], [0, 1])
    assert out[0, 255].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_code_meets_its_own_number_of_x(body: str, dtype: torch.dtype) -> None:
    """Row r has one weight that is not zero, number r of 64, and every code takes its turn."""
    for code in range(16):
        blocks = torch.zeros(1, 64, 2, 16, dtype=torch.uint8)
        for r in range(64):
            blocks[0, r, r // 32, r % 32 // 2] = code << (4 * (r % 2))
        layer = PackedExpertLinear(blocks, torch.full((1, 64, 2), 127, dtype=torch.uint8), None)
        x = torch.arange(1.0, 65.0, dtype=dtype)[None]
        out = matvec(x, [0], layer, [0], [0, 1])
        assert torch.equal(out, mxfp4.VALUES[code] * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_blocks", [1, 2, 4, 5, 15, 16, 19, 37, 90])
def test_rows_of_any_number_of_blocks(body: str, dtype: torch.dtype, n_blocks: int) -> None:
    """Products are exact, and any order of n float32 sums errs by n roundings of sum |w x|."""
    layer = random_layer(3, 37, 32 * n_blocks, dtype, n_blocks, "no bias")
    layer.scales.random_(100, 150, generator=seeded(1))
    x = torch.randn(4, 32 * n_blocks, generator=seeded(n_blocks)).to(dtype)
    got = matvec(x, [3, 0, 2], layer, [2, 0], [0, 1, 3]).double()
    weight = dequantize.plain(layer.blocks, layer.scales, torch.float64)
    for p, (row, expert) in enumerate([(3, 2), (0, 0), (2, 0)]):
        exact = weight[expert] @ x[row].double()
        size = weight[expert].abs() @ x[row].double().abs()
        assert ((got[p] - exact).abs() <= 32 * n_blocks * U32 * size).all()


@pytest.mark.parametrize("pool", ["torch's threads", "threads of its own"])
def test_any_number_of_threads_gives_the_same_bits(
    body: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BYTES_PER_THREAD", 1)
    if pool == "threads of its own":
        monkeypatch.setattr(build, "_parallel", lambda: None)
    elif build._parallel() is None:
        pytest.skip("torch's OpenMP has no GOMP_parallel")
    up = random_layer(5, 320, 96, torch.bfloat16, 1, "halves")
    down = random_layer(5, 96, 160, torch.bfloat16, 2)
    x = torch.randn(9, 96, generator=seeded(1)).bfloat16()
    call = x, *routing(9, 5, 2, 1), up, down, clamped_swiglu
    weight = torch.randn(133, 96, generator=seeded(2)).bfloat16()
    results = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            for _ in range(3):
                with torch.no_grad():
                    decoded = dequantize(up.blocks, up.scales)
                    results.append((apply_experts(*call), linear(x, weight), decoded))
    finally:
        torch.set_num_threads(1)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


def test_python_threads_can_call_it_at_once(forced: None) -> None:
    weight = torch.randn(301, 96, generator=seeded(2))
    xs = [torch.randn(1, 96, generator=seeded(i)) for i in range(8)]
    got: dict[int, Tensor] = {}

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                got[i] = linear(xs[i], weight)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], linear(xs[i], weight)) for i in range(8))


# --- dequantize (test_mxfp4.py runs its own cases with every backend, too) -----------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["whole", "halves", "misaligned"])
def test_every_pair_of_bytes_decodes_to_the_bits_of_the_plain_version(
    body: str, dtype: torch.dtype, layout: str
) -> None:
    """All 65,536 pairs of a code byte and a scale byte; 255 stands for NaN, in any of its bits."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(256, 1, 1)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 16)
    if layout != "whole":
        blocks, scales = misaligned(blocks, 7), misaligned(scales, 9)
    if layout == "halves":
        blocks, scales = (t.unflatten(0, (-1, 2)).transpose(0, 1) for t in (blocks, scales))
    got, plain = dequantize(blocks, scales, dtype), dequantize.plain(blocks, scales, dtype)
    nan = plain.isnan()
    assert int(nan.sum()) == 512
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got[~nan].view(BITS[dtype]), plain[~nan].view(BITS[dtype]))


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 2, 3, 5)])
def test_axes_in_any_order_are_decoded(body: str, shape: tuple[int, ...]) -> None:
    blocks = torch.randint(256, (*shape, 3, 16), generator=seeded()).to(torch.uint8)
    scales = torch.randint(110, 140, (*shape, 3), generator=seeded()).to(torch.uint8)
    turned = blocks.transpose(0, 1), scales.transpose(0, 1)
    assert torch.equal(dequantize(*turned), dequantize.plain(*turned))
    groups = blocks.transpose(-3, -2), scales.transpose(-2, -1)  # blocks of a row lie apart
    assert torch.equal(dequantize(*groups), dequantize.plain(*groups))


# --- attend --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 5, 23])
@pytest.mark.parametrize("heads", [(6, 2), (5, 5), (9, 1), (16, 1), (17, 1)])
def test_attention_is_exact_but_for_the_last_rounding(
    body: str, dtype: torch.dtype, window: int | None, heads: tuple[int, int]
) -> None:
    """From strided memory, with and without sinks, at widths that fill no vector."""
    generator = seeded(heads[0])
    for width, (n_queries, n_keys) in itertools.product((3, 20, 64, 67), ((1, 23), (3, 7), (4, 4))):
        q = 2 * torch.randn(2, n_queries, heads[0], width, generator=generator).transpose(1, 2)
        shape = 2, 2, heads[1], n_keys + 3, width
        k, v = torch.randn(shape, generator=generator)[..., 2:-1, :]
        sinks = 2 * torch.randn(heads[0], generator=generator) if width % 2 else None
        q, k, v = (t.to(dtype) for t in (q, k, v))
        with torch.no_grad():
            got = attend(q, k, v, sinks, window)
        exact = attend.plain(q.double(), k.double(), v.double(), sinks, window)
        assert got.dtype == dtype
        # exponents err by the roundings of a dot product, and the mix by those of n_keys terms
        size = (q.double().abs().sum(-1).amax() * k.double().abs().amax() + n_keys).item()
        bound = 8 * size * U32 * v.double().abs().amax()
        if dtype == torch.bfloat16:
            bound = bound + U16 * exact.abs()
        assert ((got.double() - exact).abs() <= bound).all()


def test_attention_keeps_infinities_and_nan(body: str) -> None:
    q, k, v = torch.ones(3, 1, 2, 1, 16)
    k = k[:, :1].repeat(1, 1, 4, 1)
    v = v[:, :1].repeat(1, 1, 4, 1)
    with torch.no_grad():
        assert (attend(q, k, v, torch.full((2,), 1e30), None) == 0).all()
        assert (attend(q, k, v, torch.full((2,), -torch.inf), None) == 1).all()
        k[0, 0, 1, 3] = torch.nan
        assert attend(q, k, v, None, None).isnan().all()
        assert not attend(q, k, v, None, 2).isnan().any()


# --- whole models --------------------------------------------------------------------------------


@pytest.fixture
def always(forced: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the dispatcher prefer it at any size, block by block; return what it computed."""
    use_backend("auto")
    monkeypatch.delitem(logits.fast, "step")
    monkeypatch.setattr(native, "BIG_WEIGHTS", 0)
    ran: list[str] = []
    for op in (linear, apply_experts, dequantize):
        backend = op.fast["native"]

        def spy(*args: Any, right: Any = backend.function, name: str = op.__name__) -> Any:
            ran.append(name)
            return right(*args)

        monkeypatch.setitem(op.fast, "native", type(backend)(**(vars(backend) | {"function": spy})))
    return ran


@pytest.mark.parametrize("rung", [r.name for r in LADDER[:-1]])
def test_every_rung_computes_the_same_logits(rung: str, always: list[str]) -> None:
    config = next(r for r in LADDER if r.name == rung).config.but(dropout=0.0)
    dense = config.but(expert_dtype="float32", dtype="float32")
    model = hostile(dense)
    if config.expert_dtype == "mxfp4":
        model = packed(model)
    ids = tokens(config, 1, 30)
    results = []
    for backend in ("plain", "auto"):
        use_backend(backend)
        cache = KVCache(config)
        with torch.no_grad():
            steps = [model(ids[:, :25], cache)]
            steps += [model(ids[:, i : i + 1], cache) for i in range(25, 30)]
        results.append(torch.cat(steps, 1))
    # float32 sums in another order, through four layers: as far apart as two such orders can be
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    expected = {"linear"} | ({"apply_experts"} if config.expert_dtype == "mxfp4" else set())
    assert set(always) == expected


def test_a_bfloat16_model_comes_as_close_to_float32_as_the_plain_version(
    always: list[str],
) -> None:
    wide = packed(hostile(GPT_OSS_MXFP4))
    ids = tokens(GPT_OSS_MXFP4, 1, 20)
    with torch.no_grad():
        use_backend("plain")
        for parameter in wide.parameters():
            parameter.data = parameter.data.bfloat16().float()
        exact = wide(ids)
        model = wide.bfloat16()

        def step_by_step() -> Tensor:
            cache = KVCache(GPT_OSS_MXFP4)
            return torch.cat([model(ids[:, i : i + 1], cache) for i in range(20)], 1).float()

        plain = (step_by_step() - exact).norm()
        use_backend("auto")
        ours = (step_by_step() - exact).norm()
    assert {"linear", "apply_experts"} <= set(always)
    assert ours < 1.1 * plain


def nano() -> Transformer:
    return gl.load("gpt-oss-nano", device="cpu", progress=False)


def test_nano_takes_the_plain_path_bit_for_bit() -> None:
    """The book's printed numbers must not depend on a compiler."""
    model, ids = nano(), torch.arange(40)[None]
    with torch.no_grad():
        auto = model(ids, cache := KVCache(model.config)), model(ids[:, :1], cache)
        use_backend("plain")
        try:
            plain = model(ids, cache := KVCache(model.config)), model(ids[:, :1], cache)
        finally:
            use_backend("auto")
    assert all(torch.equal(a, b) for a, b in zip(auto, plain, strict=True))


def test_mapped_weights_are_read_where_they_lie(
    forced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What C is given are the addresses inside the mapped file, strides and all."""
    model = nano()
    maps = (
        [
            [int(end, 16) for end in line.split()[0].split("-")]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.rstrip().endswith(".safetensors")
        ]
        if Path("/proc/self/maps").is_file()
        else []
    )
    if not maps:
        pytest.skip("reads Linux's /proc for its memory")
    given: list[int] = []
    right = native.packed_matrix

    def spy(blocks: Tensor, *rest: Any, **settings: Any) -> Any:
        result = right(blocks, *rest, **settings)
        given.extend([result.bytes, result.scales])
        return result

    monkeypatch.setattr(native, "packed_matrix", spy)
    up = model.blocks[0].ffn.up
    assert isinstance(up, PackedExpertLinear)
    assert not up.blocks.is_contiguous()
    with torch.no_grad():
        model(torch.arange(5)[None])
    assert given
    assert all(any(begin <= at < end for begin, end in maps) for at in given)


# --- refusals ------------------------------------------------------------------------------------


X, W = torch.ones(1, 8), torch.ones(4, 8)
REFUSED_LINEAR = {
    "float64": (
        (X.double(), W.double()),
        "torch.float64 weights are not read by it, only float32 and bfloat16",
    ),
    "mixed": ((X, W.bfloat16()), "x, weight and bias have different dtypes"),
    "mixed bias": ((X, W, torch.ones(4).double()), "x, weight and bias have different dtypes"),
    "shapes": ((torch.ones(1, 9), W), "x [1, 9] does not fit a weight [4, 8]"),
    "bias shape": ((X, W, torch.ones(3)), "a bias [3] does not fit 4 output rows"),
    "columns": (
        (torch.ones(1, 4), W.T),
        "the numbers of a weight row are not side by side",
    ),
    "elsewhere": ((X.to("meta"), W), "a tensor is on meta, and this is for the CPU"),
    "gradients": (
        (X, nn.Parameter(W)),
        "gradients are needed: call it within torch.no_grad()",
    ),
}


@pytest.mark.parametrize("case", REFUSED_LINEAR)
def test_products_it_cannot_compute_are_refused(forced: None, case: str) -> None:
    arguments, sentence = REFUSED_LINEAR[case]
    with without_type_checks(), pytest.raises(BackendError) as problem:
        linear(*arguments)
    assert str(problem.value) == (
        f"Backend 'native' cannot run linear: {sentence}. "
        "Call use_backend('auto') to fall back to the plain version."
    )


def test_autocast_and_compiled_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert native.linear_why_not(X, W) == "autocast is on, and chooses dtypes by itself"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert native.linear_why_not(X, W) == "a compiled graph cannot look at memory"


def test_a_subclass_of_tensor_is_refused() -> None:
    """Such as the fake tensors of a tracer, which have no memory."""

    class Odd(Tensor):
        pass

    assert native.unreadable(W, torch.ones(4).as_subclass(Odd)) == "Odd is not plain memory"


def test_no_gradients_are_lost(forced: None) -> None:
    """Under "auto" a trained matrix goes the plain way, and within no_grad the fast one."""
    use_backend("auto")
    weight = nn.Parameter(torch.ones(1024, 1024))
    x = torch.ones(1, 1024)
    assert linear(x, weight).requires_grad
    with torch.no_grad():
        assert native.linear_why_not(x, weight) is None


def attention_refusal(**changes: Any) -> str | None:
    call = dict.fromkeys(("q", "k", "v"), torch.ones(1, 2, 1, 8)) | {"sinks": None, "window": None}
    with without_type_checks(), torch.no_grad():
        return native.attend_why_not(**(call | changes))


def test_attention_it_cannot_compute_is_refused() -> None:
    one = torch.ones(1, 2, 1, 8)
    assert attention_refusal() is None
    assert attention_refusal(dropout=0.1) == "dropout draws at random, and it does not"
    assert attention_refusal(k=one.bfloat16()) == "q, k and v must all be float32, or all bfloat16"
    assert attention_refusal(**dict.fromkeys("qkv", one.half())) == (
        "q, k and v must all be float32, or all bfloat16"
    )
    assert attention_refusal(v=torch.ones(1, 2, 3, 8)) == (
        "q [1, 2, 1, 8], k [1, 2, 1, 8], v [1, 2, 3, 8] and sinks do not fit"
    )
    assert "do not fit" in str(attention_refusal(sinks=torch.ones(3)))
    assert attention_refusal(sinks=torch.ones(2).half()) == (
        "sinks are torch.float16; it reads float32 and bfloat16"
    )
    assert attention_refusal(v=one.repeat(1, 1, 1, 2)[..., ::2]) == (
        "the numbers of a head are not side by side"
    )
    with gl.trace(nano(), "probs"):
        assert attention_refusal() == (
            "a trace asks for attention weights, which it never writes down"
        )


def test_narrow_or_many_queries_are_left_to_others() -> None:
    wide = torch.ones(1, 8, 5, 64)
    assert native.attend_too_small(wide[:, :, :4], wide, wide, None, None) is None
    assert native.attend_too_small(wide, wide, wide, None, None) == (
        "5 queries at once are better multiplied as matrices"
    )
    assert native.attend_too_small(X[None, None], X[None, None], X[None, None], None, None) == (
        "a key has 8 numbers, and below 512 there is no gain"
    )
    assert native.attend_too_small(X[None, None], wide.to("meta"), wide, None, None) == (
        "the keys are on meta, and this is for the CPU"
    )


EXPERTS = random_layer(2, 64, 32, torch.float32, 1), random_layer(2, 32, 32, torch.float32, 2)
ROUTE = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)


def experts_refusal(**changes: Any) -> str | None:
    call = {
        "x": torch.ones(1, 32),
        "weights": ROUTE[0],
        "ids": ROUTE[1],
        "up": EXPERTS[0],
        "down": EXPERTS[1],
        "act": clamped_swiglu,
    } | changes
    with without_type_checks():
        return native.experts_why_not(**call)


def test_experts_it_cannot_apply_are_refused() -> None:
    up = random_layer(2, 64, 64, torch.float32, 1)
    turned = PackedExpertLinear(up.blocks.transpose(-1, -2).contiguous().mT, up.scales, None)
    six_axes = PackedExpertLinear(up.blocks[None, None], up.scales[None, None], None)
    assert experts_refusal() is None
    assert experts_refusal(x=torch.ones(1, 32).half()) == (
        "x is torch.float16; it computes with float32 and bfloat16"
    )
    assert experts_refusal(x=torch.ones(1, 32).bfloat16()) == (
        "an expert bias has another dtype than x, or is not contiguous"
    )
    assert experts_refusal(up=ExpertLinear(2, 32, 64, bias=True)) == (
        "the experts are not packed as MXFP4"
    )
    assert experts_refusal(up=turned) == "the bytes of a packed row are not side by side"
    assert experts_refusal(up=six_axes) == "packed blocks have 6 axes, not 4 or 5"
    assert experts_refusal(weights=ROUTE[0].to("meta")) == (
        "a tensor is on meta, and this is for the CPU"
    )
    assert experts_refusal(x=torch.ones(1, 32, requires_grad=True)) == (
        "gradients are needed: call it within torch.no_grad()"
    )


def test_decoding_to_other_dtypes_is_refused() -> None:
    blocks, scales = EXPERTS[0].blocks, EXPERTS[0].scales
    assert native.dequantize_why_not(blocks, scales, torch.float16) == (
        "it decodes to float32 and bfloat16, not to torch.float16"
    )
    assert native.dequantize_why_not(blocks, scales) is None


@pytest.mark.parametrize("wrong", [-1, 2])
def test_experts_that_do_not_exist_are_not_read(forced: None, wrong: int) -> None:
    with torch.no_grad(), pytest.raises(ShapeError) as problem:
        apply_experts(
            torch.ones(1, 32), ROUTE[0], torch.tensor([[wrong]]), *EXPERTS, clamped_swiglu
        )
    assert str(problem.value) == (
        f"Experts {wrong} to {wrong} were chosen, but there are 2 up and 2 down matrices. "
        "Expert ids count from 0."
    )


def test_rows_that_do_not_fit_are_not_read(forced: None) -> None:
    message = (
        "Rows of {} numbers meet packed matrices that take 32. "
        "Check d_model, d_ff and whether the activation needs a gate."
    )
    for x, act, got in ((torch.ones(1, 64), swiglu, 64), (torch.ones(1, 32), gelu, 64)):
        with torch.no_grad(), pytest.raises(ShapeError) as problem:
            apply_experts(x, *ROUTE, *EXPERTS, act)
        assert str(problem.value) == message.format(got)


def test_small_or_many_rows_are_left_to_others() -> None:
    assert native.linear_too_small(X, W) == (
        "the matrix has 32 weights, and below 1,048,576 there is no gain"
    )
    big = torch.empty(1024, 1024)
    assert native.linear_too_small(torch.ones(4, 1024), big) is None
    assert native.linear_too_small(torch.ones(5, 1024), big) == (
        "x has 5 rows, and above 4 a matrix product is faster"
    )
    assert native.linear_too_small(torch.ones(1, 1024), big.to("meta")) == (
        "the matrix is on meta, and this is for the CPU"
    )
    long_rows = torch.empty(32, 2880)  # a router's: plain bfloat16 takes ten times as long
    assert native.linear_too_small(torch.ones(1, 2880), long_rows) is None
    assert native.dequantize_too_small(EXPERTS[0].blocks, EXPERTS[0].scales) == (
        "the matrix has 4,096 weights, and below 1,048,576 there is no gain"
    )


# --- building ------------------------------------------------------------------------------------


class Machine:
    """A machine of its own: an empty cache, and the compilers that a test puts on its PATH."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.cache = folder / "cache"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.patch = patch
        self.calls = 0
        patch.setenv("XDG_CACHE_HOME", str(self.cache))
        patch.setattr(build, "_BUILT", build._Built())
        # What this machine's compilers do must be forgotten by the tests that come after.
        patch.setattr(compiled, "_failed", [])
        patch.setattr(compiled, "_lacks", compiled._lacks.__wrapped__)
        right = build._compile

        def counted(*args: Any) -> None:
            self.calls += 1
            right(*args)

        patch.setattr(build, "_compile", counted)

    def compiler(self, script: str) -> Path:
        """Put a compiler of this machine's own on PATH, and nothing else."""
        path = self.bin / "cc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.patch.setenv("PATH", str(self.bin))
        return path

    def again(self) -> str | None:
        """Ask as a new process would."""
        self.patch.setattr(build, "_BUILT", build._Built())
        return build.missing()

    def files(self) -> list[Path]:
        return sorted(path for path in self.cache.rglob("*") if path.is_file())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    if build._compiler_or_none() is None:
        pytest.skip("there is no C compiler")
    return Machine(tmp_path, monkeypatch)


def works() -> bool:
    x, weight = torch.randn(2, 40, generator=seeded()), torch.ones(3, 40)
    with torch.no_grad():
        return torch.allclose(native.linear_native(x, weight), x @ weight.T, atol=1e-5)


def state() -> str:
    return {row[:2]: row[2] for row in gl.backends()}["linear", "native"]


def test_a_library_is_built_once_and_kept(machine: Machine) -> None:
    assert build.missing() is None
    assert (machine.calls, len(machine.files())) == (1, 1)
    assert machine.again() is None
    assert machine.calls == 1
    assert works()
    assert state() == "tried first"


def test_a_change_of_source_or_flags_builds_anew(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.missing() is None
    changed = tmp_path / "csrc"
    shutil.copytree(build.FOLDER, changed)
    (changed / "dots.h").write_text((changed / "dots.h").read_text() + "\n")
    monkeypatch.setattr(build, "FOLDER", changed)
    assert machine.again() is None
    monkeypatch.setattr(build, "_cpu", lambda: "another CPU")
    assert machine.again() is None
    assert (machine.calls, len(machine.files())) == (3, 3)


def test_many_threads_build_it_once(machine: Machine) -> None:
    answers: list[str | None] = []
    threads = [threading.Thread(target=lambda: answers.append(build.missing())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [None] * 6
    assert machine.calls == 1


def test_it_can_be_turned_off(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_LITE_NATIVE", "0")
    assert state() == "off: GPTOSS_LITE_NATIVE=0 turns it off"
    assert machine.calls == 0
    monkeypatch.delenv("GPTOSS_LITE_NATIVE")
    assert state() == "tried first"


def test_without_a_compiler_it_says_so(machine: Machine) -> None:
    machine.patch.setenv("PATH", str(machine.bin))
    machine.patch.delenv("CXX", raising=False)
    reason = "there is no C compiler (cc, gcc or clang) to build the C files with"
    assert state() == f"off: {reason}"
    use_backend("native")
    try:
        with pytest.raises(BackendError) as problem:
            linear(X, W)
    finally:
        use_backend("auto")
    assert str(problem.value) == (
        f"Backend 'native' cannot run linear: {reason}. "
        "Call use_backend('auto') to fall back to the plain version."
    )
    big = torch.ones(1024, 1024)
    with torch.no_grad():  # torch.compile needs a compiler, too
        assert compiled.missing() == "there is no C++ compiler for torch.compile to use"
        assert torch.equal(linear(big[:1], big), linear.plain(big[:1], big))


FAILING = {
    "refuses the source": (
        "echo 'native.c:1: error: no' >&2; echo more >&2; exit 1",
        "native.c:1: error: no",
    ),
    "is killed": ("kill -9 $$", "exit status -9"),
    "writes nothing": ("exit 0", "exit status 0"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_compiler_that_fails_is_quoted(machine: Machine, case: str) -> None:
    script, quoted = FAILING[case]
    compiler = machine.compiler(script)
    assert state() == f"off: {compiler} could not build the C files: {quoted}"
    assert machine.files() == []


def test_a_compiler_that_writes_rubbish_is_not_believed(machine: Machine) -> None:
    machine.compiler('while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"')
    reason = build.missing()
    assert reason is not None
    assert "\n" not in reason
    assert reason.startswith("the C files could not be built or loaded: ")
    assert machine.again() == reason


def test_a_compiler_without_march_native_is_given_other_flags(machine: Machine) -> None:
    real = build._compiler()
    machine.compiler(
        f'for a in "$@"; do case "$a" in -march=*|-mcpu=*) echo bad flag >&2; exit 1;; esac; done; '
        f'PATH=/usr/bin:/bin exec {real} "$@"'
    )
    assert build.missing() is None
    assert works()


@pytest.mark.parametrize("damage", [b"", b"rubbish", None], ids=["empty", "rubbish", "cut"])
def test_a_damaged_library_is_replaced(machine: Machine, damage: bytes | None) -> None:
    assert build.missing() is None
    (kept,) = machine.files()
    right = kept.read_bytes()
    kept.unlink()  # a library that is mapped must not be written over
    kept.write_bytes(right[: len(right) // 2] if damage is None else damage)
    assert machine.again() is None
    assert machine.calls == 2
    (again,) = machine.files()
    assert again.stem.endswith(build._digest(again.read_bytes()))
    assert machine.again() is None
    assert machine.calls == 2
    assert works()


def test_a_cache_that_cannot_be_written_is_done_without(machine: Machine) -> None:
    machine.cache.write_text("a file where the folder should be")
    assert build.missing() is None
    assert works()
    assert state() == "tried first"


def test_a_full_disk_leaves_no_half_library(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        right(path, content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert build.missing() is None
        assert works()
    assert machine.files() == []
    assert machine.again() is None
    assert len(machine.files()) == 1


def test_no_place_to_build_in_is_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(build.tempfile, "TemporaryDirectory", full)
    assert build.missing() == (
        "the C files could not be built or loaded: [Errno 28] No space left on device"
    )


def test_a_temporary_folder_that_runs_nothing_leaves_the_cache(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build.ctypes.CDLL

    def noexec(path: str) -> Any:
        if "native.so" in path:
            raise OSError(f"{path}: failed to map segment from shared object")
        return right(path)

    monkeypatch.setattr(build.ctypes, "CDLL", noexec)
    assert build.missing() is None
    assert works()


def test_another_system_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.sys, "byteorder", "big")
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(build.platform, "machine", lambda: "s390x")
    assert build.missing() == "the C code is not made for Linux s390x"


def test_import_and_a_tiny_model_compile_nothing(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-called\nexit 1\n")
    compiler.chmod(0o755)
    program = (
        "import torch, gptoss_lite as gl\n"
        "model = gl.load('gpt-oss-nano', device='cpu', progress=False)\n"
        "print(len(list(gl.generate(model, [1, 2, 3], max_new_tokens=3))))\n"
    )
    environment = os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "3\n"
    assert not (tmp_path / "was-called").exists()
    assert not (tmp_path / "cache" / "gptoss_lite").exists()


def test_it_is_never_built_with_fast_math() -> None:
    """It would make the whole process flush small numbers to zero."""
    assert not any("fast" in flag for flag in build.FLAGS)
    assert math.ldexp(1.0, -1070) > 0
