"""What a model needs and what a memory holds: the sums of `account`, to turn every number of."""

from collections.abc import Mapping
from typing import Any, ClassVar

from matplotlib.axes import Axes
from traitlets import Dict, Enum, Int, List, TraitError, Unicode, validate

from gptoss_lite import account, viz
from gptoss_lite.account import BITS, GIB, OVERHEAD_BYTES, Fit
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import ConfigError
from gptoss_lite.presets import PRESETS
from gptoss_lite.widgets.page import PageWidget, module_source, percent

SHOWN = ("gpt2-xl", "gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b")
MEMORIES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 256, 320, 640)
FORMATS = ("published", *BITS)


class FitView(PageWidget):
    """Whether models fit a memory, at a choice of context and formats; `fit` makes one.

    The page holds each model's coefficients as `account` gives them, and adds up in whole numbers.

    Attributes:
        model: the one that is explained; all are drawn.
        memory, unit: of the device; "GB" is 10 ** 9 bytes, "GiB" 2 ** 30.
        context: tokens to hold; a model whose own limit is lower holds that.
        batch: sequences of that length.
        dense, experts: number formats of the weights: "published" or a key of `account.BITS`.
    """

    view = "fit"
    options = ("model", "memory", "unit", "context", "batch", "dense", "experts")
    rows_shown: ClassVar[int] = 12
    _esm = module_source("fit")

    model = Unicode().tag(sync=True)
    memory = Int(16, min=1).tag(sync=True)
    unit = Enum(("GB", "GiB"), "GB").tag(sync=True)
    context = Int(4_096, min=1).tag(sync=True)
    batch = Int(1, min=1).tag(sync=True)
    dense = Enum(FORMATS, "published").tag(sync=True)
    experts = Enum(FORMATS, "published").tag(sync=True)

    models = List().tag(sync=True)
    memories = List(Int(), list[int](MEMORIES)).tag(sync=True)  # the slider's marks
    bits = Dict(dict(BITS)).tag(sync=True)
    overhead_bytes = Int(OVERHEAD_BYTES).tag(sync=True)
    configs = Dict()

    @validate("model")
    def _is_shown(self, proposal: Any) -> str:
        if proposal["value"] not in self.configs:
            raise TraitError(
                f"model={proposal['value']!r} is not shown here. Use one of {list(self.configs)}."
            )
        return proposal["value"]

    def fits(self) -> dict[str, Fit]:
        """Return what `account.fit` says of each model, with everything as it is set now."""
        return {
            name: account.fit(
                config,
                self._memory_bytes,
                context_tokens=self.context,
                batch=self.batch,
                dense=self._format(self.dense),
                experts=self._format(self.experts),
                overhead_bytes=self.overhead_bytes,
            )
            for name, config in self.configs.items()
        }

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw what each model needs beside the memory, as everything is set now, for print."""
        return viz.fit(
            self.configs,
            self._memory_bytes,
            context_tokens=self.context,
            batch=self.batch,
            dense=self._format(self.dense),
            experts=self._format(self.experts),
            ax=ax,
        )

    @property
    def _memory_bytes(self) -> int:
        return self.memory * (GIB if self.unit == "GiB" else 10**9)

    @staticmethod
    def _format(chosen: str) -> str | None:
        """Return a number format as `account` wants it: None is the published one."""
        return None if chosen == "published" else chosen

    def table(self) -> list[dict[str, Any]]:
        """Return one row a model, as everything is set now."""
        device = f"fits {self.memory} {self.unit}"
        rows = []
        for name, found in self.fits().items():
            config = self.configs[name]
            flops = account.flops(config, found.context_tokens)
            rows.append(
                {
                    "model": name,
                    "parameters": f"{account.parameters(config):,}",
                    "active per token": f"{account.parameters(config, active=True):,}",
                    "weights": _both(found.weight_bytes),
                    f"KV cache at {self.context:,} tokens": _both(found.kv_bytes),
                    "GFLOP per token": f"{flops / 1e9:.2f}",
                    device: "yes" if found.fits else "no",
                    "longest context": f"{found.longest_context_tokens:,}",
                }
            )
        return rows


def fit(
    models: Mapping[str, ModelConfig] | None = None,
    *,
    overhead_bytes: int = OVERHEAD_BYTES,
    **selection: Any,
) -> FitView:
    """Show what models need beside what a memory holds, and turn every number of the sum.

    Args:
        models: names and configs, if not four of `PRESETS`.
        overhead_bytes: kept free for activations and the framework.
        selection: where to start: `model`, `memory` and `unit`, `context`, `batch`, `dense`,
            `experts`. By default the second model, or the only one, on 16 GB.

    Raises:
        ConfigError: no model.
    """
    shown = {name: PRESETS[name] for name in SHOWN} if models is None else dict(models)
    if not shown:
        raise ConfigError("There is no model to fit: fit({'gpt-oss-20b': PRESETS[...]}).")
    view = FitView(
        title="What fits: parameters, memory and arithmetic",
        configs=shown,
        models=[_coefficients(name, config) for name, config in shown.items()],
        overhead_bytes=overhead_bytes,
    )
    view.select(**{"model": list(shown)[:2][-1], **selection})
    if view.memory not in view.memories:
        view.memories = sorted([*view.memories, view.memory])
    view.summary = _summary(shown)
    return view


def _coefficients(name: str, config: ModelConfig) -> dict[str, Any]:
    """Return the numbers from which the page adds up what `account` does."""
    windows = [config.window(layer) for layer in range(config.n_layers)]
    kinds = sorted(set(windows), key=lambda window: window or config.context)
    n_experts = account.parameter_table(config).get("expert_weights", 0)
    n = account.parameters(config)
    return {
        "name": name,
        "context": config.context,
        "parameters": n,
        "active": account.parameters(config, active=True),
        "n_experts": n_experts,  # weights of the experts' matrices
        "n_dense": n - n_experts,
        "dense": config.dtype,
        "experts": config.expert_dtype,
        "layers": [[window, windows.count(window)] for window in kinds],
        "kv": 2 * config.n_kv_heads * config.head_dim,  # numbers of one token in one layer
        "cached": {dense: account.cache_dtype(config, dense) for dense in account.BITS},
        "matmul_flops": account.matmul_flops(config),
        "attention_flops": account.attention_flops(config, 1) // config.n_layers,
    }


def _summary(models: Mapping[str, ModelConfig]) -> str:
    """Say what the published files hold; the rest depends on the choices."""
    told = []
    for name, config in models.items():
        n, active = account.parameters(config), account.parameters(config, active=True)
        uses = f", {percent(active / n)} of its parameters in use per token" * (
            config.moe is not None
        )
        told.append(f"{name} {account.readable_bytes(account.weight_bytes(config))}{uses}")
    return f"Weights as published: {'; '.join(told)}."


def _both(n_bytes: int) -> str:
    """Write a size in both conventions."""
    decimal, unit = (9, "GB") if n_bytes >= GIB // 100 else (6, "MB")
    return f"{n_bytes / 10**decimal:.2f} {unit} = {account.readable_bytes(n_bytes)}"
