import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_lite.linear import Linear, linear


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


@pytest.mark.parametrize("bias", [True, False])
def test_a_narrow_weight_is_widened_some_rows_at_a_time(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest copy stays small; the answer is that of the whole matrix."""
    monkeypatch.setattr("gptoss_lite.linear.WIDENED", 5 * 30)
    torch.manual_seed(1)
    x, weight = torch.randn(3, 2, 30), torch.randn(17, 30).half()
    b = torch.randn(17).half() if bias else None
    want = x @ weight.float().T + (0 if b is None else b.float())
    with _Copies() as copies:
        got = linear.plain(x, weight, b)
    torch.testing.assert_close(got, want)
    assert copies.most == 5 * 30


class _Copies(TorchDispatchMode):
    """Note the most elements that one change of dtype made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.most = max(self.most, out.numel())
        return out
