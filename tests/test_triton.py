"""The GPU's kernels against float64, under Triton's interpreter, or on a device with `-m gpu`.

`conftest.py` turns the interpreter on where there is no CUDA device. It is slow, so sizes are
small, and tiles are set so that rows, blocks, keys and tokens do not fill the last one.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has no wheel for this system")

from gptoss_lite import KVCache, Transformer, mxfp4, use_backend
from gptoss_lite.attention import attend
from gptoss_lite.config import ModelConfig
from gptoss_lite.ffn import clamped_swiglu
from gptoss_lite.kernels import decode, gpu
from gptoss_lite.kernels import triton_dense as dense
from gptoss_lite.kernels import triton_experts as experts
from gptoss_lite.linear import linear
from gptoss_lite.moe import ExpertLinear, route
from gptoss_lite.mxfp4 import PackedExpertLinear
from gptoss_lite.norm import RMSNorm
from gptoss_lite.trace import trace
from tests.hostile import GPT_OSS_MXFP4, hostile, packed, seeded, tokens

ALPHA, LIMIT = 1.5, 2.5
ACT = partial(clamped_swiglu, alpha=ALPHA, limit=LIMIT)
# Relative errors of writing a number down; the interpreter cuts to bfloat16, a device rounds.
BFLOAT16 = 2**-7 if gpu.interpreted() else 2**-8
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: BFLOAT16, torch.float16: 2**-11}


@pytest.fixture(autouse=True, scope="module")
def mended_interpreter() -> Iterator[None]:
    """Let the interpreter's matrix product read bfloat16, which it keeps as 16-bit integers."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder, original = interpreter.InterpreterBuilder, interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar.name != "bf16":
            return handle
        numbers = (handle.data.astype("uint32") << 16).view("float32")
        return interpreter.TensorHandle(numbers, interpreter.tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, widened(a), widened(b), *rest)

    builder.create_dot = create_dot
    yield
    builder.create_dot = original


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where to run, with tiles that are too large for the tests' sizes, and so never full."""
    if request.param == "cpu" and not gpu.interpreted():
        pytest.skip("with a CUDA device the kernels run there: pytest -m gpu")
    monkeypatch.setattr(experts, "DECODE_UP", {"ROWS": 128, "BLOCKS": 2, "num_warps": 4})
    monkeypatch.setattr(experts, "DECODE_DOWN", {"ROWS": 128, "BLOCKS": 2, "num_warps": 4})
    tile = {"TOKENS": 16, "ROWS": 128, "BLOCKS": 2, "num_warps": 4}
    monkeypatch.setattr(experts, "GROUPED", {2: tile, 4: tile})
    monkeypatch.setattr(dense, "GEMV", {"ROWS": 16, "COLUMNS": 64, "num_warps": 4})
    return torch.device(request.param)


# --- experts -------------------------------------------------------------------------------------


def make_experts(
    device: torch.device, width: int = 64, d_ff: int = 96, biased: bool = True, seed: int = 0
) -> tuple[PackedExpertLinear, PackedExpertLinear]:
    """Draw five experts out of ten: random bytes, gate and up rows in turn as the files have."""
    generator = seeded(seed)

    def draw(*shape: int) -> tuple[Tensor, Tensor]:
        blocks = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(119, 126, shape, generator=generator, dtype=torch.uint8)
        return blocks.to(device), scales.to(device)

    def bias(*shape: int) -> Tensor | None:
        return torch.randn(*shape, generator=generator).to(device) if biased else None

    up = [t.transpose(1, 2)[1::2] for t in draw(10, d_ff, 2, width // 32)]
    down = [t[::2] for t in draw(10, width, d_ff // 32)]
    return (
        PackedExpertLinear(*up, bias(5, 2 * d_ff)),
        PackedExpertLinear(*down, bias(5, width)),
    )


def make_call(
    device: torch.device, n_tokens: int, dtype: torch.dtype, n_active: int = 3, **sizes: Any
) -> tuple[Any, ...]:
    up, down = make_experts(device, **sizes)
    generator = seeded(n_tokens)
    x = torch.randn(n_tokens, up.blocks.shape[-2] * 32, generator=generator).to(device, dtype)
    weights, ids = route(torch.randn(n_tokens, 5, generator=generator).to(device), n_active)
    return x, weights, ids, up, down, ACT


def exact(call: tuple[Any, ...], rounding: float) -> tuple[Tensor, Tensor]:
    """Return the answer in float64, and how far a float32 computation may be from it.

    A sum of n products errs by at most n * 2**-24 of the sum of their sizes. An error of gate or
    up grows by at most the slopes of the activation. `rounding` is the relative error of writing
    hidden features and answers down in another dtype.
    """
    x, weights, ids, up, down, act = call
    x, unit = x.double(), 2**-24
    total, allowed = torch.zeros_like(x), torch.zeros_like(x)
    matrices = [[m.double() for m in part.matrices(torch.float64)] for part in (up, down)]
    biases = [
        x.new_zeros(5, len(m[0])) if part.bias is None else part.bias.double()
        for part, m in zip((up, down), matrices, strict=True)
    ]
    for token, (chosen, shares) in enumerate(zip(ids.tolist(), weights.double(), strict=True)):
        for expert, share in zip(chosen, shares, strict=True):
            first, second = matrices[0][expert], matrices[1][expert]
            before = first @ x[token] + biases[0][expert]
            error = (len(first[0]) + 2) * unit * (
                first.abs() @ x[token].abs() + biases[0][expert].abs()
            )  # fmt: skip
            hidden = act(before)
            gate_error, up_error = error.chunk(2)
            # slopes: of gate * sigmoid(alpha * gate) below 1.1, of up + 1 the gate, at most LIMIT
            hidden_error = 1.1 * (LIMIT + 1) * gate_error + LIMIT * up_error
            hidden_error += (rounding + 8 * unit) * hidden.abs()
            total[token] += share * (second @ hidden + biases[1][expert])
            size = second.abs() @ hidden.abs() + biases[1][expert].abs()
            allowed[token] += share * (
                second.abs() @ hidden_error + (len(second[0]) + 4) * unit * size
            )
    return total, allowed + (rounding + 4 * unit) * total.abs()


def assert_within(got: Tensor, want: Tensor, allowed: Tensor) -> None:
    assert torch.equal(got.isnan(), want.isnan())
    excess = ((got.double() - want).abs() / allowed).nan_to_num(0)
    assert excess.max() <= 1, f"{excess.max():.2f} times the rounding error there can be"


@pytest.mark.parametrize(
    ("dtype", "n_tokens"), [(torch.float32, 2), (torch.bfloat16, 1), (torch.float16, 1)]
)
def test_few_tokens(device: torch.device, dtype: torch.dtype, n_tokens: int) -> None:
    call = make_call(device, n_tokens, dtype)
    assert gpu.why_not_experts(*call) is None
    got = gpu.apply_experts_triton(*call)
    assert got.dtype == dtype
    assert_within(got, *exact(call, ROUNDING[dtype]))


@pytest.mark.parametrize(
    ("dtype", "n_tokens"), [(torch.float32, 9), (torch.bfloat16, 23), (torch.float16, 5)]
)
def test_many_tokens(device: torch.device, dtype: torch.dtype, n_tokens: int) -> None:
    call = make_call(device, n_tokens, dtype)
    assert_within(gpu.apply_experts_triton(*call), *exact(call, ROUNDING[dtype]))


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_experts_without_bias_and_rows_in_halves(device: torch.device, n_tokens: int) -> None:
    """What `save_checkpoint` and the tests' models hold: rows [gate | up] in one axis."""
    x, weights, ids, up, down, act = make_call(device, n_tokens, torch.float32, biased=False)
    flat = PackedExpertLinear(up.blocks.flatten(1, 2), up.scales.flatten(1, 2), None)
    call = x, weights, ids, flat, down, act
    assert_within(gpu.apply_experts_triton(*call), *exact(call, 0))


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_extreme_scales(device: torch.device, n_tokens: int) -> None:
    """2 ** -127 is a float32 without leading one, 2 ** 113 nearly the largest; 255 is NaN."""
    call = make_call(device, n_tokens, torch.float32, biased=False)
    down = call[4]
    for row, scale in enumerate((0, 1, 2, 60, 200, 240, 255)):
        down.scales[:, row] = scale
    want, allowed = exact(call, 0)
    # below 2 ** -126 a float32 keeps no relative, only this absolute accuracy
    assert_within(gpu.apply_experts_triton(*call), want, allowed + 2.0**-145)
    assert want[:, 6].isnan().all()
    assert 0 < want[:, 0].abs().max() < 2.0**-110


@pytest.mark.parametrize("n_tokens", [2, 5])
@pytest.mark.parametrize("half", [0, 1])
def test_a_nan_block_is_not_clamped_away(device: torch.device, n_tokens: int, half: int) -> None:
    call = make_call(device, n_tokens, torch.float32, n_active=1)
    ids, up = call[2], call[3]
    ids[:], ids[0] = 2, 4
    up.scales[4, half, 95, 1] = 255
    got = gpu.apply_experts_triton(*call)
    assert got[0].isnan().all()
    assert got[1:].isfinite().all()


def test_every_code(device: torch.device) -> None:
    """One weight at a time reaches the answer: all 16 codes at all 32 places of a block."""
    codes = torch.arange(16).repeat(32)
    place = torch.arange(32).repeat_interleave(16)
    rows = torch.zeros(512, 32, dtype=torch.int64)
    rows[torch.arange(512), place] = codes
    blocks = (rows[:, 0::2] | (rows[:, 1::2] << 4)).to(device, torch.uint8).view(1, 512, 1, 16)
    scales = torch.full((1, 512, 1), 128, dtype=torch.uint8, device=device)
    down = PackedExpertLinear(blocks, scales, None)
    hidden = torch.randn(1, 1, 32, generator=seeded()).to(device)
    out = torch.empty(1, 512, device=device)
    ids, weights = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    words = experts.as_words(blocks)
    experts.down_kernel[(4, 1)](
        hidden, words, scales, None, ids.to(device), weights.to(device), out, 1, 32, 512,
        *words.stride()[:2], *scales.stride()[:2], HAS_BIAS=False, **experts.DECODE_DOWN,
    )  # fmt: skip
    want = 2 * mxfp4.VALUES[codes] * hidden.cpu()[0, 0, place]
    assert torch.equal(out.cpu()[0], want)  # one product, by a power of two times 1 or 1.5
    assert down.blocks.shape == (1, 512, 1, 16)


def test_tiles_hold_one_expert_each() -> None:
    ids = torch.tensor([[3, 0], [3, 1], [3, 0], [3, 6], [0, 3]])
    order, expert, first, end = experts.tiles_by_expert(ids, 7, 2)
    flat = ids.flatten()
    seen = []
    for e, a, b in zip(expert.tolist(), first.tolist(), end.tolist(), strict=True):
        if e < 7:
            chosen = order[a : min(a + 2, b)]
            assert len(chosen) > 0
            assert (flat[chosen] == e).all()
            seen += chosen.tolist()
    assert sorted(seen) == list(range(10))


# --- attention -----------------------------------------------------------------------------------


def make_attention(
    device: torch.device, n_queries: int, n_keys: int, dtype: torch.dtype, width: int = 10,
    batch: int = 1, n_heads: int = 6, n_kv_heads: int = 2,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Heads of 10 numbers in tiles of 16, keys and values in the middle of a larger buffer."""
    generator = seeded(n_keys)
    q = torch.randn(batch, n_queries, n_heads, width, generator=generator).transpose(1, 2)
    buffer = torch.randn(2, batch, n_kv_heads, n_keys + 3, width, generator=generator)
    k, v = buffer[:, :, :, 1 : n_keys + 1].to(device, dtype)
    sinks = torch.randn(n_heads, generator=generator) * 2 + 1
    return (2 * q).to(device, dtype), k, v, sinks.to(device)


def assert_attends(
    got: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None
) -> None:
    """Compare with float64.

    Scores of size s err by about width * 2**-24 * s, and so do the weights, relatively. In
    bfloat16 the weights and the answer are rounded once each, relative to at most max |v|.
    """
    doubled = (None if x is None else x.double() for x in (q, k, v, sinks))
    want = attend.plain(*doubled, window)
    size = v.abs().max().item()
    scores = q.abs().max().item() * k.abs().max().item() * math.sqrt(q.shape[-1])
    half = 2 * ROUNDING[q.dtype] if q.dtype != torch.float32 else 0
    allowed = size * (half + 4 * q.shape[-1] * 2**-24 * max(1, scores))
    assert got.dtype == q.dtype
    assert (got.double() - want).abs().max() <= allowed


@pytest.mark.parametrize("with_sinks", [True, False])
@pytest.mark.parametrize(
    ("n_keys", "window", "dtype"),
    [
        (1, None, torch.float32),
        (150, None, torch.float32),
        (150, 37, torch.float32),
        (131, 64, torch.float32),
        (150, 37, torch.bfloat16),
        (150, None, torch.float16),
    ],
)
def test_one_token_attends(
    device: torch.device, n_keys: int, window: int | None, dtype: torch.dtype, with_sinks: bool
) -> None:
    q, k, v, sinks = make_attention(device, 1, n_keys, dtype)
    call = q, k, v, sinks if with_sinks else None, window
    assert gpu.why_not_attend(*call) is None
    assert_attends(gpu.attend_triton(*call), *call)


def test_more_splits_than_are_combined_at_once(device: torch.device) -> None:
    q, k, v, sinks = make_attention(device, 1, 18 * 64 + 5, torch.float32, n_heads=3, n_kv_heads=1)
    assert_attends(gpu.attend_triton(q, k, v, sinks, None), q, k, v, sinks, None)


@pytest.mark.parametrize("sink", [-60.0, 60.0])
def test_a_sink_takes_all_or_nothing(device: torch.device, sink: float) -> None:
    q, k, v, sinks = make_attention(device, 1, 70, torch.float32)
    sinks[:] = sink
    got = gpu.attend_triton(q, k, v, sinks, None)
    assert_attends(got, q, k, v, sinks, None)
    assert (got.abs().max() < 1e-12) == (sink > 0)


def test_several_sequences_attend_at_once(device: torch.device) -> None:
    q, k, v, sinks = make_attention(device, 1, 5, torch.float32, batch=3, n_kv_heads=3)
    assert_attends(gpu.attend_triton(q, k, v, sinks, 4), q, k, v, sinks, 4)


@pytest.mark.parametrize("length", [1, 64, 65, 129])
def test_the_length_may_be_on_the_device(device: torch.device, length: int) -> None:
    q, k, v, sinks = make_attention(device, 1, 200, torch.float32)
    want = q, k[:, :, :length].clone(), v[:, :, :length].clone(), sinks, None
    k[:, :, length:] = v[:, :, length:] = torch.nan  # a row that is not there must not be read
    on_device = torch.tensor([length], device=device)
    got = decode.attend_buffers_triton(q, k, v, sinks, on_device)
    assert_attends(got, *want)


@pytest.mark.parametrize("with_sinks", [True, False])
@pytest.mark.parametrize(
    ("n_queries", "n_keys", "window", "dtype"),
    [
        (37, 37, None, torch.float32),
        (37, 80, 9, torch.float32),
        (35, 35, 1, torch.float32),
        (37, 80, 33, torch.bfloat16),
    ],
)
def test_a_prompt_attends(
    device: torch.device, n_queries: int, n_keys: int, window: int | None, dtype: torch.dtype,
    with_sinks: bool,
) -> None:  # fmt: skip
    q, k, v, sinks = make_attention(device, n_queries, n_keys, dtype, n_heads=4)
    call = q, k, v, sinks if with_sinks else None, window
    assert_attends(gpu.attend_triton(*call), *call)


# --- the small parts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype", "n_tokens"),
    [
        (torch.float32, torch.float32, 1),
        (torch.bfloat16, torch.bfloat16, 3),
        (torch.float32, torch.float16, 2),
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_matrix_times_vector(
    device: torch.device, x_dtype: torch.dtype, weight_dtype: torch.dtype, n_tokens: int,
    biased: bool,
) -> None:  # fmt: skip
    generator = seeded()
    weight = torch.randn(21, 150, generator=generator).to(device, weight_dtype)[::2, 3:]
    x = torch.randn(n_tokens, 1, 147, generator=generator).to(device, x_dtype)
    bias = torch.randn(11, generator=generator).to(device, weight_dtype) if biased else None
    got = gpu.linear_triton(x, weight, bias)
    want = linear.plain(x.double(), weight, bias)
    sizes = linear.plain(x.double().abs(), weight.abs(), bias if bias is None else bias.abs())
    rounding = 0 if x_dtype == torch.float32 else ROUNDING[x_dtype]
    assert got.dtype == x_dtype
    assert_within(got, want, 150 * 2**-24 * sizes + rounding * want.abs())


@pytest.mark.parametrize("cast_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_and_norm(device: torch.device, dtype: torch.dtype, cast_first: bool) -> None:
    norm = RMSNorm(75, 1e-2, cast_first).to(device, dtype)
    norm.weight.data = torch.randn(75, generator=seeded()).to(device, dtype)
    x, delta = torch.randn(2, 1, 2, 75, generator=seeded(1)).to(device, dtype)
    x[0, 0] *= 1e-2  # so small that eps counts
    with torch.no_grad():
        for added in (delta, None):
            total, normed = decode.add_norm_triton(x, added, norm)
            want_total, want = decode.add_norm.plain(x, added, norm)
            # a last bit of the mean may turn a rounding over, and cast_first rounds twice
            torch.testing.assert_close(total, want_total, rtol=ROUNDING[dtype], atol=0)
            torch.testing.assert_close(normed, want, rtol=8 * ROUNDING[dtype], atol=1e-6)


def test_float32_may_be_larger_than_float16(device: torch.device) -> None:
    norm = RMSNorm(75, 1e-5).to(device)
    x = 1e6 * torch.randn(1, 1, 75, generator=seeded()).to(device)
    with torch.no_grad():
        _, normed = decode.add_norm_triton(x, x, norm)
        torch.testing.assert_close(normed, norm(2 * x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_and_keep(device: torch.device, dtype: torch.dtype) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seeded(len(shape))).to(device, dtype)

    q, k, v = draw(1, 1, 6, 20).transpose(1, 2), draw(1, 2, 1, 20), -draw(1, 2, 1, 20)
    angle = torch.linspace(0.1, 3, 10, device=device)[None]
    buffers = [torch.full((1, 2, 7, 20), 9.0, device=device, dtype=dtype) for _ in range(4)]
    slot = torch.tensor([4], device=device)
    got = decode.rotate_and_keep_triton(q, k, v, angle.cos(), angle.sin(), *buffers[:2], slot)
    want = decode.rotate_and_keep.plain(q, k, v, angle.cos(), angle.sin(), *buffers[2:], slot)
    # plain rounds both products before their sum; sizes stay below 8
    close = {"rtol": 0, "atol": 16 * ROUNDING[dtype]}
    torch.testing.assert_close(got, want, **close)
    torch.testing.assert_close(buffers[0], buffers[2], **close)
    assert torch.equal(buffers[1], buffers[3])


@pytest.mark.parametrize(("n_experts", "n_active"), [(7, 3), (32, 4), (5, 5)])
def test_choose(device: torch.device, n_experts: int, n_active: int) -> None:
    logits = (3 * torch.randn(3, n_experts, generator=seeded())).to(device)
    weights, ids = decode.choose_experts_triton(logits, n_active)
    want_weights, want_ids = route(logits, n_active)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want_weights)


# --- a whole model -------------------------------------------------------------------------------


def test_a_model_decodes(device: torch.device) -> None:
    """A prompt, then two steps over buffers, all in Triton, against the plain float32 model."""
    config = GPT_OSS_MXFP4.but(n_layers=2)
    model = packed(hostile(config)).to(device)
    text = tokens(config, 1, 12).to(device)
    try:
        with torch.no_grad():
            use_backend("plain")
            want, cache = model(text)[0, -2:], KVCache(config)
            use_backend("triton")
            model.hidden(text[:, :10], cache)
            decoder = decode.Decoder(model, cache)
            got = []
            for token in text[0, 10:]:
                decoder.state.token.fill_(int(token))
                got.append(decode.step(model, decoder.state).clone())
    finally:
        use_backend("auto")
    # parity allows 1e-5 on logits of order 1; here sums go in another order, too
    torch.testing.assert_close(torch.stack(got), want, rtol=0, atol=3e-5)


# --- what is declined ----------------------------------------------------------------------------


def test_reasons(device: torch.device) -> None:
    call = make_call(device, 1, torch.float32)
    x, weights, ids, up, down, _ = call
    loose = ExpertLinear(5, 64, 192, bias=False)
    assert "dense" in str(gpu.why_not_experts(x, weights, ids, loose, down, ACT))
    assert "clamped SwiGLU" in str(gpu.why_not_experts(x, weights, ids, up, down, torch.tanh))
    assert "float64" in str(gpu.why_not_experts(x.double(), weights, ids, up, down, ACT))
    assert "nothing" in str(gpu.why_not_experts(x[:0], weights[:0], ids[:0], up, down, ACT))
    assert "gradients" in str(gpu.why_not_experts(x.requires_grad_(), weights, ids, up, down, ACT))
    side = PackedExpertLinear(up.blocks.flip(-1).transpose(-1, -2), up.scales, None)
    assert "side by side" in str(gpu.why_not_experts(x.detach(), weights, ids, side, down, ACT))
    assert "fewer than 1,048,576" in str(gpu.experts_too_small(*call))
    q, k, v, sinks = make_attention(device, 1, 5, torch.float32)
    assert "dropout" in str(gpu.why_not_attend(q, k, v, sinks, None, 0.1))
    assert "differ in dtype" in str(gpu.why_not_attend(q, k.half(), v, sinks, None))
    model = Transformer(GPT_OSS_MXFP4.but(n_layers=1))
    with trace(model, "sink_mass"):
        assert "a trace asks" in str(gpu.why_not_attend(q, k, v, sinks, None))
    with trace(model, "expert_ids"):
        assert "a trace asks" in str(decode.why_not_choose(sinks[None], 2))
    assert "fewer than" in str(gpu.linear_too_small(x, torch.ones(3, 64)))
    assert "side by side" in str(gpu.why_not_linear(x.detach(), torch.ones(64, 3).T))


def test_the_interpreter_is_never_chosen_by_itself() -> None:
    if gpu.interpreted():
        assert "slow" in str(gpu.only_forced())
        call = make_call(torch.device("cpu"), 1, torch.float32, width=1024, d_ff=512)
        assert "slow" in str(gpu.experts_too_small(*call))


# --- on a device only ----------------------------------------------------------------------------

WIDE = ModelConfig(
    vocab_size=1_031, d_model=512, n_layers=4, n_heads=8, n_kv_heads=2, head_dim=64, d_ff=1_056,
    context=4_096, norm="rmsnorm", positions="rope", ffn="clamped_swiglu", sinks=True, tied=False,
    moe=GPT_OSS_MXFP4.moe, sliding_window=48, layer_pattern="SF", expert_dtype="mxfp4",
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_replays(dtype: torch.dtype) -> None:
    """Over the window and past the first buffers; every logit close to the plain model's."""
    model = packed(hostile(WIDE)).to("cuda", dtype)
    assert decode.why_not(model) is None
    text = tokens(WIDE, 1, 120).to("cuda")
    with torch.no_grad():
        use_backend("plain")
        want = model(text)[0, 60:]
        use_backend("auto")
        cache = KVCache(WIDE)
        model.hidden(text[:, :60], cache)
        decoder = decode.Decoder(model, cache, spare=20)
        got = torch.stack([decoder(int(token)).clone() for token in text[0, 60:]])
    # bfloat16: 8 sums into the stream, each rounded to 2**-9 of values of order 1 to 10
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.3)


@pytest.mark.gpu
def test_the_same_numbers_every_time() -> None:
    device = torch.device("cuda")
    for n_tokens in (1, 43):
        call = make_call(device, n_tokens, torch.bfloat16, width=2_880, d_ff=2_880)
        first = gpu.apply_experts_triton(*call)
        assert all(torch.equal(gpu.apply_experts_triton(*call), first) for _ in range(5))
        assert_within(first, *exact(call, ROUNDING[torch.bfloat16]))
