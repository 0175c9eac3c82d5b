"""Every backend of the CPU, alone and at any size, computes every rung and every hostile model."""

import pytest
import torch

from gptoss_lite import LADDER, Transformer, use_backend
from gptoss_lite.attention import attend
from gptoss_lite.cache import KVCache
from gptoss_lite.dispatch import ways_taken
from gptoss_lite.kernels import build, grouped, native, sdpa
from gptoss_lite.linear import linear
from gptoss_lite.model import logits
from gptoss_lite.moe import apply_experts
from gptoss_lite.mxfp4 import dequantize
from tests.hostile import GPT2, GPT_OSS, GPT_OSS_MXFP4, QWEN3, hostile, packed, tokens

OPERATIONS = linear, apply_experts, attend, dequantize, logits
BACKENDS = "native", "step", "grouped", "sdpa", "words"
MODELS = {"GPT2": GPT2, "GPT_OSS": GPT_OSS, "GPT_OSS_MXFP4": GPT_OSS_MXFP4, "QWEN3": QWEN3}
MODELS |= {rung.name: rung.config.but(dropout=0.0, dtype="float32") for rung in LADDER[:-1]}


def read(model: Transformer, n_rows: int) -> torch.Tensor:
    """Read a prompt, then token by token: past the window, and past room for the next one."""
    ids, cache = tokens(model.config, n_rows, 37), KVCache(model.config)
    with torch.no_grad():
        steps = [model(ids[:, :25], cache)]
        steps += [model(ids[:, i : i + 1], cache) for i in range(25, 37)]
    return torch.cat(steps, 1)


@pytest.mark.parametrize("name", MODELS)
def test_backends_agree_with_plain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS[name]
    model = hostile(config.but(expert_dtype="float32")).eval()
    if is_packed := config.expert_dtype == "mxfp4":
        model = packed(model)
    use_backend("plain")
    try:
        plain = {n_rows: read(model, n_rows) for n_rows in (1, 2)}
    finally:
        use_backend("auto")
    for module, limit in ((native, "BIG_WEIGHTS"), (native, "WIDE_KEYS"), (grouped, "WIDE")):
        monkeypatch.setattr(module, limit, 0)
    monkeypatch.setattr(sdpa, "WIDE", 0)
    ran = set()
    for backend in BACKENDS:
        with monkeypatch.context() as patch:
            for operation in OPERATIONS:
                alone = {n: way for n, way in operation.fast.items() if n == backend}
                patch.setattr(operation, "fast", alone)
            for n_rows, expected in plain.items():
                got, ways = ways_taken(lambda n=n_rows: read(model, n))
                ran |= {way for names in ways.values() for way in names}
                # float32 sums in another order, through a few layers
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=backend)
    in_c = {"native"} if build.missing() is None else set()
    only_packed = ({"words"} | ({"step"} if in_c else set())) if is_packed else set()
    assert ran == {"plain", "grouped", "sdpa"} | in_c | only_packed
