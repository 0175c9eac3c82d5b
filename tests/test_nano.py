"""The bundled model: the shipped file, what it can do, and the recipe that made it."""

import csv
import hashlib
import json
import random
import re
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import gptoss_lite as gl
from gptoss_lite.headers import read_folder

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))  # the scripts there import one another by name

import analyse_nano  # noqa: E402
import card_nano  # noqa: E402
import nano_tokenizer  # noqa: E402
import nano_world  # noqa: E402
import score_nano  # noqa: E402
import train_nano  # noqa: E402

FOLDER = ROOT / "gptoss_lite" / "data" / "gpt-oss-nano"
SCORES = FOLDER / "scores.json"
ANALYSIS = json.loads((FOLDER / "analysis.json").read_text())
MAX_BYTES = 12_000_000


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small run several times slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return gl.load("gpt-oss-nano", dtype=torch.float32, experts="dense", progress=False)


@pytest.fixture(scope="module")
def tokenizer():
    return gl.load_tokenizer("gpt-oss-nano")


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def ask(model, tokenizer, domain, effort, count):
    """Ask reserved questions; return (share right, mean reply length in tokens)."""
    cell = score_nano.score_cell(model, tokenizer, domain, effort, count)
    return cell["accuracy"], cell["mean_tokens"]


# --- the shipped files ---------------------------------------------------------------------------


def test_weights_are_the_ones_that_were_scored():
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(SCORES.read_text())["settings"]["sha256"] == digest
    assert digest in (FOLDER / "README.md").read_text()


def test_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_BYTES


def test_config_is_the_preset(model):
    assert model.config == gl.PRESETS["gpt-oss-nano"]


def test_tensors_are_named_as_in_the_published_index():
    """What other converters, such as llama.cpp's, go by: the 20b's names, for four layers."""
    golden = json.loads((ROOT / "tests" / "golden" / "index_gpt_oss_20b.json").read_text())
    published = {
        name
        for name in chain.from_iterable(golden["files"].values())
        if not (match := re.match(r"model\.layers\.(\d+)\.", name)) or int(match[1]) < 4
    }
    assert read_folder(FOLDER).keys() == published


def test_training_log_falls():
    lines = (FOLDER / "training_log.csv").read_text().splitlines()
    column = lines[0].split(",").index("loss")
    losses = [float(line.split(",")[column]) for line in lines[1:]]
    assert losses[0] > 5
    assert sum(losses[-5:]) / 5 < 0.5


# --- what the model does -------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["add", "sort", "recall", "count", "program"])
def test_solves_unseen_questions_as_recorded(model, tokenizer, domain):
    """Twelve questions may miss the recorded share by luck, but not by a third."""
    recorded = json.loads(SCORES.read_text())["tasks"][domain]["medium"]
    accuracy, n_tokens = ask(model, tokenizer, domain, "medium", 12)
    assert abs(accuracy - recorded["accuracy"]) < 0.34
    assert abs(n_tokens / recorded["mean_tokens"] - 1) < 0.3


def test_working_a_sum_out_helps(model, tokenizer):
    worked, medium_tokens = ask(model, tokenizer, "add", "medium", 20)
    direct, low_tokens = ask(model, tokenizer, "add", "low", 20)
    assert worked >= 0.9
    assert direct < worked - 0.4
    assert low_tokens < medium_tokens / 2


def test_generate_agrees_with_batched_scoring(model, tokenizer):
    document = score_nano.questions("add", "medium", 1)[0]
    prompt = tokenizer.render(list(document.messages), effort="medium")
    reply = list(
        gl.generate(model, prompt, max_new_tokens=120, temperature=0.0, stop=tokenizer.stop_ids)
    )
    (batched,) = score_nano.replies(model, [prompt], tokenizer.stop_ids, 120)
    assert score_nano.final_answer(tokenizer, reply) == document.answer
    assert score_nano.final_answer(tokenizer, batched) == document.answer


def test_held_out_loss_is_far_below_the_unigram_entropy(model, bpe):
    examples = train_nano.held_out_examples(bpe, 2, prose=False, seed=77)
    found = score_nano.losses_by_domain(model, examples)["all chats"]
    assert found["loss"] < 0.2 * found["unigram_entropy"]


def test_the_record_of_the_sinks_repeats(model, bpe):
    """A few of the recorded documents give about the recorded means."""
    examples = train_nano.held_out_examples(bpe, 2, prose=False, seed=score_nano.SCORE_SEED)
    chats = [example for found in examples.values() for example in found]
    found = analyse_nano.sinks(model, analyse_nano.collect(model, chats), chats)
    recorded = ANALYSIS["sinks"]
    assert abs(found["overall_mean"] - recorded["overall_mean"]) < 0.05
    for few, many in zip(found["mean_mass"], recorded["mean_mass"], strict=True):
        assert max(abs(x - y) for x, y in zip(few, many, strict=True)) < 0.2


def test_the_card_is_made_from_the_records():
    with (FOLDER / "training_log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    quantized = json.loads((FOLDER / "quantized_training.json").read_text())
    text = card_nano.card(json.loads(SCORES.read_text()), ANALYSIS, quantized, log)
    assert text == (FOLDER / "README.md").read_text()


def test_mutual_information():
    """Equal labels give their entropy, independent ones nothing."""
    labels = [0, 1, 2, 3] * 50
    assert analyse_nano.mutual_information(labels, labels) == pytest.approx(2.0)
    assert analyse_nano.mutual_information(labels, ["a"] * 200) == pytest.approx(0.0)
    pairs = [(x, y) for x in range(4) for y in range(3)]
    assert analyse_nano.mutual_information(*zip(*pairs, strict=True)) == pytest.approx(0.0)
    half = [x // 2 for x in labels]
    assert analyse_nano.mutual_information(labels, half) == pytest.approx(1.0)


def test_token_classes():
    found = [
        analyse_nano.token_class(t) for t in ("<|end|>", "7", " Kim", " fan", ": ", " o", " the")
    ]
    assert found == ["special", "digit", "name", "thing", "mark", "letter", "word"]


def test_a_changed_model_is_put_back(model):
    before = [(b.attn.sinks.clone(), b.attn.window, b.ffn.n_active) for b in model.blocks]
    with analyse_nano.changed(model, analyse_nano._top(1)):
        assert model.blocks[0].ffn.n_active == 1
    with analyse_nano.changed(model, analyse_nano._without_sinks((2,))):
        assert [float(b.attn.sinks.max()) < -1e3 for b in model.blocks] == [
            False,
            False,
            True,
            False,
        ]
    after = [(b.attn.sinks, b.attn.window, b.ffn.n_active) for b in model.blocks]
    for (old, *rest), (new, *others) in zip(before, after, strict=True):
        assert torch.equal(old, new)
        assert rest == others


# --- the curriculum ------------------------------------------------------------------------------


def test_documents_depend_on_seed_and_index_alone():
    first = [nano_world.document(3, index, prose=False) for index in range(50)]
    assert first == [nano_world.document(3, index, prose=False) for index in range(50)]
    assert first != [nano_world.document(4, index, prose=False) for index in range(50)]


def test_reserved_pairs_are_never_generated():
    seen = set()
    for index in range(4_000):
        document = nano_world.document(5, index, prose=False)
        assert not nano_world.reserved(document.key)
        for message in document.messages[::2]:
            numbers = [n for n in message["content"].replace("?", " ").replace(".", " ").split()]
            pair = [int(n) for n in numbers if n.isdigit()]
            if "+" in numbers or numbers[0] == "Add":
                seen.add(nano_world.pair_key(*pair))
    assert len(seen) > 500
    assert not any(nano_world.reserved(key) for key in seen)


def test_held_out_questions_are_reserved():
    for domain in ("add", "sort", "recall", "count", "program", "story", "repeat"):
        for index in range(20):
            document = nano_world.held_out_document(1, index, domain, "medium")
            assert nano_world.reserved(document.key)


@pytest.mark.parametrize("effort", nano_world.EFFORTS)
def test_documents_are_laid_out_as_the_tokenizer_renders(tokenizer, bpe, effort):
    document = nano_world.held_out_document(2, 0, "add", effort)
    text, _, reply = document.text.partition("<|start|>assistant")
    dated = "Current date: " in text
    date = text.split("Current date: ")[1][:10] if dated else None
    rendered = tokenizer.render(list(document.messages), effort=effort, date=date)
    assert bpe.encode(text + "<|start|>assistant").ids == rendered
    assert score_nano.final_answer(tokenizer, bpe.encode(reply).ids) == document.answer


def test_effort_decides_the_length():
    for domain in nano_world.TASKS:
        lengths = {
            effort: sum(
                len(nano_world.held_out_document(3, index, domain, effort).text)
                for index in range(10)
            )
            for effort in nano_world.EFFORTS
        }
        assert lengths["low"] < lengths["medium"] < lengths["high"]


def test_planted_slips_carry_no_loss():
    slips = 0
    for index in range(200):
        document = nano_world.held_out_document(4, index, "add", "high")
        if "slip" in document.text:
            slips += 1
            assert any(piece.weight == 0 for piece in document.pieces)
    assert slips > 20


def test_definitions_come_without_examples_and_license(tmp_path, monkeypatch):
    file = tmp_path / "data.noun"
    file.write_text(
        "  1 This software and database is being provided to you, the LICENSEE, by  \n"
        "00005930 03 n 01 dwarf 0 001 @ 00004475 n 0000 | a plant or animal that is atypically "
        'small; "a dwarf tree"  \n'
        "00003553 03 n 02 living_thing 0 unit 0 000 | two words in one entry, so it is left out  \n"
        "00006269 03 n 01 life 0 000 | too short  \n"
    )
    monkeypatch.setattr(nano_world, "WORDNET", file)
    nano_world.glosses.cache_clear()
    try:
        assert nano_world.glosses() == ("dwarf: a plant or animal that is atypically small",)
    finally:
        nano_world.glosses.cache_clear()


def test_missing_prose_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(nano_world, "WORDNET", tmp_path / "nowhere")
    nano_world.glosses.cache_clear()
    with pytest.raises(FileNotFoundError, match="apt install wordnet-base"):
        nano_world.prose_document(random.Random(0), "gloss", held_out=True)
    nano_world.glosses.cache_clear()


# --- tokenizer and trainer -----------------------------------------------------------------------


def test_digits_are_single_tokens(bpe):
    assert bpe.encode("12345").tokens == list("12345")
    multi = [t for t in bpe.get_vocab() if sum(c.isdigit() for c in t) > 1 and t[:2] != "<|"]
    assert multi == []


def test_special_tokens_keep_their_real_spacing(bpe):
    first = bpe.token_to_id("<|startoftext|>")
    real = {"<|return|>": 200_002, "<|start|>": 200_006, "<|call|>": 200_012}
    for name, real_id in real.items():
        assert bpe.token_to_id(name) - first == real_id - nano_tokenizer.FIRST_REAL_SPECIAL
    assert bpe.get_vocab_size() == nano_tokenizer.VOCAB_SIZE


def test_data_of_a_step_depends_on_seed_and_step_alone(bpe):
    batches = train_nano.step_batches(bpe, train_nano.SMOKE, 9)
    train_nano._pool.cache_clear()
    train_nano.step_batches(bpe, train_nano.SMOKE, 30)
    assert train_nano.step_batches(bpe, train_nano.SMOKE, 9) == batches
    assert len(batches) == train_nano.SMOKE.micro_batches


def test_the_rate_runs_through_two_cycles():
    recipe = train_nano.Recipe(
        400, easy_steps=50, cycle=300, warmup=10, peak_lr=1.0, decay_share=0.5
    )
    rates = [recipe.rate(step) for step in range(400)]
    assert rates[0] == rates[300] == 0.1
    assert set(rates[9:151]) == set(rates[309:351]) == {1.0}
    assert 0 < rates[299] < 0.01
    assert 0 < rates[399] < 0.03
    assert rates[150:300] == sorted(rates[150:300], reverse=True)
    assert recipe.stage(299) == nano_world.CHAT
    assert recipe.stage(300) == nano_world.LATE
    # a run no longer than the first cycle is that cycle alone
    short = train_nano.Recipe(100, cycle=300, warmup=10)
    assert short.rate(99) < short.rate(50) == short.peak_lr


def test_fast_training_parts_equal_the_package_parts():
    torch.manual_seed(0)
    model = gl.Transformer(train_nano.smoke_config())
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.sinks)
    ids = torch.randint(0, 2_000, (2, 70))
    with torch.no_grad():
        plain = model(ids)
        with train_nano.fast_parts():
            fast = model(ids)
    # the same sums in another order, in float32
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)


def test_smoke_training_lowers_the_loss_and_resumes(tmp_path):
    recipe = train_nano.SMOKE
    losses = train_nano.train(
        train_nano.smoke_config(), recipe, tmp_path, FOLDER / "tokenizer.json"
    )
    assert losses[-1] < 0.6 * losses[0]
    rows = (tmp_path / train_nano.LOG).read_text().splitlines()
    assert len(rows) == 1 + recipe.steps // recipe.log_every
    again = train_nano.train(
        train_nano.smoke_config(), recipe, tmp_path, FOLDER / "tokenizer.json", resume=True
    )
    assert again == []
    assert (tmp_path / train_nano.LOG).read_text().splitlines() == rows


def test_training_rounds_as_the_format_does():
    generator = torch.Generator().manual_seed(0)
    spread = 2.0 ** torch.randint(-30, 12, (5, 6, 1), generator=generator)
    weight = torch.randn(5, 6, 96, generator=generator) * spread
    weight[0, 0, :32] = 0.0
    weight[1, 1, :32] = torch.arange(32) / 4  # every tie
    weight.requires_grad_()
    held = gl.mxfp4.dequantize(*gl.mxfp4.quantize(weight.detach()), torch.float32)
    found = train_nano.rounded(weight)
    assert torch.equal(found, held)
    found.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))
