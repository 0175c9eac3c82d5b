"""OpenAI's own torch model reads what we write in the `original/` layout, and agrees with us.

Its weights are bfloat16. Widened to float32, the same numbers are computed by two programs that
share no code, so only the order of sums may differ.
"""

from pathlib import Path

import pytest
import torch

import gptoss_lite as gl
from gptoss_lite import Transformer
from tests.hostile import GPT_OSS_MXFP4, hostile, tokens

reference = pytest.importorskip("gpt_oss.torch.model")


def nano() -> Transformer:
    return gl.load("gpt-oss-nano", device="cpu", progress=False)


MODELS = {
    "gpt-oss-nano": nano,
    # other sizes, windows, YaRN's ramp and limit; every bias, sink and scale random
    "hostile": lambda: hostile(GPT_OSS_MXFP4.but(dtype="bfloat16")),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reference") / "original"
    return gl.save_checkpoint(MODELS[request.param](), place, original=True)


def theirs(folder: Path) -> torch.nn.Module:
    return reference.Transformer.from_checkpoint(str(folder), device="cpu")


@torch.no_grad()
def test_the_same_logits_in_float32(folder: Path) -> None:
    ours = gl.load(folder, dtype=torch.float32, device="cpu", progress=False)
    ids = tokens(ours.config, 1, 4 * (ours.config.sliding_window or 0) + 60)
    want = theirs(folder).float()(ids[0])
    got = ours(ids)[0]
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@torch.no_grad()
def test_in_bfloat16_both_round_about_as_much(folder: Path) -> None:
    exact = gl.load(folder, dtype=torch.float32, device="cpu", progress=False)
    ours = gl.load(folder, dtype=torch.bfloat16, device="cpu", progress=False)
    ids = tokens(ours.config, 1, 188)
    want = exact(ids)[0]
    errors = [(logits.float() - want).std() for logits in (ours(ids)[0], theirs(folder)(ids[0]))]
    assert 0 < errors[0] <= 2 * errors[1]
