import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptoss_lite import ModelConfig, Transformer, YarnConfig
from gptoss_lite.errors import ShapeError
from gptoss_lite.positions import (
    LearnedPositions,
    Rotation,
    frequencies,
    rope_frequencies,
    rotate,
    yarn_ramp,
)
from gptoss_lite.presets import PRESETS
from tests.hostile import GPT2, GPT_OSS, seeded

GOLDEN = json.loads((Path(__file__).parent / "golden" / "yarn.json").read_text(encoding="utf-8"))


# --- the loops -----------------------------------------------------------------------------------


def yarn_by_hand(head_dim: int, theta: float, yarn: YarnConfig) -> tuple[list[float], float]:
    """Compute YaRN's frequencies and attention factor, one pair at a time, in float64."""

    def pair(turns: float) -> float:
        wavelength = yarn.original_context / turns
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(yarn.beta_fast), pair(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if high == low else high
    frequency = []
    for i in range(head_dim // 2):
        keep = 1 - min(max((i - low) / (high - low), 0), 1)
        plain = theta ** (-2 * i / head_dim)
        frequency.append(plain * keep + plain / yarn.factor * (1 - keep))
    return frequency, 0.1 * math.log(yarn.factor) + 1


def rotate_by_hand(x: list[float], position: int, frequency: list[float]) -> list[float]:
    """Turn the pairs (i, i + half) of one head's vector."""
    half = len(x) // 2
    out = [0.0] * len(x)
    for i in range(half):
        c, s = math.cos(position * frequency[i]), math.sin(position * frequency[i])
        out[i] = x[i] * c - x[i + half] * s
        out[i + half] = x[i + half] * c + x[i] * s
    return out


# --- frequencies ---------------------------------------------------------------------------------


def test_frequencies_of_gpt_oss_are_the_published_ones() -> None:
    inv_freq, attention_factor = frequencies(PRESETS["gpt-oss-20b"])
    assert attention_factor == GOLDEN["attention_factor"]
    torch.testing.assert_close(inv_freq, torch.tensor(GOLDEN["inv_freq"]), rtol=2e-6, atol=0)


def test_ramp_of_gpt_oss_runs_between_the_published_pairs() -> None:
    """Pairs 0 to 8 keep their frequency, 18 and on are slowed 32 times, the nine between blend."""
    ramp = yarn_ramp(64, 150_000.0, YarnConfig(32.0, 4_096))
    low, high = GOLDEN["low"], GOLDEN["high"]
    expected = [min(max((i - low) / (high - low), 0), 1) for i in range(32)]
    torch.testing.assert_close(ramp, torch.tensor(expected), rtol=1e-6, atol=1e-7)
    assert ramp[8] == 0
    assert 0 < ramp[9] < ramp[17] < 1
    assert ramp[18] == 1


def test_rounding_the_ramp_changes_pair_17_by_three_quarters() -> None:
    """The mistake that several engines made with gpt-oss."""
    right, _ = frequencies(PRESETS["gpt-oss-20b"])
    rounded = YarnConfig(32.0, 4_096, truncate=True)
    wrong, _ = frequencies(PRESETS["gpt-oss-20b"].but(yarn=rounded))
    assert (wrong[17] / right[17] - 1).abs() == pytest.approx(0.76, abs=0.005)


YARNS = {
    "hostile": (16, 50.0, GPT_OSS.yarn),
    "published": (64, 150_000.0, YarnConfig(32.0, 4_096)),
    "published, rounded": (64, 150_000.0, YarnConfig(32.0, 4_096, truncate=True)),
    "nano": (32, 150_000.0, YarnConfig(4.0, 256)),
    "a step": (16, 50.0, YarnConfig(8.0, 16, 5.0, 3.25, truncate=True)),
    "ends before pair 0": (16, 50.0, YarnConfig(8.0, 1)),
    "starts past the last pair": (8, 10.0, YarnConfig(8.0, 10**6)),
    "factor 1": (16, 50.0, YarnConfig(1.0, 16)),
}


@pytest.mark.parametrize("name", YARNS)
def test_yarn_equals_the_loop(name: str) -> None:
    head_dim, theta, yarn = YARNS[name]
    config = GPT_OSS.but(head_dim=head_dim, rope_theta=theta, yarn=yarn)
    inv_freq, attention_factor = frequencies(config)
    expected, expected_factor = yarn_by_hand(head_dim, theta, yarn)
    assert attention_factor == pytest.approx(expected_factor, rel=1e-12)
    torch.testing.assert_close(inv_freq, torch.tensor(expected), rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", YARNS)
def test_yarn_equals_transformers_to_the_last_bit(name: str) -> None:
    """The published models were run with these float32 numbers."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    head_dim, theta, yarn = YARNS[name]
    theirs = transformers.GptOssConfig(
        head_dim=head_dim,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": yarn.factor,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "truncate": yarn.truncate,
            "original_max_position_embeddings": yarn.original_context,
        },
        max_position_embeddings=int(yarn.factor * yarn.original_context),
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, device="cpu")
    inv_freq, attention_factor = frequencies(
        GPT_OSS.but(head_dim=head_dim, rope_theta=theta, yarn=yarn)
    )
    assert torch.equal(inv_freq, expected)
    assert attention_factor == expected_factor


def test_without_yarn_the_frequencies_are_plain_and_the_factor_one() -> None:
    inv_freq, attention_factor = frequencies(GPT_OSS.but(yarn=None))
    assert torch.equal(inv_freq, rope_frequencies(16, 50.0))
    assert attention_factor == 1.0
    expected = torch.tensor([50.0 ** (-2 * i / 16) for i in range(8)])
    torch.testing.assert_close(inv_freq, expected, rtol=1e-6, atol=0)


def test_a_model_with_a_learned_table_does_not_rotate() -> None:
    cos, sin = Rotation(GPT2)(torch.tensor([0, 5, 60]))
    x = torch.randn(1, 2, 3, GPT2.head_dim, generator=seeded())
    assert torch.equal(rotate(x, cos, sin), x)


# --- rotation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("yarn", [None, GPT_OSS.yarn], ids=["rope", "yarn"])
def test_rotation_equals_the_loop(yarn: YarnConfig | None) -> None:
    config = GPT_OSS.but(yarn=yarn)
    positions = torch.tensor([0, 1, 17, 100])
    x = torch.randn(2, 3, 4, 16, generator=seeded(3))
    got = rotate(x, *Rotation(config)(positions))
    inv_freq, factor = frequencies(config)
    expected = [
        [
            [
                [factor * value for value in rotate_by_hand(row, p, inv_freq.tolist())]
                for row, p in zip(head, positions.tolist(), strict=True)
            ]
            for head in sequence
        ]
        for sequence in x.tolist()
    ]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@given(
    seed=st.integers(0, 999),
    shift=st.integers(-5, 2_000),
    distance=st.integers(0, 500),
    yarn=st.sampled_from([None, GPT_OSS.yarn]),
)
def test_shifting_both_positions_leaves_the_score(
    seed: int, shift: int, distance: int, yarn: YarnConfig | None
) -> None:
    """A score depends on the distance only."""
    rotation = Rotation(GPT_OSS.but(yarn=yarn))
    q, k = torch.randn(2, 1, 1, 16, generator=seeded(seed))

    def score(of_q: int, of_k: int) -> float:
        turned_q = rotate(q, *rotation(torch.tensor([of_q])))
        turned_k = rotate(k, *rotation(torch.tensor([of_k])))
        return (turned_q * turned_k).sum().item()

    assert score(10 + distance, 10) == pytest.approx(
        score(10 + distance + shift, 10 + shift), abs=5e-3
    )


@given(seed=st.integers(0, 999), position=st.integers(0, 131_071))
def test_rotation_keeps_lengths_but_for_the_attention_factor(seed: int, position: int) -> None:
    rotation = Rotation(GPT_OSS)
    x = torch.randn(1, 1, 16, generator=seeded(seed))
    turned = rotate(x, *rotation(torch.tensor([position])))
    assert turned.norm().item() == pytest.approx(
        x.norm().item() * rotation.attention_factor, rel=1e-5
    )


def test_position_zero_is_not_turned_but_scaled() -> None:
    rotation = Rotation(GPT_OSS)
    x = torch.randn(1, 1, 16, generator=seeded())
    assert torch.equal(rotate(x, *rotation(torch.tensor([0]))), x * rotation.attention_factor)


@pytest.mark.parametrize("position", [127, 4_095, 131_071])
def test_angles_are_those_of_float32(position: int) -> None:
    """A float64 table would differ by 2.5e-3 in the cosine at the end of the context."""
    cos, sin = Rotation(PRESETS["gpt-oss-nano"])(torch.tensor([position]))
    inv_freq, factor = frequencies(PRESETS["gpt-oss-nano"])
    angles = (torch.tensor([[position]], dtype=torch.float32) * inv_freq).double()
    assert cos.dtype == sin.dtype == torch.float32
    expected_cos, expected_sin = angles.cos() * factor, angles.sin() * factor
    torch.testing.assert_close(cos.double(), expected_cos, rtol=0, atol=3e-7)
    torch.testing.assert_close(sin.double(), expected_sin, rtol=0, atol=3e-7)


def test_casting_the_model_does_not_round_its_frequencies() -> None:
    model = Transformer(GPT_OSS).to(torch.bfloat16)
    assert torch.equal(model.rotation.inv_freq, frequencies(GPT_OSS)[0])
    cos, _ = model.rotation(torch.tensor([77]))
    assert cos.dtype == torch.float32
    assert not [name for name in model.state_dict() if "inv_freq" in name]


def test_frequencies_are_real_even_in_a_model_without_storage() -> None:
    """Weights are loaded into a model made on the meta device; its frequencies must exist."""
    with torch.device("meta"):
        model = Transformer(GPT_OSS)
    assert torch.equal(model.rotation.inv_freq, frequencies(GPT_OSS)[0])


def test_rotation_takes_the_dtype_of_what_it_turns() -> None:
    x = torch.randn(1, 3, 16, generator=seeded()).bfloat16()
    cos, sin = Rotation(GPT_OSS)(torch.arange(3))
    turned = rotate(x, cos, sin)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x, cos.bfloat16().float(), sin.bfloat16().float()))


# --- the learned table ---------------------------------------------------------------------------


def test_learned_positions_are_rows_of_the_table() -> None:
    table = LearnedPositions(GPT2)
    table.weight.data = torch.randn(61, 30, generator=seeded())
    assert torch.equal(table(torch.tensor([0, 7, 60])), table.weight[[0, 7, 60]])


@pytest.mark.parametrize(("config", "length"), [(GPT2, 62), (GPT2.but(context=4), 9)])
def test_a_position_past_the_table_is_refused(config: ModelConfig, length: int) -> None:
    model = Transformer(config)
    with pytest.raises(ShapeError) as problem:
        model(torch.zeros(1, length, dtype=torch.long))
    assert str(problem.value) == (
        f"Position {length - 1} is past the learned table's {config.context} rows. This model "
        f"cannot read more than {config.context} tokens: shorten the prompt or generate fewer."
    )
