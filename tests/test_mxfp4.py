import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptoss_lite import use_backend
from gptoss_lite.errors import ShapeError
from gptoss_lite.mxfp4 import VALUES, dequantize, quantize
from tests.hostile import seeded, without_type_checks

GOLDEN = json.loads(
    (Path(__file__).parent / "golden" / "mxfp4_block.json").read_text(encoding="utf-8")
)
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.fixture(params=["plain", *dequantize.fast])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with each way to decode."""
    if request.param != "plain" and (reason := dequantize.fast[request.param].missing()):
        pytest.skip(reason)
    use_backend(request.param)
    yield request.param
    use_backend("auto")


def decode_by_hand(code: int, scale: int) -> float:
    """Decode one 4-bit code: sign, two exponent bits with bias 1, one mantissa bit."""
    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    # The subnormal numbers are 0 and 1/2: no hidden one, exponent as if it were 1.
    magnitude = mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return math.copysign(math.ldexp(magnitude, scale - 127), -1.0 if sign else 1.0)


def all_pairs(scale_bytes: int) -> tuple[Tensor, Tensor]:
    """Return a row for each scale byte, with each of the 256 code bytes in it once."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(scale_bytes, 1, 1)
    scales = torch.arange(scale_bytes, dtype=torch.uint8)[:, None].repeat(1, 16)
    return blocks, scales


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit: -0 is not 0."""
    return a.dtype == b.dtype and torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype]))


# --- decoding ------------------------------------------------------------------------------------


def test_the_worked_block_decodes_as_by_hand(backend: str) -> None:
    codes = [int(text, 16) for text in GOLDEN["bytes"]]
    blocks = torch.tensor([[codes]], dtype=torch.uint8)
    scales = torch.tensor([[GOLDEN["scale"]]], dtype=torch.uint8)
    expected = torch.tensor([GOLDEN["weights"]])
    assert same_bits(dequantize(blocks, scales, torch.float32), expected)


def test_the_sixteen_numbers_are_those_of_e2m1() -> None:
    expected = torch.tensor([decode_by_hand(code, 127) for code in range(16)])
    assert same_bits(VALUES, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_pair_of_bytes_equals_an_independent_decoder(
    backend: str, dtype: torch.dtype
) -> None:
    """All 65,536 pairs of a code byte and a scale byte; 255 stands for NaN."""
    blocks, scales = all_pairs(256)
    got = dequantize(blocks, scales, dtype)
    expected = torch.tensor(
        [
            [decode_by_hand(code, e) for byte in range(256) for code in (byte & 15, byte >> 4)]
            for e in range(255)
        ],
        dtype=torch.float64,
    )
    # A bfloat16 or float32 ends before 2 ** 128, which only the two largest scales can pass.
    expected[expected.abs() >= 2.0**128] *= torch.inf
    assert same_bits(got[:255], expected.to(dtype))
    finite = expected.abs() < 2.0**128
    assert torch.equal(got[:255].double()[finite], expected[finite])  # exact, not rounded
    assert got[255].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decoding_equals_transformers_bit_for_bit(backend: str, dtype: torch.dtype) -> None:
    """Their function transposes its result to [E, in, out]; at byte 255 it gives no NaN."""
    pytest.importorskip("transformers")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = all_pairs(255)
    blocks, scales = blocks.view(3, 85, 16, 16), scales.view(3, 85, 16)
    theirs = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=dtype)
    assert theirs.shape == (3, 512, 85)
    assert same_bits(dequantize(blocks, scales, dtype), theirs.mT.contiguous())


def test_float64_and_float16_come_from_the_same_numbers() -> None:
    blocks, scales = all_pairs(255)
    wide = dequantize(blocks, scales, torch.float64)
    assert wide[254].abs().max() == 6 * 2.0**127  # float64 has room for all
    half = dequantize(blocks, scales, torch.float16)
    assert half.dtype == torch.float16
    moderate = slice(127 - 20, 127 + 13)  # where float16 is exact
    assert torch.equal(half[moderate].double(), wide[moderate])
    assert torch.equal(half, wide.float().half())


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0,)])
def test_any_leading_axes_are_kept(backend: str, shape: tuple[int, ...]) -> None:
    blocks = torch.randint(256, (*shape, 3, 16), generator=seeded()).to(torch.uint8)
    scales = torch.randint(110, 140, (*shape, 3), generator=seeded()).to(torch.uint8)
    got = dequantize(blocks, scales, torch.float32)
    assert got.shape == (*shape, 96)
    flat = dequantize(blocks.view(-1, 1, 16), scales.view(-1, 1), torch.float32)
    assert torch.equal(got.flatten(), flat.flatten())


def test_strided_bytes_decode_like_contiguous_ones(backend: str) -> None:
    """Rows of gate and up in turn are read through a view."""
    blocks = torch.randint(256, (6, 2, 3, 16), generator=seeded()).to(torch.uint8)
    scales = torch.randint(110, 140, (6, 2, 3), generator=seeded()).to(torch.uint8)
    view = dequantize(blocks.transpose(0, 1), scales.transpose(0, 1), torch.float32)
    copy = dequantize(
        blocks.transpose(0, 1).contiguous(), scales.transpose(0, 1).contiguous(), torch.float32
    )
    assert torch.equal(view, copy)


def test_decoding_twice_gives_memory_of_its_own(backend: str) -> None:
    """Tables are shared between calls; what comes out is not."""
    blocks, scales = all_pairs(4)
    first = dequantize(blocks, scales, torch.float32)
    expected = first.clone()
    first.zero_()
    assert same_bits(dequantize(blocks, scales, torch.float32), expected)


WRONG_PACKED = {
    "blocks of another dtype": (
        torch.zeros(2, 1, 16, dtype=torch.int32),
        torch.zeros(2, 1, dtype=torch.uint8),
        "MXFP4 blocks and scales are bytes (uint8), got torch.int32 and torch.uint8.",
    ),
    "scales of another dtype": (
        torch.zeros(2, 1, 16, dtype=torch.uint8),
        torch.zeros(2, 1),
        "MXFP4 blocks and scales are bytes (uint8), got torch.uint8 and torch.float32.",
    ),
    "too few scales": (
        torch.zeros(2, 3, 16, dtype=torch.uint8),
        torch.zeros(2, 2, dtype=torch.uint8),
        "MXFP4 blocks [2, 3, 16] need scales [2, 3] and a last axis of 16 bytes, "
        "got scales [2, 2].",
    ),
    "half a block": (
        torch.zeros(2, 3, 8, dtype=torch.uint8),
        torch.zeros(2, 3, dtype=torch.uint8),
        "MXFP4 blocks [2, 3, 8] need scales [2, 3] and a last axis of 16 bytes, got scales [2, 3].",
    ),
    "rows flattened": (
        torch.zeros(2, 48, dtype=torch.uint8),
        torch.zeros(2, 3, dtype=torch.uint8),
        "MXFP4 blocks [2, 48] need scales [2] and a last axis of 16 bytes, got scales [2, 3].",
    ),
}


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_cannot_hold_the_weights_are_refused(dtype: torch.dtype) -> None:
    blocks, scales = torch.full((2, 3, 16), 0x21, dtype=torch.uint8), torch.full((2, 3), 127)
    with pytest.raises(ShapeError) as problem:
        dequantize(blocks, scales.to(torch.uint8), dtype)
    assert str(problem.value) == (
        f"MXFP4 weights are not decoded to {dtype}, which cannot hold them. Use one of "
        "torch.bfloat16, torch.float32, torch.float64, torch.float16."
    )


@pytest.mark.parametrize("case", WRONG_PACKED)
def test_bytes_that_do_not_belong_together_are_refused(backend: str, case: str) -> None:
    blocks, scales, message = WRONG_PACKED[case]
    with without_type_checks(), pytest.raises(ShapeError) as problem:
        dequantize(blocks, scales, torch.float32)
    assert str(problem.value) == message


# --- encoding ------------------------------------------------------------------------------------


def quantize_by_hand(block: list[float]) -> tuple[list[int], int]:
    """Encode one block by search: the nearest of the 8 magnitudes, ties to the even code."""
    largest = max(abs(x) for x in block)
    exponent = math.frexp(largest)[1] - 3 if largest else 0
    exponent = max(-127, min(exponent, 127))
    magnitudes = [decode_by_hand(code, 127) for code in range(8)]
    codes = []
    for x in block:
        target = math.ldexp(abs(x), -exponent)
        code = min(range(8), key=lambda c: (abs(magnitudes[c] - target), c % 2))
        codes.append(code | (8 if math.copysign(1, x) < 0 else 0))
    pairs = [codes[2 * b] | codes[2 * b + 1] << 4 for b in range(16)]
    return pairs, exponent + 127


NAMED_BLOCKS = {
    "all codes": [decode_by_hand(c % 16, 127) for c in range(32)],
    "ties": [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 2
    + [-0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, -6.0] * 2,
    "just beside the ties": [
        tie * (1 + side * 2**-22)
        for tie in (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 4.0)
        for side in (-1, 1, -2, 2)
    ],
    "saturating": [7.9, 7.0, 6.5, 6.0, 5.0, 4.9, -7.9, -7.0] * 4,
    "zeros": [0.0] * 32,
    "minus zeros": [-0.0] * 32,
    "one small among zeros": [0.0] * 31 + [1e-20],
    "a power of two": [4.0] + [0.01] * 31,
    "just below a power of two": [4.0 * (1 - 2**-24)] + [0.01] * 31,
    "subnormal float32": [1e-40, -3e-41, 2**-149, 0.0] * 8,
    "smallest scale": [2.0**-126 * x for x in (1.0, 0.75, -0.5, 0.3)] * 8,
    "largest float32": [3.4e38, -3.4e38, 1e38, 1.0] * 8,
}


@pytest.mark.parametrize("name", NAMED_BLOCKS)
def test_quantize_equals_the_search_on_named_blocks(name: str) -> None:
    weights = torch.tensor([NAMED_BLOCKS[name]])
    blocks, scales = quantize(weights)
    expected_blocks, expected_scale = quantize_by_hand(weights[0].tolist())
    assert scales.tolist() == [[expected_scale]]
    assert blocks.tolist() == [[expected_blocks]]


@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=32, max_size=32
    )
)
def test_quantize_equals_the_search(values: list[float]) -> None:
    blocks, scales = quantize(torch.tensor([values]))
    expected_blocks, expected_scale = quantize_by_hand(values)
    assert scales.tolist() == [[expected_scale]]
    assert blocks.tolist() == [[expected_blocks]]


@given(seed=st.integers(0, 999), power=st.integers(-100, 100))
def test_quantize_equals_the_search_on_bell_curves(seed: int, power: int) -> None:
    values = 2.0**power * torch.randn(3, 2, 32, generator=seeded(seed))
    blocks, scales = quantize(values.flatten(1))
    expected = [[quantize_by_hand(block) for block in row] for row in values.tolist()]
    assert blocks.tolist() == [[pairs for pairs, _ in row] for row in expected]
    assert scales.tolist() == [[scale for _, scale in row] for row in expected]


def test_ties_go_to_the_even_code() -> None:
    """A block with 6 in it has scale 1, so a tie lies halfway between two numbers."""
    ties = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0}
    row = torch.zeros(1, 32)
    row[0, :7], row[0, 7] = torch.tensor(list(ties)), 6.0
    row[0, 8:16] = -row[0, :8]
    decoded = dequantize(*quantize(row), torch.float32)
    assert decoded[0, :7].tolist() == list(ties.values())
    assert decoded[0, 8:15].tolist() == [-x for x in ties.values()]


def test_the_largest_weights_of_a_block_saturate() -> None:
    """Between 6 and 8 the scale is the same; the specification cuts them at 6."""
    row = torch.zeros(1, 32)
    row[0, :3] = torch.tensor([7.99, -7.0, 6.1])
    blocks, scales = quantize(row)
    assert scales.item() == 127
    assert dequantize(blocks, scales, torch.float32)[0, :3].tolist() == [6.0, -6.0, 6.0]


def test_minus_zero_and_blocks_of_zeros_survive() -> None:
    row = torch.zeros(1, 64)
    row[0, 1::2] = -0.0
    blocks, scales = quantize(row)
    assert scales.tolist() == [[127, 127]]
    assert same_bits(dequantize(blocks, scales, torch.float32), row)


@given(seed=st.integers(0, 999), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_decoded_weights_quantize_to_themselves(seed: int, dtype: torch.dtype) -> None:
    """Whatever the bytes were: quantising twice is quantising once."""
    generator = seeded(seed)
    blocks = torch.randint(256, (5, 2, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(10, 240, (5, 2), generator=generator).to(torch.uint8)
    weights = dequantize(blocks, scales, dtype)
    again = dequantize(*quantize(weights), dtype)
    assert same_bits(again, weights)
    random = torch.randn(5, 64, generator=generator).to(dtype)
    once = dequantize(*quantize(random), dtype)
    assert same_bits(dequantize(*quantize(once), dtype), once)


@given(seed=st.integers(0, 999), power=st.integers(-30, 30))
def test_errors_stay_below_the_largest_gap(seed: int, power: int) -> None:
    """The largest weight of a block is at least 4 scales, the widest gap is 2, the cut 8 to 6."""
    weights = 2.0**power * torch.randn(4, 3, 32, generator=seeded(seed))
    decoded = dequantize(*quantize(weights.flatten(1)), torch.float32).view_as(weights)
    worst = (decoded - weights).abs().amax(-1)
    assert (worst <= weights.abs().amax(-1) / 4 * (1 + 1e-6)).all()


def test_the_error_on_a_bell_curve_is_the_known_one() -> None:
    weights = torch.randn(400, 320, generator=seeded(1))
    decoded = dequantize(*quantize(weights), torch.float32)
    relative = (decoded - weights).square().mean().sqrt() / weights.square().mean().sqrt()
    assert relative == pytest.approx(0.115, abs=0.002)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_quantize_like_their_float32(dtype: torch.dtype) -> None:
    weights = torch.randn(6, 64, generator=seeded(2)).to(dtype)
    got, expected = quantize(weights), quantize(weights.float())
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_weights_past_the_largest_scale_saturate_and_below_the_smallest_vanish() -> None:
    """Only float64 can hold such numbers."""
    huge, tiny = (torch.full((1, 32), x, dtype=torch.float64) for x in (1e300, -1e-300))
    blocks, scales = quantize(huge)
    assert scales.item() == 254
    assert dequantize(blocks, scales, torch.float64)[0, 0] == 6 * 2.0**127
    blocks, scales = quantize(tiny)
    assert scales.item() == 0
    assert dequantize(blocks, scales, torch.float64)[0, 0] == 0


def test_a_row_is_cut_into_blocks_of_its_own() -> None:
    """Each block's scale comes from its 32 weights alone, along the last axis."""
    weights = torch.randn(2, 3, 96, generator=seeded(3))
    blocks, scales = quantize(weights)
    assert (blocks.shape, scales.shape) == ((2, 3, 3, 16), (2, 3, 3))
    part_blocks, part_scales = quantize(weights[1, 2, 32:64])
    assert torch.equal(blocks[1, 2, 1], part_blocks[0])
    assert torch.equal(scales[1, 2, 1], part_scales[0])


def test_a_parameter_can_be_quantized() -> None:
    weight = torch.nn.Parameter(torch.randn(2, 32, generator=seeded()))
    blocks, scales = quantize(weight)
    assert not blocks.requires_grad
    assert not scales.requires_grad


NOT_FINITE = (
    "MXFP4 has no infinity and one NaN per block: make all weights finite."  # what, and what to do
)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weights = torch.ones(3, 64)
    weights[1, 40] = bad
    with pytest.raises(ShapeError) as problem:
        quantize(weights)
    assert str(problem.value) == NOT_FINITE


@pytest.mark.parametrize(
    ("weights", "got"),
    [
        (torch.zeros(3, 33), "torch.float32 [3, 33]"),
        (torch.zeros(31), "torch.float32 [31]"),
        (torch.tensor(1.0), "torch.float32 []"),
        (torch.zeros(2, 32, dtype=torch.int64), "torch.int64 [2, 32]"),
        (torch.zeros(2, 32, dtype=torch.uint8), "torch.uint8 [2, 32]"),
    ],
    ids=["33 wide", "31 wide", "no axis", "integers", "bytes"],
)
def test_rows_that_cannot_be_cut_into_blocks_are_refused(weights: Tensor, got: str) -> None:
    with without_type_checks(), pytest.raises(ShapeError) as problem:
        quantize(weights)
    assert str(problem.value) == (
        "quantize needs floating-point rows whose length is a multiple of 32, got "
        f"{got}. Pad the last axis with zeros."
    )
