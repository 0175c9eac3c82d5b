"""What `measure` counts and what it leaves out; no test looks at how fast anything is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptoss_lite as gl
from gptoss_lite import account, bench, dispatch
from gptoss_lite.dispatch import ways_taken
from gptoss_lite.errors import ShapeError
from gptoss_lite.kernels import decode
from gptoss_lite.presets import GPT_OSS_NANO
from gptoss_lite.synthetic import write_synthetic

CONFIG = GPT_OSS_NANO.but(n_layers=3, vocab_size=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(CONFIG, tmp_path_factory.mktemp("b") / "noise", progress=False)


@pytest.fixture
def model(folder: Path) -> gl.Transformer:
    return gl.load(folder, device="cpu", progress=False)


def test_medians_of_the_repeats_count_and_the_first_pass_does_not(
    model: gl.Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = iter([(9.0, 5.0), (2.0, 0.5), (1.0, 0.8), (4.0, 0.4)])
    lengths = []

    def timed_pass(
        _: Any, prompt: Any, new: Any, context: int | None, is_first: bool = False
    ) -> tuple[float, float]:
        lengths.append((prompt.shape[1], new.shape[1], context, is_first))
        return next(scripted)

    monkeypatch.setattr(bench, "_timed_pass", timed_pass)
    monkeypatch.setattr(bench, "measured_bandwidth", lambda device, threads=None: 1e9)
    result = bench.measure(model, prompt_tokens=10, new_tokens=4, context_tokens=50, repeats=3)
    assert lengths == [(10, 1, 50, True), *[(10, 4, 50, False)] * 3]
    assert (result.first_prefill_s, result.first_decode_s) == (9, 5)
    assert result.prefill_s == [2, 1, 4]
    assert result.prefill_tokens_per_s == 10 / 2
    assert result.decode_tokens_per_s == 4 / 0.5
    read = sum(account.step_bytes(CONFIG, 54).values())
    assert result.bytes_per_token == read
    assert result.share_of_limit == pytest.approx(8 * read / 1e9)


def test_memory_is_read_before_the_probe_takes_its_own(
    model: gl.Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    for name, value in (("peak_memory_bytes", 5), ("measured_bandwidth", 1e9), ("_peak_rss", 7)):
        record = lambda *_, name=name, value=value: order.append(name) or value  # noqa: E731
        monkeypatch.setattr(bench, name, record)
    result = bench.measure(model, prompt_tokens=2, new_tokens=2, repeats=1)
    assert order == ["peak_memory_bytes", "_peak_rss", *["measured_bandwidth"] * 2]
    assert (result.peak_memory_bytes, result.peak_rss_bytes) == (5, 7)


@pytest.mark.parametrize("length", [1, 20, 200])
def test_a_filled_cache_is_as_if_that_many_tokens_had_been_read(
    model: gl.Transformer, length: int
) -> None:
    """Up to past the window of 32, and on from there."""
    filled, read = bench._filled_cache(model, length), gl.KVCache(CONFIG)
    tokens = torch.arange(length)[None] % 200
    with torch.no_grad():
        model(tokens, read)
        for cache in (filled, read):
            assert cache.n_bytes == account.kv_bytes(CONFIG, length)
            assert cache.n_seen == length
            assert model(tokens[:, :1], cache).isfinite().all()
            assert cache.n_bytes == account.kv_bytes(CONFIG, length + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cache_takes_the_bytes_that_were_predicted(folder: Path, dtype: torch.dtype) -> None:
    """After a text, past the window, and in the caches that are timed."""
    model = gl.load(folder, dtype=dtype, device="cpu", progress=False)
    cache, dense = gl.KVCache(CONFIG), str(dtype).removeprefix("torch.")
    assert len(list(gl.generate(model, range(40), max_new_tokens=21, cache=cache))) == 21
    assert cache.n_bytes == account.fit(CONFIG, 1e9, context_tokens=60, dense=dense).kv_bytes
    weights_alone, everything = (bench.bytes_read_per_token(model, n) for n in (0, 60))
    assert cache.n_bytes == everything - weights_alone
    filled = bench._filled_cache(model, 60)
    assert filled.n_bytes == cache.n_bytes
    with torch.no_grad():
        assert model(torch.ones(1, 1, dtype=torch.long), filled).isfinite().all()


def test_the_context_is_the_prompts_unless_another_is_given(model: gl.Transformer) -> None:
    result = bench.measure(model, prompt_tokens=7, new_tokens=2, repeats=1)
    assert result.context_tokens == 7
    assert result.bytes_per_token == sum(account.step_bytes(CONFIG, 9).values())
    assert result.answer_tokens_per_s > 0
    assert result.backends["apply_experts"] == ["plain"]
    assert result.first_token_s is None
    assert "load " not in str(result)


def test_recorded_steps_are_timed_as_generate_runs_them(
    model: gl.Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording one counts in the first pass and in no rate."""
    read: list[int] = []
    seconds = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # prompt, recording, steps; and again

    class Counted(decode.Decoder):
        def __call__(self, token: int) -> torch.Tensor:
            read.append(self.n_seen)
            return super().__call__(token)

    def timed(run: Callable[[], object], device: torch.device) -> float:
        run()
        return next(seconds)

    monkeypatch.setattr(decode, "why_not", lambda model: None)
    monkeypatch.setattr(decode, "Decoder", Counted)
    monkeypatch.setattr(bench, "_timed", timed)
    monkeypatch.setattr(bench, "measured_bandwidth", lambda device, threads=None: 1e9)
    result = bench.measure(model, prompt_tokens=7, new_tokens=16, context_tokens=40, repeats=1)
    assert (result.first_prefill_s, result.first_decode_s) == (1, 2)
    assert (result.prefill_s, result.decode_s) == ([4], [6])
    assert read[:19] == [40, 41, *range(40, 57)]  # a decoder a pass, and one step beforehand
    assert read[19:] == list(range(7, 7 + 17))  # and `generate`'s own


@pytest.mark.parametrize(
    "wrong",
    [{"prompt_tokens": 0}, {"new_tokens": 0}, {"repeats": 0}, {"context_tokens": 0}],
)
def test_nothing_to_time_is_refused(model: gl.Transformer, wrong: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="give at least 1"):
        bench.measure(model, **wrong)


def test_loading_is_timed_to_the_first_logits(folder: Path) -> None:
    def open_slowly() -> gl.Transformer:
        time.sleep(0.2)
        return gl.load(folder, device="cpu", progress=False)

    result = bench.measure_source(open_slowly, prompt_tokens=2, new_tokens=1, repeats=1)
    assert result.load_s is not None
    assert result.first_token_s is not None
    assert 0.2 <= result.load_s < result.first_token_s
    assert f"{result.load_s:.2f} s" in str(result)


def test_pages_of_files_are_told_from_other_memory(tmp_path: Path) -> None:
    if bench._mapped_bytes() is None:
        pytest.skip("this system does not say")
    size = 2**25
    (tmp_path / "zeros").write_bytes(bytes(size))
    before = bench._mapped_bytes()
    mapped = torch.from_file(str(tmp_path / "zeros"), size=size, dtype=torch.uint8)
    assert int(mapped.sum()) == 0  # now every page has been read
    after_file = bench._mapped_bytes()
    held = torch.ones(size, dtype=torch.uint8)
    after_memory = bench._mapped_bytes()
    # To 10 %: other pages of libraries come and go.
    assert after_file - before == pytest.approx(size, rel=0.1)
    assert abs(after_memory - after_file) < 0.1 * held.nbytes


def test_the_probe_uses_the_threads_it_is_told_and_gives_them_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(bench, "PROBE_BYTES", 2**20)
    threads_now = lambda run, device: seen.append(torch.get_num_threads()) or 2.0  # noqa: E731
    monkeypatch.setattr(bench, "_timed", threads_now)
    usual = torch.get_num_threads()
    speed = bench.measured_bandwidth(torch.device("cpu"), threads=usual + 1)
    assert set(seen) == {usual + 1}
    assert torch.get_num_threads() == usual
    assert speed == bench.PROBE_PASSES * 2**20 / 2


# --- which backend ran ---------------------------------------------------------------------------


def test_ways_taken_names_the_backend_and_leaves_no_trace(model: gl.Transformer) -> None:
    tokens = torch.arange(5)[None]
    before = {name: (op.plain, dict(op.fast)) for name, op in dispatch._OPS.items()}
    with torch.no_grad():
        _, usual = ways_taken(lambda: model(tokens))
        gl.use_backend("plain")
        try:
            logits, plain = ways_taken(lambda: model(tokens))
        finally:
            gl.use_backend("auto")
    assert logits.shape == (1, 5, 200)
    assert usual["dequantize"] == ["words"]
    assert {way for ways in plain.values() for way in ways} == {"plain"}

    def fail() -> None:
        raise KeyError("on the way")

    with pytest.raises(KeyError):
        ways_taken(fail)
    assert {name: (op.plain, dict(op.fast)) for name, op in dispatch._OPS.items()} == before


def test_a_processor_has_a_name() -> None:
    assert bench.cpu_name().strip()
