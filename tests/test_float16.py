"""float16 for GPUs without bfloat16: the residual stream may pass 65,504, its largest number."""

from pathlib import Path

import pytest
import torch
from torch import nn

import gptoss_lite as gl
from gptoss_lite.kernels.decode import Decoder
from gptoss_lite.linear import Linear
from tests.hostile import GPT2, GPT_OSS_MXFP4, QWEN3, TOLERANCE, hostile, tokens

HUGE = 90_000.0  # what one feature of the stream gets in the first layer


def saved(config: gl.ModelConfig, folder: Path) -> Path:
    """Write a model whose first layer adds a number that float16 cannot hold."""
    model = hostile(config)
    with torch.no_grad():
        down = model.blocks[0].ffn.down
        if down.bias is not None:
            down.bias[..., 5] = HUGE
        else:
            down.weight[:, 5] *= HUGE
            model.blocks[0].ffn.up.weight[:, config.d_ff :] *= 4  # weights must fit float16
    return gl.save_checkpoint(model, folder)


def rounded(model: gl.Transformer) -> gl.Transformer:
    """Round what a float16 model holds in float16, and nothing else: what it must compute."""
    for part in model.modules():
        if isinstance(part, nn.Embedding | Linear):
            part.weight.data = part.weight.data.half().float()
    for name, parameter in model.named_parameters():
        if name.endswith(("up.weight", "down.weight", "positions.weight")):
            parameter.data = parameter.data.half().float()
    return model


@pytest.mark.parametrize("config", [GPT2, GPT_OSS_MXFP4, QWEN3])
def test_a_stream_past_float16(config: gl.ModelConfig, tmp_path: Path) -> None:
    folder = saved(config, tmp_path / "model")
    text = tokens(config, 1, 30)
    half = gl.load(folder, dtype=torch.float16, device="cpu", progress=False)
    exact = rounded(gl.load(folder, dtype=torch.float32, device="cpu", progress=False))
    assert half.embed.weight.dtype == torch.float16
    with torch.no_grad(), gl.trace(half, "resid") as seen:
        got = half(text)
    assert got.dtype == torch.float32
    assert seen["blocks.0.resid"].abs().max() > 65_504
    with torch.no_grad():
        torch.testing.assert_close(got, exact(text), rtol=TOLERANCE, atol=TOLERANCE)
        naive = gl.load(folder, dtype=torch.float32, device="cpu", progress=False).half()
        assert not naive(text).isfinite().all()


def test_a_float16_model_decodes(tmp_path: Path) -> None:
    """With its cache, and with the buffers of a recorded step, which are float32 as well."""
    folder = saved(GPT_OSS_MXFP4, tmp_path / "model")
    text = tokens(GPT_OSS_MXFP4, 1, 30)
    model = gl.load(folder, dtype=torch.float16, device="cpu", progress=False)
    with torch.no_grad():
        want, cache = model(text)[0], gl.KVCache(model.config)
        model.hidden(text[:, :12], cache)
        decoder = Decoder(model, cache, spare=4)
        got = torch.stack([decoder(int(token)) for token in text[0, 12:]])
        torch.testing.assert_close(got, want[12:], rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(model(text[:, 12:], cache)[0], want[12:], rtol=0, atol=TOLERANCE)


def test_bfloat16_and_float32_models_stay_as_they_were(tmp_path: Path) -> None:
    folder = saved(GPT_OSS_MXFP4, tmp_path / "model")
    for dtype in (torch.bfloat16, torch.float32):
        model = gl.load(folder, dtype=dtype, device="cpu", progress=False)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model(tokens(GPT_OSS_MXFP4, 1, 9)).dtype == dtype
