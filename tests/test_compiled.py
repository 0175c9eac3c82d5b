"""The backend of torch.compile: its formulas as they stand, and (slow) compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import gptoss_lite as gl
from gptoss_lite import use_backend
from gptoss_lite.errors import BackendError
from gptoss_lite.ffn import clamped_swiglu, swiglu
from gptoss_lite.kernels import build, compiled
from gptoss_lite.linear import linear
from gptoss_lite.moe import apply_experts, route
from gptoss_lite.mxfp4 import VALUES, PackedExpertLinear, dequantize, scale_table
from tests.hostile import seeded

U16 = 2.0**-8  # how far rounding to bfloat16 can move 1


@pytest.fixture
def as_it_stands(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Force the backend, without the compiler."""
    monkeypatch.setattr(compiled, "_compiled", lambda function: function)
    monkeypatch.setattr(compiled, "_lacks", lambda: None)
    monkeypatch.setattr(compiled, "_failed", [])
    use_backend("compiled")
    yield
    use_backend("auto")


@pytest.fixture
def really() -> Iterator[None]:
    """Force the backend, with the compiler."""
    if reason := compiled.missing():
        pytest.skip(reason)
    use_backend("compiled")
    yield
    use_backend("auto")


def layer(
    rows: int, width: int, dtype: torch.dtype, seed: int, halves: bool = False
) -> PackedExpertLinear:
    generator = seeded(seed)
    shape = (5, rows, width // 32)
    blocks = torch.randint(256, (*shape, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(120, 125, shape, generator=generator).to(torch.uint8)
    bias = torch.randn(5, rows, generator=generator).to(dtype)
    if halves:  # gate and up rows in turn, as files hold them
        blocks, scales = (t.unflatten(1, (-1, 2)).transpose(1, 2) for t in (blocks, scales))
    return PackedExpertLinear(blocks, scales, bias)


def check_experts(dtype: torch.dtype, n_tokens: int, act: Callable[[Tensor], Tensor]) -> None:
    """Against the plain version in float64: float32 sums, then one rounding to x's dtype."""
    up, down = layer(320, 96, dtype, 1, halves=True), layer(96, 160, dtype, 2)
    x = torch.randn(n_tokens, 96, generator=seeded(3)).to(dtype)
    weights, ids = route(torch.randn(n_tokens, 5, generator=seeded(4)), 2)
    wide = [PackedExpertLinear(w.blocks, w.scales, w.bias.double()) for w in (up, down)]
    with torch.no_grad():
        got = apply_experts(x, weights, ids, up, down, act)
        exact = apply_experts.plain(x.double(), weights, ids, *wide, act)
    assert got.dtype == dtype
    # the plain version adds the experts' answers up in float32, whatever x is
    bound = 1e-5 * exact.abs().max() + (U16 * exact.abs() if dtype == torch.bfloat16 else 0)
    assert ((got.double() - exact).abs() <= bound).all()


def check_linear(dtype: torch.dtype, n_tokens: int) -> None:
    x = torch.randn(n_tokens, 1, 75, generator=seeded(1)).to(dtype)
    weight = torch.randn(37, 80, generator=seeded(2)).to(dtype)[:, 3:78]
    bias = torch.randn(37, generator=seeded(3)).to(dtype)
    for b in (bias, None):
        got = linear(x, weight, b)
        exact = linear.plain(*(None if t is None else t.double() for t in (x, weight, b)))
        assert (got.shape, got.dtype) == (exact.shape, dtype)
        bound = 1e-5 * exact.abs().max() + (U16 * exact.abs() if dtype == torch.bfloat16 else 0)
        assert ((got.double() - exact).abs() <= bound).all()


def test_every_code_is_decoded_by_its_bits() -> None:
    got = compiled.e2m1(torch.arange(16, dtype=torch.int32))
    assert torch.equal(got.view(torch.int32), VALUES.view(torch.int32))  # minus zero is not zero


def test_every_pair_of_bytes_is_multiplied_by_its_number() -> None:
    """Row e, g holds byte b alone at one place; scales run over all 256, the last one NaN."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(256, 1, 1)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 16)
    table = scale_table(torch.float32, torch.device("cpu"))
    dense = dequantize.plain(blocks, scales, torch.float32)
    for place in (0, 1, 7, 250, 511):
        x = torch.zeros(512)
        x[place] = 0.125  # keeps the largest scales finite
        even, odd = x.view(16, 16, 2).unbind(-1)
        got = compiled.packed_dot(blocks[:253], scales[:253], even, odd, table)
        assert torch.equal(got, dense[:253, place] * 0.125)
    assert compiled.packed_dot(blocks[255:], scales[255:], even, odd, table).isnan().all()


@pytest.mark.usefixtures("as_it_stands")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_tokens", [1, 3, 7])
def test_products_are_those_of_the_plain_version(dtype: torch.dtype, n_tokens: int) -> None:
    check_linear(dtype, n_tokens)
    check_experts(dtype, n_tokens, clamped_swiglu)
    check_experts(dtype, n_tokens, swiglu)


@pytest.mark.slow
@pytest.mark.usefixtures("really")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_products_are_those_of_the_plain_version(dtype: torch.dtype) -> None:
    for n_tokens in (1, 3):
        check_linear(dtype, n_tokens)
        check_experts(dtype, n_tokens, clamped_swiglu)
    assert compiled._failed == []


@pytest.mark.usefixtures("as_it_stands")
def test_what_native_refuses_is_refused() -> None:
    with pytest.raises(BackendError, match="float64 weights are not read by it"):
        linear(torch.ones(1, 8).double(), torch.ones(4, 8).double())
    with pytest.raises(BackendError, match="gradients are needed"):
        linear(torch.ones(1, 8, requires_grad=True), torch.ones(4, 8))


def test_it_comes_after_native_and_waits_for_large_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for op in (linear, apply_experts):
        assert list(op.fast).index("native") < list(op.fast).index("compiled")
    asked: list[str] = []

    def there() -> None:
        asked.append("native")

    monkeypatch.setattr(build, "missing", there)
    x, small, big = torch.ones(1, 1024), torch.ones(4, 1024), torch.empty(1024, 1024)
    assert compiled.linear_too_small(x, small) == (
        "the matrix has 4,096 weights, and below 1,048,576 there is no gain"
    )
    assert not asked  # a tiny matrix must not be why C code is built
    assert compiled.linear_too_small(x, big) == "the native backend is there, and faster"
    monkeypatch.setattr(build, "missing", lambda: "no compiler")
    assert compiled.linear_too_small(x, big) is None
    many = torch.ones(5, 96), *route(torch.ones(5, 5), 2)
    up, down = layer(320, 96, torch.float32, 1), layer(96, 160, torch.float32, 2)
    assert compiled.experts_too_small(*many, up, down, swiglu) == (
        "5 tokens can share the work of decoding, which the plain version does once"
    )


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    compiled._lacks.cache_clear()
    monkeypatch.setattr(compiled, "_failed", [])
    yield
    monkeypatch.undo()
    compiled._lacks.cache_clear()


def state() -> str:
    return {row[:2]: row[2] for row in gl.backends()}["linear", "compiled"]


@pytest.mark.usefixtures("fresh")
def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(build, "missing", lambda: None)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.delenv("CXX", raising=False)
        assert compiled.missing() == "there is no C++ compiler for torch.compile to use"
    compiled._lacks.cache_clear()
    monkeypatch.setattr(compiled.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(compiled.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert compiled.missing() == (
        "Python's C headers, which torch.compile needs, are not installed"
    )


@pytest.mark.usefixtures("fresh")
def test_a_failing_compiler_is_told_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*arguments: Any) -> Tensor:
        raise RuntimeError("g++ said no\nand more")

    monkeypatch.setattr(compiled, "_lacks", lambda: None)
    monkeypatch.setattr(compiled, "_compiled", lambda function: fails)
    x, weight = torch.randn(2, 40, generator=seeded()), torch.ones(3, 40)
    with pytest.warns(UserWarning, match="'compiled' is off: torch.compile failed: g.. said no$"):
        got = compiled.linear_compiled(x, weight)
    torch.testing.assert_close(got, x @ weight.T)
    compiled.linear_compiled(x, weight)  # and warns no more
    assert state() == "off: torch.compile failed: g++ said no"
