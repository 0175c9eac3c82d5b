"""Measure how fast a model answers, and how much of the memory's speed that uses.

A decoded token reads every weight that it uses once, so memory bandwidth divided by those bytes
is the limit. The bandwidth is measured in the same run, for only ratios within one run compare.
"""

import datetime
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from gptoss_lite import account
from gptoss_lite.cache import KVCache
from gptoss_lite.config import ModelConfig
from gptoss_lite.dispatch import ways_taken
from gptoss_lite.errors import ShapeError
from gptoss_lite.generate import generate
from gptoss_lite.kernels import decode
from gptoss_lite.model import Transformer

PROBE_BYTES = 2**29  # read to measure bandwidth; far larger than any cache
PROBE_PASSES = 4  # in a row: on a GPU, one alone is over before its launch is paid for


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
    peak_memory_bytes: int  # on the model's device
    cpu: str
    context_tokens: int  # in the cache when the first decoded token is read
    repeats: int
    backends: dict[str, list[str]]  # operation -> what computed it in one prompt and one step
    prefill_s: list[float]  # of each repeat
    decode_s: list[float]  # of each repeat, all new tokens together
    first_prefill_s: float  # the warm-up: it maps files, and builds what is built on first use
    first_decode_s: float
    answer_tokens_per_s: float  # through `generate`, so with choosing each token
    one_thread_bandwidth_bytes_per_s: float | None  # of the CPU; None on a GPU
    peak_rss_bytes: int  # of the process, mapped files that were read included
    mapped_bytes: int | None  # of it, pages of files at the end, which the system can take back
    load_s: float | None = None  # see `timed_load`
    first_token_s: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON can hold them."""
        return asdict(self)

    def __str__(self) -> str:
        """Say it in a few lines."""
        ways = ", ".join(f"{op} {'/'.join(names)}" for op, names in self.backends.items())
        gb, limit = 1e9, self.bandwidth_bytes_per_s / self.bytes_per_token
        alone = self.one_thread_bandwidth_bytes_per_s
        lines = [
            f"{self.model}, {self.dtype}, on {self.device} ({self.cpu}; {self.versions})",
            f"backends {ways}",
            f"prefill  {self.prefill_tokens_per_s:>10,.1f} tokens/s ({self.prompt_tokens} tokens; "
            f"the first time {self.first_prefill_s:.2f} s, then {median(self.prefill_s):.2f} s)",
            f"decode   {self.decode_tokens_per_s:>10,.1f} tokens/s ({self.new_tokens} tokens after "
            f"{self.context_tokens}; {self.answer_tokens_per_s:,.1f} with choosing each)",
            f"limit    {limit:>10,.1f} tokens/s: {self.bandwidth_bytes_per_s / gb:.1f} GB/s"
            + (f" ({alone / gb:.1f} with one thread)" if alone else "")
            + f" over {self.bytes_per_token / 1e6:,.1f} MB a token; "
            f"reached {self.share_of_limit:.1%}",
        ]
        if self.load_s is not None:
            lines.append(
                f"load     {self.load_s:>10.2f} s; {self.first_token_s:.2f} s to the first token"
            )
        held = f"memory   {self.peak_memory_bytes / 2**30:>10.2f} GiB at most"
        if self.mapped_bytes is not None:
            held += f"; process {self.peak_rss_bytes / 2**30:.2f} GiB, of which "
            held += f"{self.mapped_bytes / 2**30:.2f} GiB mapped files"
        return "\n".join([*lines, held])


def measure(
    model: Transformer,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    context_tokens: int | None = None,
    repeats: int = 3,
) -> Measurement:
    """Time a prompt and some decoded tokens, several times, after a first time that is not counted.

    The tokens are random: speed does not depend on them. Sampling and decoding text are left out,
    but for `answer_tokens_per_s`.

    Args:
        model: any model, on any device.
        prompt_tokens: read at once.
        new_tokens: read one by one.
        context_tokens: how many tokens are in the cache before the new ones. Those of the prompt
            if None; otherwise random keys and values, which costs no time to read.
        repeats: how often; rates are those of the median time.

    Raises:
        ShapeError: a number below 1, or more tokens than the model reads.
    """
    check_sizes(model.config, prompt_tokens, new_tokens, context_tokens, repeats)
    generator = torch.Generator().manual_seed(0)
    size = (1, prompt_tokens + new_tokens)
    tokens = torch.randint(model.config.vocab_size, size, generator=generator).to(model.device)
    prompt, new = tokens.split((prompt_tokens, new_tokens), dim=1)
    with torch.no_grad():
        first_prefill_s, first_decode_s = _timed_pass(
            model, prompt, new[:, :1], context_tokens, is_first=True
        )
        passes = [_timed_pass(model, prompt, new, context_tokens) for _ in range(repeats)]
    answer_tokens_per_s, used = ways_taken(
        lambda: _answer_rate(model, prompt[0].tolist(), new_tokens)
    )
    prefill_s, decode_s = ([times[i] for times in passes] for i in (0, 1))
    peak_memory, peak_rss, mapped = peak_memory_bytes(model.device), _peak_rss(), _mapped_bytes()
    # The probe comes last: its array would count as the model's memory.
    context = context_tokens or prompt_tokens
    bytes_per_token = bytes_read_per_token(model, context + new_tokens)
    bandwidth = measured_bandwidth(model.device)
    on_cpu = model.device.type == "cpu"
    return Measurement(
        model=model.source.name if model.source else "random weights",
        device=device_name(model.device),
        dtype=str(model.embed.weight.dtype).removeprefix("torch."),
        date=datetime.date.today().isoformat(),
        versions=f"Python {platform.python_version()}, torch {torch.__version__}",
        threads=torch.get_num_threads(),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        prefill_tokens_per_s=prompt_tokens / median(prefill_s),
        decode_tokens_per_s=new_tokens / median(decode_s),
        bytes_per_token=bytes_per_token,
        bandwidth_bytes_per_s=bandwidth,
        share_of_limit=bytes_per_token * new_tokens / median(decode_s) / bandwidth,
        peak_memory_bytes=peak_memory,
        cpu=cpu_name(),
        context_tokens=context,
        repeats=repeats,
        backends=used,
        prefill_s=prefill_s,
        decode_s=decode_s,
        first_prefill_s=first_prefill_s,
        first_decode_s=first_decode_s,
        answer_tokens_per_s=answer_tokens_per_s,
        one_thread_bandwidth_bytes_per_s=measured_bandwidth(model.device, 1) if on_cpu else None,
        peak_rss_bytes=peak_rss,
        mapped_bytes=mapped,
    )


def check_sizes(
    config: ModelConfig,
    prompt_tokens: int,
    new_tokens: int,
    context_tokens: int | None,
    repeats: int,
) -> None:
    """Refuse what `measure` would refuse, before a large model is loaded or written.

    Raises:
        ShapeError: a number below 1, or more tokens than the model reads.
    """
    for name, value in (("prompt", prompt_tokens), ("new", new_tokens)):
        if value < 1:
            raise ShapeError(f"{name}_tokens={value}: give at least 1 token to time.")
    if repeats < 1 or (context_tokens is not None and context_tokens < 1):
        raise ShapeError(f"repeats={repeats}, context_tokens={context_tokens}: give at least 1.")
    for name, before in (("prompt", prompt_tokens), ("context", context_tokens)):
        if before is not None and before + new_tokens > config.context:
            raise ShapeError(
                f"{name}_tokens={before:,} and new_tokens={new_tokens:,} after them are "
                f"{before + new_tokens:,}, but this model reads at most {config.context:,}. "
                f"Lower one of them."
            )


def measure_source(open_model: Callable[[], Transformer], **settings: int | None) -> Measurement:
    """Time the loading of a model, then do what `measure` does with these settings.

    Args:
        open_model: loads it, such as `lambda: load("gpt-oss-20b")`.
        **settings: of `measure`.
    """
    model, load_s, first_token_s = timed_load(open_model)
    result = measure(model, **settings)  # pyright: ignore[reportArgumentType]
    return replace(result, load_s=load_s, first_token_s=first_token_s)


def timed_load(open_model: Callable[[], Transformer]) -> tuple[Transformer, float, float]:
    """Open a model; return it, the seconds that took, and those until its first logits.

    Mapped weights are read from disk when first used, so the second number is the honest one. It
    is of a prompt of one token; importing torch is not in it.
    """
    start = time.perf_counter()
    model = open_model()
    load_s = time.perf_counter() - start
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device))
    _wait(model.device)
    return model, load_s, time.perf_counter() - start


# --- time ----------------------------------------------------------------------------------------


def _timed_pass(
    model: Transformer,
    prompt: Tensor,
    new: Tensor,
    context_tokens: int | None,
    is_first: bool = False,
) -> tuple[float, float]:
    """Read a prompt at once, then tokens one by one, as `generate` does; return both's seconds.

    Where steps are recorded (`kernels.decode`), recording counts in the first pass only.
    """
    cache = KVCache(model.config)
    prefill_s = _timed(lambda: model.unembed(model.hidden(prompt, cache)[:, -1:]), model.device)
    if context_tokens is not None:
        cache = _filled_cache(model, context_tokens)
    if decode.why_not(model) is not None:
        steps = new.split(1, dim=1)
        return prefill_s, _timed(lambda: [model(step, cache) for step in steps], model.device)
    ids = new[0].tolist()
    decoder = decode.Decoder(model, cache, spare=len(ids) + 1, empties=True)
    recording_s = _timed(lambda: decoder(ids[0]), model.device)
    decode_s = _timed(lambda: [decoder(token) for token in ids], model.device)
    return prefill_s, recording_s if is_first else decode_s


def _filled_cache(model: Transformer, length: int) -> KVCache:
    """Return a cache as if the model had seen `length` tokens: random keys and values."""
    cache = KVCache(model.config)
    shape = (1, model.config.n_kv_heads, length, model.config.head_dim)
    noise = torch.randn(shape, dtype=model.norm.weight.dtype, device=model.device)
    for layer in cache.layers:
        layer.append(noise, noise)
    cache.n_seen = length
    return cache


def _answer_rate(model: Transformer, prompt: list[int], new_tokens: int) -> float:
    """Return how many tokens a second `generate` yields after its first two.

    The first waits for the prompt, the second for the recording of a step, where there is one.
    """
    times = []
    for _ in generate(model, prompt, max_new_tokens=new_tokens + 2):
        times.append(time.perf_counter())
    return (len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else 0.0


def _timed(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- bytes ---------------------------------------------------------------------------------------


def bytes_read_per_token(model: Transformer, context_tokens: int) -> int:
    """Count the bytes that one decoded token reads: used weights once, and the KV cache."""
    dense = str(model.embed.weight.dtype).removeprefix("torch.")
    packed = any(buffer.dtype == torch.uint8 for buffer in model.buffers())
    experts = "mxfp4" if packed else dense
    read = account.step_bytes(model.config, context_tokens, dense=dense, experts=experts)
    return sum(read.values())


def measured_bandwidth(device: torch.device, threads: int | None = None) -> float:
    """Measure how fast a device reads memory, in bytes per second.

    Args:
        device: of the memory.
        threads: of the CPU; as many as torch uses if None.
    """
    usual = torch.get_num_threads()
    numbers = torch.ones(PROBE_BYTES // 8, dtype=torch.int64, device=device)
    torch.set_num_threads(threads or usual)
    try:
        times = [
            _timed(lambda: [numbers.sum() for _ in range(PROBE_PASSES)], device) for _ in range(3)
        ]
    finally:
        torch.set_num_threads(usual)
    return PROBE_BYTES * PROBE_PASSES / min(times)


def device_name(device: torch.device) -> str:
    """Name the device as its maker does."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def cpu_name() -> str:
    """Return the processor's name."""
    listed = Path("/proc/cpuinfo")
    text = listed.read_text() if listed.is_file() else ""
    names = re.findall(r"^model name\s*: (.+)$", text, re.M)
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process held on a device; mapped files that were read count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _peak_rss()


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the process that started this one, too
        return 1024 * int(re.findall(r"^VmHWM:\s+(\d+)", status.read_text(), re.M)[0])
    if sys.platform == "win32":
        return 0  # no counter in the standard library
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _mapped_bytes() -> int | None:
    """Return how many bytes in memory are pages of files, or None where no one says."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.is_file():
        return None
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", rollup.read_text(), re.M))
    return 1024 * (int(fields["Rss"]) - int(fields["Anonymous"]))
