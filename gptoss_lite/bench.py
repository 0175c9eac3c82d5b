"""Measure how fast a model answers, and how much of the memory's speed that uses.

A decoded token reads every weight that it uses once, so memory bandwidth divided by those bytes
is the limit. The bandwidth is measured in the same run, for only ratios within one run compare.
"""

import datetime
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch

from gptoss_lite import account
from gptoss_lite.cache import KVCache
from gptoss_lite.model import Transformer

PROBE_BYTES = 2**28  # read to measure bandwidth; far larger than any cache


@dataclass(frozen=True)
class Measurement:
    """One run of `measure`; rates are medians, bytes are predictions from the config."""

    model: str
    device: str
    dtype: str
    date: str
    versions: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    bytes_per_token: int
    bandwidth_bytes_per_s: float
    share_of_limit: float  # decode rate over bandwidth / bytes_per_token
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


def measure(model: Transformer, *, prompt_tokens: int = 128, new_tokens: int = 32) -> Measurement:
    """Time one prompt and some decoded tokens.

    The tokens are random: speed does not depend on them. Sampling and decoding text are left out.

    Args:
        model: any model, on any device.
        prompt_tokens: read at once.
        new_tokens: read one by one after it; the rate is that of the median step.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    size = (1, prompt_tokens + new_tokens)
    tokens = torch.randint(config.vocab_size, size, generator=generator).to(model.device)
    with torch.no_grad():
        model(tokens[:, :2], KVCache(config))  # warm up: first calls allocate and map
        cache = KVCache(config)
        prefill_s = _timed(lambda: model.hidden(tokens[:, :prompt_tokens], cache), model.device)
        steps = [tokens[:, i : i + 1] for i in range(prompt_tokens, tokens.shape[1])]
        decode_s = median(_timed(lambda t=t: model(t, cache), model.device) for t in steps)
    bytes_per_token = bytes_read_per_token(model, prompt_tokens + new_tokens)
    bandwidth = measured_bandwidth(model.device)
    return Measurement(
        model=model.source.name if model.source else "random weights",
        device=device_name(model.device),
        dtype=str(model.embed.weight.dtype).removeprefix("torch."),
        date=datetime.date.today().isoformat(),
        versions=f"Python {platform.python_version()}, torch {torch.__version__}",
        threads=torch.get_num_threads(),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        prefill_tokens_per_s=prompt_tokens / prefill_s,
        decode_tokens_per_s=1 / decode_s,
        bytes_per_token=bytes_per_token,
        bandwidth_bytes_per_s=bandwidth,
        share_of_limit=bytes_per_token / decode_s / bandwidth,
        peak_memory_bytes=peak_memory_bytes(model.device),
    )


def _timed(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bytes_read_per_token(model: Transformer, context_tokens: int) -> int:
    """Count the bytes that one decoded token reads: used weights once, and the KV cache."""
    config, table = model.config, account.parameter_table(model.config)
    dense = str(model.embed.weight.dtype).removeprefix("torch.")
    packed = any(buffer.dtype == torch.uint8 for buffer in model.buffers())
    experts = "mxfp4" if packed else dense
    idle_bits = 0.0
    if config.moe:
        idle_share = 1 - config.moe.n_active / config.moe.n_experts
        idle_bits += table["expert_weights"] * idle_share * account.BITS[experts]
    if not config.tied:  # the head is read whole, the embedding only in one row
        idle_bits += table["embedding"] * account.BITS[dense]
    held = account.weight_bytes(config, dense=dense, experts=experts)
    return held - int(idle_bits / 8) + account.kv_bytes(config, context_tokens, dtype=dense)


def measured_bandwidth(device: torch.device) -> float:
    """Measure how fast this device reads memory, in bytes per second."""
    numbers = torch.ones(PROBE_BYTES // 4, device=device)
    times = [_timed(numbers.sum, device) for _ in range(5)]
    return PROBE_BYTES / min(times)


def device_name(device: torch.device) -> str:
    """Name the device as its maker does."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process held on a device; mapped files that were read count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # no counter in the standard library
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
