"""Time the GPU's kernels and whole decoding steps at gpt-oss-20b's true widths; check their logits.

    python benchmarks/gpu_kernels.py --out gpu.json

The weights are random bytes, for speed does not depend on them. Every rate stands beside the
copying bandwidth measured in the same run. Logits are compared with the plain float32 path, on the
same bytes; the plain bfloat16 path's own error is the yardstick.
"""

import argparse
import copy
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from gptoss_lite import PRESETS, KVCache, Transformer, use_backend
from gptoss_lite.checkpoint import place
from gptoss_lite.config import ModelConfig
from gptoss_lite.generate import PREFILL_CHUNK
from gptoss_lite.kernels import decode, gpu
from gptoss_lite.linear import linear
from gptoss_lite.moe import ExpertLinear, MixtureOfExperts, apply_experts
from gptoss_lite.mxfp4 import PackedExpertLinear

DEVICE = "cuda"
CONTEXTS = (128, 1_024, 8_192)
COPY_BYTES = 2**30


def random_model(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    """Build a model on the GPU whose experts are random MXFP4 bytes."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    with torch.device("meta"):
        model = Transformer(config)

    def random_bytes(low: int, high: int, *shape: int) -> Tensor:
        options = {"generator": generator, "dtype": torch.uint8, "device": DEVICE}
        return torch.randint(low, high, shape, **options)

    for name, module in list(model.named_modules()):
        if isinstance(module, ExpertLinear):
            n_experts, n_rows, width = module.weight.shape
            rows = (n_rows // 2, 2) if name.endswith("up") else (n_rows,)
            held = [random_bytes(0, 256, n_experts, *rows, width // 32, 16)]
            held.append(random_bytes(116, 120, n_experts, *rows, width // 32))
            if name.endswith("up"):
                held = [tensor.transpose(1, 2) for tensor in held]
            bias = torch.zeros(n_experts, n_rows, device="meta")
            model.set_submodule(name, PackedExpertLinear(*held, bias))
    for name, parameter in list(model.named_parameters()):
        spread = 1.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        values = torch.randn(parameter.shape, generator=generator, device=DEVICE, dtype=dtype)
        place(model, name, 1 + 0.1 * values if "norm" in name else spread * values)
    return model.eval()


def seconds(run: Callable[[int], object], repeats: int = 50) -> float:
    """Return the median time of run(i), by the device's clock, after a warm-up.

    It includes the launch from Python: for what takes milliseconds.
    """
    for i in range(5):
        run(i)
    times = []
    for i in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(i)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def kernel_seconds(run: Callable[[int], object], n_layers: int) -> float:
    """Return the mean time of run(0) ... run(n_layers - 1), recorded as one CUDA graph.

    A launch from Python takes longer than a small kernel, a recorded one does not.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for i in range(n_layers):
            run(i)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        for i in range(n_layers):
            run(i)
    return seconds(lambda i: graph.replay()) / n_layers


def copy_bandwidth() -> float:
    """Measure bytes read and written per second by a copy."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / seconds(lambda i: target.copy_(source), 20)


def kernel_rates(model: Transformer) -> dict[str, float]:
    """Return bytes per second of each kernel; layers take turns, so that no cache helps."""
    blocks, config = list(model.blocks), model.config
    x = torch.randn(1, config.d_model, device=DEVICE, dtype=torch.bfloat16)
    rates = {}

    def one(i: int) -> MixtureOfExperts:
        ffn = blocks[i].ffn
        assert isinstance(ffn, MixtureOfExperts)
        return ffn

    n_active, n_experts = one(0).n_active, one(0).router.weight.shape[0]
    weights = torch.full((1, n_active), 1 / n_active, device=DEVICE)
    ids = torch.randperm(n_experts, device=DEVICE)[None, :n_active].contiguous()

    def moe(i: int) -> Tensor:
        ffn = one(i)
        return apply_experts(x, weights, ids, ffn.up, ffn.down, ffn.activation)

    held = sum(t.nbytes for part in (one(0).up, one(0).down) for t in part.buffers())  # pyright: ignore
    rates["experts, one token"] = held * n_active / n_experts / kernel_seconds(moe, len(blocks))
    for name in ("q", "k", "o"):
        layers = [getattr(block.attn, name) for block in blocks]
        vector = torch.randn(1, layers[0].weight.shape[1], device=DEVICE, dtype=torch.bfloat16)
        for way in ("triton", "plain"):
            function = gpu.linear_triton if way == "triton" else linear.plain
            spent = kernel_seconds(
                lambda i, f=function, m=layers, v=vector: f(v, m[i].weight, m[i].bias), len(layers)
            )
            rates[f"{name}, {way}"] = layers[0].weight.nbytes / spent
    head = model.unembed.weight
    for way, function in (("triton", gpu.linear_triton), ("plain", linear.plain)):
        spent = kernel_seconds(lambda i, f=function: f(x, head, None), 1)
        rates[f"unembedding, {way}"] = head.nbytes / spent
    return rates


def read(model: Transformer, text: Tensor) -> tuple[KVCache, float]:
    """Read a text as `generate` does; return what it leaves, and the seconds it took."""
    cache, start = KVCache(model.config), time.perf_counter()
    for chunk in text.split(PREFILL_CHUNK, dim=1):
        model.hidden(chunk, cache)
    torch.cuda.synchronize()
    return cache, time.perf_counter() - start


@torch.no_grad()
def decoding(model: Transformer, context: int) -> dict[str, float]:
    """Return tokens per second, one sequence, without sampling: recorded, and step by step."""
    text = torch.randint(1_000, (1, context), device=DEVICE)
    read(model, text)  # the first time compiles kernels
    cache, prefill = read(model, text)
    decoder = decode.Decoder(model, cache)
    recorded = seconds(lambda i: decoder(i), 40)
    loose = seconds(lambda i: model(text[:, i : i + 1], cache), 20)
    return {
        "context": context,
        "prefill_tokens_per_s": context / prefill,
        "recorded_tokens_per_s": 1 / recorded,
        "unrecorded_tokens_per_s": 1 / loose,
        "buffer_bytes": decoder.n_bytes,
    }


@torch.no_grad()
def agreement(config: ModelConfig) -> dict[str, float]:
    """Compare logits with the plain float32 path, over the window, two layers deep."""
    model = random_model(config.but(n_layers=2))
    wide = copy.deepcopy(model).float()
    text = torch.randint(config.vocab_size, (1, 200), device=DEVICE)
    use_backend("plain")
    want, plain = wide(text)[0, 150:], model(text)[0, 150:].float()
    use_backend("auto")
    cache = KVCache(model.config)
    model.hidden(text[:, :150], cache)
    decoder = decode.Decoder(model, cache)
    fast = torch.stack([decoder(int(token)).float() for token in text[0, 150:]])
    return {
        "logits_spread": want.std().item(),
        "error_plain_bfloat16": (plain - want).abs().max().item(),
        "error_fast": (fast - want).abs().max().item(),
        "argmax_agreement_plain_bfloat16": same(plain, want),
        "argmax_agreement_fast": same(fast, want),
    }


def same(one: Tensor, other: Tensor) -> float:
    """Return the share of positions where two sets of logits have the same largest."""
    return (one.argmax(-1) == other.argmax(-1)).float().mean().item()


def main() -> int:
    """Measure, print and write JSON; exit status 1 if the fast path errs more than plain does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("--layers", type=int, default=24, help="of gpt-oss-20b's 24")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    options = parser.parse_args()
    if reason := (gpu.no_cuda() or gpu.missing()):
        print(f"This benchmark needs an NVIDIA GPU with Triton: {reason}.", file=sys.stderr)
        return 2
    config = PRESETS["gpt-oss-20b"]
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "layers": options.layers,
        "logits": (close := agreement(config)),
    }
    model = random_model(config.but(n_layers=options.layers))
    with torch.no_grad():
        bandwidth, rates = copy_bandwidth(), kernel_rates(model)
    found["copy_bytes_per_s"] = bandwidth
    found["kernels"] = {
        name: {"bytes_per_s": rate, "share_of_copy": rate / bandwidth}
        for name, rate in rates.items()
    }
    torch.cuda.reset_peak_memory_stats()
    found["decoding"] = [decoding(model, context) for context in CONTEXTS]
    found["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    text = json.dumps(found, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    # sums in float32 round less often than the plain path does, so it must not be further off
    return int(close["error_fast"] > 1.5 * close["error_plain_bfloat16"])


if __name__ == "__main__":
    sys.exit(main())
