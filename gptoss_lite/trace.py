"""Look inside a running model: named taps in the forward code, collected on demand."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from gptoss_lite.errors import ShapeError

NAMES = ("probs", "sink_mass", "router_logits", "expert_ids", "expert_weights", "resid")

# A module-level variable, not a ContextVar: torch.compile can trace the former only.
_active: "trace | None" = None


def tap(name: str, value: Tensor) -> None:
    """Offer an intermediate tensor under a standard name; nobody listening costs nothing."""
    if _active is not None:
        _active._record(name, value)


def wants(name: str) -> bool:
    """Say whether someone listens to `name`: a backend that never has it must then decline."""
    return _active is not None and name in _active.names


class trace:
    """Record named intermediate tensors of every forward pass inside a `with` block.

    Args:
        model: the Transformer to watch.
        names: which of `probs [B H T S]`, `sink_mass [B H T]`, `router_logits [N E]`,
            `expert_ids [N A]`, `expert_weights [N A]`, `resid [B T D]` to keep; N = B * T.

    Keys are module paths, such as `blocks.3.attn.probs`. During generation `t[key]` is the last
    step and `t.steps(key)` all of them. Tensors are detached copies on the CPU.

    Raises:
        ShapeError: an unknown name, or a key that was never recorded.
    """

    def __init__(self, model: nn.Module, *names: str) -> None:
        if unknown := [name for name in names if name not in NAMES]:
            raise ShapeError(f"Nothing to trace under {unknown}. Names: {list(NAMES)}.")
        self.model = model
        self.names = frozenset(names or NAMES)
        self._path: list[str] = []
        self._recorded: dict[str, list[Tensor]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> "trace":
        global _active
        if _active is not None:
            raise ShapeError("A trace is already open. Close it, or ask it for more names.")
        for path, module in self.model.named_modules():
            if path.startswith("blocks.") and path.count(".") <= 2:
                self._hooks.append(module.register_forward_pre_hook(self._enter(path)))
                self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        _active = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        global _active
        _active = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._path.clear()

    def _enter(self, path: str) -> Callable[..., None]:
        return lambda module, args: self._path.append(path)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._path.pop()

    def _record(self, name: str, value: Tensor) -> None:
        if name in self.names:
            key = ".".join([*self._path[-1:], name])
            self._recorded.setdefault(key, []).append(value.detach().to("cpu", copy=True))

    def steps(self, key: str) -> list[Tensor]:
        """Return every recording under a key, one per forward pass, oldest first."""
        if key not in self._recorded:
            raise ShapeError(f"Nothing recorded under {key!r}. Recorded: {self.keys()}.")
        return self._recorded[key]

    def __getitem__(self, key: str) -> Tensor:
        return self.steps(key)[-1]

    def keys(self) -> list[str]:
        """Return the recorded keys in the order of the model's layers."""
        return list(self._recorded)

    def per_layer(self, name: str) -> list[Tensor]:
        """Return the last recording of `name` in each layer that has one, first layer first."""
        return [steps[-1] for key, steps in self._recorded.items() if key.endswith(f".{name}")]
