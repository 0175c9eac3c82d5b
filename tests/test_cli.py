"""The command line: each command on small checkpoints, and one sentence for each mistake."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gptoss_lite import account, backends, cli, hub, save_checkpoint
from gptoss_lite.config import ModelConfig, MoEConfig
from gptoss_lite.errors import ConfigError
from gptoss_lite.generate import generate
from gptoss_lite.presets import GPT_OSS_NANO
from tests.hostile import hostile

SMALL = ["--max-new-tokens", "5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random model with the bundled tokenizer beside it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    config = GPT_OSS_NANO.but(n_layers=2, d_model=32, d_ff=32, moe=MoEConfig(5, 3, True))
    save_checkpoint(hostile(config), path)
    tokenizer = hub.find("gpt-oss-nano", want="tokenizer") / "tokenizer.json"
    (path / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return path


def run(capsys, *words: object) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_generate_prints_a_continuation(capsys, folder):
    status, text, _ = run(capsys, "generate", "Hello", "--model", folder, *SMALL)
    assert status == 0
    assert text.strip()
    assert run(capsys, "generate", "Hello", "--model", folder, *SMALL)[1] == text


def test_a_seed_repeats_a_sampled_text(capsys, folder):
    words = ("generate", "Hello", "--model", folder, *SMALL, "--temperature", "2", "--seed")
    assert run(capsys, *words, 1)[1] == run(capsys, *words, 1)[1]
    assert run(capsys, *words, 1)[1] != run(capsys, *words, 2)[1]


def test_convert_there_and_back(capsys, tmp_path):
    there, back = tmp_path / "nano" / "original", tmp_path / "back"
    status, text, _ = run(capsys, "convert", "gpt-oss-nano", there, "--layout", "original")
    assert status == 0
    assert text.endswith(
        "config.json, dtypes.json, generation_config.json, model.safetensors, tokenizer.json\n"
    )
    assert run(capsys, "convert", there, back)[0] == 0
    name = "model.safetensors"
    bundled = hub.find("gpt-oss-nano", want="weights")
    assert (back / name).read_bytes() == (bundled / name).read_bytes()
    for name in ("tokenizer.json", "generation_config.json"):
        assert (back / name).read_bytes() == (bundled / name).read_bytes()


def test_convert_takes_all_of_a_tokenizer_along(capsys, folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    names = {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    for name in names:
        (source / name).write_text(name)
    (source / "README.md").write_text("about the source only")
    status, _, _ = run(capsys, "convert", source, tmp_path / "new")
    assert status == 0
    new = {path.name for path in (tmp_path / "new").iterdir()}
    assert new == {path.name for path in source.iterdir()} - {"README.md"}
    assert all((tmp_path / "new" / name).read_text() == name for name in names)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("file", "cannot be written to: Not a directory. Name a new folder."),
        ("file/below", "cannot be written to: Not a directory. Name a new folder."),
        ("x" * 5_000, "cannot be written to: File name too long. Name a new folder."),
        ("full", "is not empty: it holds mine.txt. Name a new folder, or empty it."),
    ],
    ids=["file", "below a file", "long name", "folder with a file"],
)
def test_convert_looks_where_to_first(capsys, monkeypatch, tmp_path, target, sentence):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    monkeypatch.setattr(cli, "load", None)  # nothing is loaded
    status, _, errors = run(capsys, "convert", "gpt-oss-nano", tmp_path / target)
    assert (status, errors) == (2, f"gptoss-lite: {tmp_path / target} {sentence}\n")


def test_convert_keeps_what_is_there(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    status, _, errors = run(capsys, "convert", "gpt-oss-nano", tmp_path)
    assert (status, "is not empty" in errors) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_chat_answers_on_the_bundled_model(capsys):
    status, text, _ = run(capsys, "chat", "What is 12 + 35?", "--effort", "low")
    assert status == 0
    assert text.startswith("final: ")


def test_chat_shows_channels_and_no_special_tokens(capsys):
    _, text, _ = run(capsys, "chat", "What is 38 + 15?", "--effort", "medium")
    analysis, final = text.splitlines()
    assert analysis.startswith("analysis: Ones: 8+5=13")
    assert final == "final: 53"


def test_text_that_is_still_coming_only_grows():
    """Each prefix of a reply shows a prefix of what the whole reply shows."""
    reply = (
        "<|channel|>analysis<|message|>a < b, | and <|end|><|start|>assistant<|channel|>final"
        "<|message|>done<|return|>"
    )
    pieces = re.findall(r"<\|\w+\|>|[^<]+|<", reply)
    whole = cli._as_channels(reply)
    assert whole == "analysis: a < b, | and \nfinal: done"
    for n in range(len(pieces)):
        assert whole.startswith(cli._as_channels("".join(pieces[:n])))


def test_chat_without_a_question_holds_a_conversation(capsys, monkeypatch, folder):
    asked = iter(["first", "second", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    status, text, _ = run(capsys, "chat", "--model", folder, *SMALL)
    assert status == 0
    assert len(text.strip().splitlines()) >= 2


def test_a_conversation_reads_only_what_is_new(capsys, monkeypatch, folder):
    """The same replies as without a cache, though each turn goes back to the one before."""
    asked, turns = iter(["first", "second", "third", ""]), []

    def watched(model, prompt, *, cache, **settings):
        seen = cache.n_seen
        reply = list(generate(model, prompt, cache=cache, **settings))
        assert reply == list(generate(model, prompt, **settings))
        turns.append((seen, len(prompt)))
        return iter(reply)

    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    monkeypatch.setattr(cli, "generate", watched)
    words = ("chat", "--model", folder, "--dtype", "float32", *SMALL, "--lookup", "5")
    assert run(capsys, *words)[0] == 0
    assert [seen for seen, _ in turns] == [0, *(length + 4 for _, length in turns[:2])]


def test_lookup_changes_no_text(capsys, folder):
    words = ("generate", "one two one two one two", "--model", folder, "--dtype", "float32", *SMALL)
    assert run(capsys, *words, "--lookup", "8") == run(capsys, *words)
    status, _, problem = run(capsys, *words, "--lookup", "8", "--temperature", "1")
    assert (status, "lookup=8 needs greedy text" in problem) == (2, True)


def test_inspect_lists_tensors_and_totals(capsys, folder):
    _, text, _ = run(capsys, "inspect", folder)
    assert "model.layers.*.mlp.experts.gate_up_proj_blocks  x2" in text
    assert "U8    [5, 64, 1, 16]" in text
    assert "layout: Hugging Face, MXFP4 experts" in text
    _, everything, _ = run(capsys, "inspect", folder, "--all")
    assert "model.layers.1.mlp.experts.gate_up_proj_blocks" in everything


def test_verify_accepts_a_sound_checkpoint(capsys, folder):
    status, text, _ = run(capsys, "verify", folder)
    assert status == 0
    assert text.endswith("tiny is sound.\n")
    window = GPT_OSS_NANO.sliding_window
    assert f"forward pass: [1, {window + 8}, 2048] logits" in text  # so that some keys are hidden


@pytest.mark.parametrize("kind", ["float", "scale"])
def test_verify_refuses_values_that_are_not_finite(capsys, folder, tmp_path, kind):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    path = damaged / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    layer = "model.layers.1"
    names = {"float": f"{layer}.self_attn.sinks", "scale": f"{layer}.mlp.experts.down_proj_scales"}
    start = 8 + length + header[names[kind]]["data_offsets"][0]
    content[start : start + 2] = b"\xc0\x7f" if kind == "float" else b"\xff\x80"  # NaN
    path.write_bytes(content)
    status, _, problem = run(capsys, "verify", damaged)
    assert status == 2
    assert problem.endswith("holds values that are not finite. Download it again.\n")


def test_fit_says_yes_and_no(capsys):
    _, text, _ = run(capsys, "fit", "--model", "gpt-oss-120b", "--memory", "80GB")
    assert text.startswith("gpt-oss-120b: It fits: 60.77 GiB weights + ")
    _, text, _ = run(capsys, "fit", "--memory", "12GB")
    assert "It does not fit" in text
    _, text, _ = run(capsys, "fit", "--memory", "16GB", "--json")
    assert json.loads(text)["longest_context_tokens"] == 47_275


def test_fit_reads_a_folder(capsys, folder):
    assert "It fits" in run(capsys, "fit", "--model", folder, "--memory", "2GiB")[1]


def test_trace_writes_a_file_that_says_what_it_holds(capsys, folder, tmp_path):
    out = tmp_path / "run.safetensors"
    status, text, _ = run(capsys, "trace", "Hi", "--model", folder, "--out", out, *SMALL)
    assert status == 0
    assert str(out) in text
    with safe_open(out, framework="np") as file:
        about = json.loads(file.metadata()["about"])
        assert file.get_tensor("lse").shape == (2, 8, len(about["tokens"]))
    assert about["model"] == "tiny"


def test_trace_keeps_a_lens_if_asked(capsys, folder, tmp_path):
    out = tmp_path / "run.safetensors"
    run(capsys, "trace", "Hi", "--model", folder, "--out", out, "--lens", *SMALL)
    with safe_open(out, framework="np") as file:
        about = json.loads(file.metadata()["about"])
        assert file.get_tensor("lens_rank").shape == (2, len(about["tokens"]))
    assert 0 < about["n_prompt"] < len(about["tokens"])


BRIEF = ("--prompt-tokens", 4, "--new-tokens", 3)


def test_bench_measures(capsys, folder):
    words = ("bench", "--model", folder, *BRIEF)
    text = run(capsys, *words)[1]
    for row in ("backends", "prefill", "decode", "limit", "load", "memory"):
        assert f"\n{row} " in text
    result = json.loads(run(capsys, *words, "--json")[1])
    assert 0 < result["share_of_limit"] < 1
    assert result["decode_tokens_per_s"] > 0
    assert 0 < result["load_s"] < result["first_token_s"]
    assert len(result["prefill_s"]) == len(result["decode_s"]) == result["repeats"] == 3
    assert result["backends"].keys() >= {"linear", "apply_experts", "dequantize"}


def test_bench_does_as_it_is_told(capsys, folder, tmp_path):
    threads = torch.get_num_threads()
    out = tmp_path / "speed.json"
    settings = ("--context", 40, "--repeats", 1, "--backend", "plain", "--threads", 2)
    try:
        status, text, _ = run(capsys, "bench", folder, *BRIEF, *settings, "--json", out)
    finally:
        torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert (status, result["model"] in text) == (0, True)
    assert (result["context_tokens"], result["repeats"], result["threads"]) == (40, 1, 2)
    assert {way for ways in result["backends"].values() for way in ways} == {"plain"}
    config = ModelConfig.from_hf(folder)
    assert result["bytes_per_token"] == sum(account.step_bytes(config, 43).values())
    # The next command is not bound by it.
    assert ("dequantize", "words", "tried first") in backends()


def test_bench_of_random_weights(capsys, tmp_path):
    words = ("bench", "--synthetic", "gpt-oss-nano", "--layers", 1, *BRIEF, "--repeats", 1)
    kept = tmp_path / "noise"
    assert json.loads(run(capsys, *words, "--json")[1])["model"] == "gpt-oss-nano"
    for _ in range(2):  # the second finds what the first wrote
        assert run(capsys, *words, "--folder", kept, "--json")[0] == 0
    assert "random weights: it generates noise" in run(capsys, "inspect", kept)[1]
    status, _, problem = run(capsys, *words, "--folder", kept, "--layers", 2)
    assert (status, "is not empty" in problem) == (2, True)


def test_download_prints_the_folder(capsys, monkeypatch, folder):
    monkeypatch.setattr(hub, "find", lambda source, want: folder)
    assert run(capsys, "download", "gpt-oss-20b")[1] == f"{folder}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fit", "--memory", "lots"], "'lots' is not a size. Write it like 16GB, 24GiB or 80GB."),
        (["fit", "--memory", "0GB"], "memory_bytes=0 must be positive: 16e9 is 16 GB."),
        (["inspect", "./nowhere"], "There is no folder"),
        (["chat", "hi", "--model", "gpt-oss-nan"], 'did you mean "gpt-oss-nano"?'),
        (["generate", "hi", "--top-k", "0"], "top_k=0 must be at least 1"),
        (["generate", ""], "The prompt is empty: give at least one token"),
        (["fit", "--memory", "9" * 400], "9' is more than any memory has. Write it like 16GB"),
        (["fit", "--memory", "9" * 5000], "9' is more than any memory has. Write it like 16GB"),
        (["fit", "--memory", "1GB", "--batch", "0"], "batch=0 must be at least 1."),
        (["bench", "--layers", "2"], "--layers is of random weights"),
        (["bench", "--folder", "x"], "--folder is of random weights"),
        (["bench", "--context", "5000"], "context_tokens=5,000 and new_tokens=32 after them are"),
        (["bench", "--prompt-tokens", "2000"], "2,032, but this model reads at most 1,024."),
        (["bench", "--synthetic", "gpt-oss-nano", "--context", "993"], "1,025, but this model"),
        (["bench", "gpt2", "--model", "gpt2"], "measures one model: give gpt2 or --model gpt2."),
        (["bench", "gpt2", "--synthetic", "x"], "one model: give --synthetic x or gpt2."),
        (["bench", ""], '"" is no model'),
        (["trace", "hi", "--out", ""], ". is a folder: name a file to write."),
        (["trace", "hi", "--out", "/nonexistent/x"], "/nonexistent/x cannot be written: No such"),
        (["bench", "--json", ""], ". is a folder: name a file to write."),
        (["bench", "--json", "/nonexistent/x"], "/nonexistent/x cannot be written: No such"),
        (["bench", "--new-tokens", "0"], "new_tokens=0: give at least 1 token to time."),
        (["bench", "--backend", "magic"], "No backend 'magic'. Known here: ['auto', "),
        (["bench", "--synthetic", "gpt2"], "gpt2 is not of gpt-oss's shape"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_status_2(capsys, words, sentence):
    status, out, problem = run(capsys, *words)
    assert (status, out) == (2, "")
    assert problem.startswith("gptoss-lite: ")
    assert sentence in problem
    assert "Traceback" not in problem


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bench", "--threads", "-1"], "--threads: '-1' is no whole number from 1 to 1,024."),
        (["bench", "--threads", "0"], "--threads: '0' is no whole number from 1 to 1,024."),
        (["bench", "--threads", "2.5"], "--threads: '2.5' is no whole number from 1 to 1,024."),
        (["generate", "hi", "--seed", "9" * 23], "is no whole number from 0 to 18,446,744,073,"),
        (["generate", "hi", "--effort", "low"], "unrecognized arguments: --effort low"),
    ],
)
def test_arguments_that_cannot_be_read_end_with_status_2(capsys, words, sentence):
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("words", [["trace", "hi", "--out"], ["bench", "--json"]])
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    capsys, monkeypatch, tmp_path, words
):
    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(cli, "load", loaded)
    for place in (tmp_path, tmp_path / "no" / "file", tmp_path / ("x" * 300)):
        assert run(capsys, *words, place)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_printed_though_it_cannot_be_kept(capsys, monkeypatch, folder):
    def full(self, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    words = ("bench", folder, *BRIEF, "--repeats", 1, "--json", folder / "speed.json")
    status, text, problem = run(capsys, *words)
    assert (status, "\ndecode " in text) == (2, True)
    assert problem.endswith("speed.json cannot be written: No space left on device.\n")


def test_the_largest_seed_is_one(capsys, folder):
    words = ("generate", "Hello", "--model", folder, *SMALL, "--temperature", "1e-45", "--seed")
    assert run(capsys, *words, 2**64 - 1)[0] == 0


def test_fit_says_that_less_was_counted_than_asked(capsys):
    _, text, _ = run(capsys, "fit", "--memory", "80GB", "--context", "999999999")
    assert "at 131,072 tokens (the most this model reads; asked for 999,999,999)" in text


@pytest.mark.parametrize(
    "command", ["generate", "chat", "inspect", "verify", "fit", "download", "trace", "bench"]
)
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert f"example:\n  gptoss-lite {command}" in capsys.readouterr().out


def test_a_full_gpu_is_one_sentence(capsys, monkeypatch, folder):
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.16 GiB. GPU 0 has a total capacity of 14.74 "
            "GiB of which 1.92 GiB is free. Including non-PyTorch memory, this process has ..."
        )

    monkeypatch.setattr(cli, "load", full)
    assert cli.main(["generate", "hi", "--model", str(folder)]) == 2
    assert capsys.readouterr().err == (
        "gptoss-lite: CUDA out of memory. Tried to allocate 2.16 GiB. Give a shorter text, ask for "
        "fewer tokens, pass --offload-embedding, or close other programs.\n"
    )


def test_interrupt_ends_quietly(capsys, monkeypatch, folder):
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    status, _, problem = run(capsys, "generate", "hi", "--model", folder)
    assert status == 130
    assert problem == "\ngptoss-lite: stopped.\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * 10**9), ("1.5 GiB", 1_610_612_736), ("512mb", 512 * 10**6), ("42", 42)],
)
def test_sizes_are_read(text, size):
    assert cli.parse_bytes(text) == size


def test_a_unit_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError):
        cli.parse_bytes("3 parsecs")
