"""The Transformer block along the ladder: which part each step exchanges, and what it costs."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from matplotlib.axes import Axes
from traitlets import Any as Anything
from traitlets import Dict, Int, List, TraitError, Unicode, validate

from gptoss_lite import account, viz
from gptoss_lite.anatomy import PARTS, anatomy, changed_parts, compare_parts, field_value
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import ConfigError
from gptoss_lite.ladder import LADDER, Rung, changed_fields
from gptoss_lite.presets import PRESETS
from gptoss_lite.viz.block import (
    BLOCKS_AT,
    HEIGHT,
    INLINE,
    LABELS,
    SIGN,
    TOP,
    WIDTH,
    WIRES,
    blocks_label,
    glyphs,
    places,
)
from gptoss_lite.widgets.page import PageWidget, module_source

MANY = 4  # a step that changes more fields than this changes sizes
HOW = ("differs", "sizes", "only here", "only there")  # as anatomy.compare_parts says it
OTHERS = {"Qwen3-30B-A3B": PRESETS["qwen3-30b-a3b"]}  # to put beside a rung


class BlockView(PageWidget):
    """The diagram of a block at every rung of a ladder; `block` makes one.

    Attributes:
        step: the rung that is drawn; what differs from the rung before is marked.
        part: the part that is explained: a key of `anatomy.PARTS`.
        beside: another model to draw beside the rung, by its name; what differs from it is then
            marked instead of what differs from the rung before. None if empty.
    """

    view = "block"
    options = ("step", "part", "beside")
    rows_shown: ClassVar[int] = 20
    _esm = module_source("block")

    step = Int(0).tag(sync=True)
    part = Unicode("heads").tag(sync=True)
    beside = Unicode("").tag(sync=True)

    names = Dict().tag(sync=True)  # of the parts, where no one model is meant
    parts = List().tag(sync=True)  # every state of every part, once
    rungs = List().tag(sync=True)  # each with the indices of its parts
    others = Dict().tag(sync=True)  # by name, as rungs
    frame = Dict().tag(sync=True)  # what is drawn at every rung
    ladder = Anything()
    other_configs = Dict()

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw the rung for print, marked against the rung before, or with the model beside it."""
        rung, before = self.ladder[self.step], self.ladder[max(0, self.step - 1)]
        if not self.beside:
            return viz.block(rung.config, before.config, ax)
        other = (self.beside, self.other_configs[self.beside])
        axes = ax and (ax, ax.inset_axes((1.05, 0, 1, 1)))
        return viz.block_pair((rung.name, rung.config), other, axes)[0]

    @validate("step")
    def _is_a_rung(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < len(self.rungs):
            raise TraitError(
                f"step={proposal['value']} is not on this ladder: 0 to {len(self.rungs) - 1}."
            )
        return proposal["value"]

    @validate("part")
    def _is_a_part(self, proposal: Any) -> str:
        if proposal["value"] not in PARTS:
            raise TraitError(f"part={proposal['value']!r} is unknown. Use one of {list(PARTS)}.")
        return proposal["value"]

    @validate("beside")
    def _is_another_model(self, proposal: Any) -> str:
        if proposal["value"] not in ("", *self.others):
            raise TraitError(
                f"beside={proposal['value']!r} is unknown. Use one of {list(self.others)}."
            )
        return proposal["value"]


def block(
    ladder: Sequence[Rung] = LADDER,
    others: Mapping[str, ModelConfig] = OTHERS,
    **selection: Any,
) -> BlockView:
    """Show the block at each rung: its parts, what the step changed, and what each part is.

    Args:
        ladder: rungs of your own, if not the book's.
        others: models that may be put beside a rung, by their names.
        selection: where to start: `step`, `part` and `beside`, the name of another model. By
            default the first step, or the last one beside another model, and the part that the
            step's first field drives.

    Raises:
        ConfigError: a ladder without rungs.
    """
    if not ladder:
        raise ConfigError("A ladder needs at least one rung: block([Rung(...)]).")
    parts: dict[str, dict[str, Any]] = {}
    rungs = [_rung(ladder, i, parts) for i in range(len(ladder))]
    beside = selection.get("beside", "")
    step = min(selection.get("step", len(ladder) - 1 if beside else 1), len(ladder) - 1)
    finding = _beside(ladder[step], beside, others[beside]) if beside in others else _along(ladder)
    view = BlockView(
        **finding,
        names=PARTS,
        ladder=ladder,
        other_configs=dict(others),
        others={name: _model(config, parts) for name, config in others.items()},
        parts=list(parts.values()),
        rungs=rungs,
        frame={
            "view": [0, TOP, WIDTH, HEIGHT - TOP],
            "inline": INLINE,
            "sign": SIGN,
            "wires": [list(wire) for wire in WIRES],
            "labels": [list(label) for label in LABELS],
            "blocks": list(BLOCKS_AT),
        },
    )
    part = rungs[step]["first"]
    if beside in others:
        found = compare_parts(ladder[step].config, others[beside])
        part = next((name for name, how in found.items() if how == "differs"), part)
    view.select(**{"step": step, "part": part, **selection})
    return view


def _rung(ladder: Sequence[Rung], i: int, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Describe a rung; states of parts that are new go into `parts`."""
    rung, before = ladder[i], ladder[max(0, i - 1)]
    earlier = _drawn(before.config, parts)
    changed, gone = changed_parts(before.config, rung.config)
    return {
        "name": rung.name,
        "chapter": rung.chapter,
        "paper": rung.paper,
        "changes": _changes(before.config, rung.config),
        **_model(rung.config, parts),
        "changed": changed,
        "gone": [earlier[name] for name in gone],
        "first": _first(rung, changed, gone),
    }


def _model(config: ModelConfig, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Describe a model; states of parts that are new go into `parts`."""
    return {
        "parameters": account.parameters(config),
        "size": account.readable_bytes(account.weight_bytes(config)),
        "blocks": blocks_label(config),
        "parts": list(_drawn(config, parts).values()),
    }


def _first(rung: Rung, changed: list[str], gone: list[str]) -> str:
    """Name the part to explain first: one that the step's first field drives."""
    fields = {part.name: [name for name, _ in part.fields] for part in anatomy(rung.config)}
    for field in rung.changes:
        for part in changed:
            if any(name.split(".")[0] == field for name in fields[part]):
                return part
    return [*changed, *gone, "heads"][0]


def _drawn(config: ModelConfig, parts: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return the index of the state of each part of a model."""
    found = {}
    for part in anatomy(config):
        state = {
            "name": part.name,
            "title": part.title,
            "notes": list(part.notes),
            "what": part.what,
            "fields": [list(field) for field in part.fields],
            "parameters": part.parameters,
            "boxes": [[*where, place] for where, place in places(part, config)],
            "glyphs": [list(glyph) for glyph in glyphs(part, config)],
        }
        parts.setdefault(json.dumps(state), state)
        found[part.name] = list(parts).index(json.dumps(state))
    return found


def _changes(before: ModelConfig, after: ModelConfig) -> str:
    names = changed_fields(before, after)
    if len(names) > MANY:
        return f"{len(names)} fields, nearly all of them sizes"
    return ", ".join(
        f"{name} {_short(before, after, name)} → {_short(after, before, name)}" for name in names
    )


def _short(config: ModelConfig, other: ModelConfig, name: str) -> str:
    """Show a field; of one with parts only those that differ."""
    value, against = getattr(config, name), getattr(other, name)
    if not hasattr(value, "__dataclass_fields__"):
        return field_value(config, name)
    inner = [n for n in vars(value) if against is None or getattr(against, n) != getattr(value, n)]
    return f"({', '.join(f'{n} ' + field_value(config, f'{name}.{n}') for n in inner)})"


def _along(ladder: Sequence[Rung]) -> dict[str, Any]:
    """Return title, summary and table of a ladder."""
    title = f"The block from {ladder[0].name} to {ladder[-1].name}"
    return {"title": title, "summary": _summary(ladder), "rows": _rows(ladder)}


def _beside(rung: Rung, name: str, config: ModelConfig) -> dict[str, Any]:
    """Return title, summary and table of a rung beside another model."""
    found = compare_parts(rung.config, config)
    by = {how: _listed({part for part, h in found.items() if h == how}) for how in HOW}
    here, there = ({part.name: part for part in anatomy(c)} for c in (rung.config, config))
    rows = []
    for part in [part for part in PARTS if part in here or part in there]:
        row: dict[str, Any] = {"part": PARTS[part]}
        for model, parts in ((rung.name, here), (name, there)):
            found_part = parts.get(part)
            row[model] = "; ".join((found_part.title, *found_part.notes)) if found_part else "none"
            row[f"parameters, {model}"] = f"{found_part.parameters:,}" if found_part else "0"
        rows.append({**row, "difference": found.get(part, "")})
    counts = [f"{account.parameters(c):,}" for c in (rung.config, config)]
    return {
        "title": f"The block of {rung.name} beside {name}",
        "summary": (
            f"Built differently: {by['differs']}. Only sizes differ in {by['sizes']}. Only "
            f"{rung.name} has {by['only here']}, only {name} {by['only there']}. Parameters: "
            f"{counts[0]} and {counts[1]}."
        ),
        "rows": rows,
    }


def _summary(ladder: Sequence[Rung]) -> str:
    """Sum the steps up that change switches; those that change sizes touch everything."""
    touched: set[str] = set()
    steps = [(a.config, b.config) for a, b in pairwise(ladder)]
    for a, b in steps:
        if len(changed_fields(a, b)) <= MANY:
            touched |= set().union(*changed_parts(a, b))
    first, last = ({part.name for part in anatomy(r.config)} for r in (ladder[0], ladder[-1]))
    return (
        f"{len(steps)} steps take {_listed(first - last)} out, bring {_listed(last - first)} in, "
        f"and exchange {_listed(touched & first & last)} in place. Only a change of sizes touches "
        f"{_listed(first & last - touched)}. Parameters: {account.parameters(ladder[0].config):,} "
        f"at the start, {account.parameters(ladder[-1].config):,} at the end."
    )


def _listed(names: set[str]) -> str:
    """List parts in the order of the diagram."""
    found = [PARTS[name] for name in PARTS if name in names]
    return " and ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found) or "nothing"


def _rows(ladder: Sequence[Rung]) -> list[dict[str, Any]]:
    """One row a rung, in order: here the order is the finding."""
    rows = []
    for i, rung in enumerate(ladder):
        before = ladder[max(0, i - 1)].config
        changed, gone = changed_parts(before, rung.config)
        names = [PARTS[name] for name in changed] + [f"{PARTS[name]} (gone)" for name in gone]
        rows.append(
            {
                "step": i,
                "rung": rung.name,
                "changes": _changes(before, rung.config) or "the start",
                "parts": ", ".join(names) if len(names) < len(PARTS) - 3 else "nearly all",
                "parameters": f"{account.parameters(rung.config):,}",
                "chapter": rung.chapter,
                "source": rung.paper,
            }
        )
    return rows
