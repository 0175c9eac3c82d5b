import pytest
import torch
from torch import nn

from gptoss_lite.linear import Linear


@pytest.mark.parametrize("bias", [True, False])
def test_is_torch_linear(bias):
    """The same numbers from the same seed, so nothing recorded with `nn.Linear` changes."""
    torch.manual_seed(3)
    ours = Linear(5, 7, bias)
    torch.manual_seed(3)
    theirs = nn.Linear(5, 7, bias)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    x = torch.randn(2, 3, 5)
    assert torch.equal(ours(x), theirs(x))
