"""The recorded experiments that the book shows: read from the package, never run by it."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from gptoss_lite.errors import GptOssLiteError

_FOLDER = files("gptoss_lite").joinpath("data", "experiments")
_NANO = files("gptoss_lite").joinpath("data", "gpt-oss-nano")
HARMONY_IDS = Path(__file__).with_name("data") / "references" / "harmony.json"
PUBLISHED_CONFIG = HARMONY_IDS.with_name("gpt-oss-20b.config.json")


def recorded_names() -> list[str]:
    """Return the names that `recorded` knows, in alphabetical order."""
    if not _FOLDER.is_dir():
        return []
    names = (entry.name for entry in _FOLDER.iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def recorded(name: str) -> dict[str, Any]:
    """Read a recorded experiment.

    Args:
        name: such as "E1"; see `recorded_names()`.

    Returns:
        `question`, `device`, `date`, `versions`, `seeds`, `base` (the config), `recipe`,
        `finding`, and `arms`: each with `name`, `label`, `changes`, `settings`, `parameters`,
        `runs` (`seed`, `loss`, `best`, `own_loss`, `curve`, and for some `lengths`), and, where it
        is compared with another arm (`against`), the paired `differences`, their common `sign`,
        and whether it `agrees` with what was expected before the run.

    Raises:
        GptOssLiteError: no such record.
    """
    if name not in recorded_names():
        raise GptOssLiteError(
            f"No experiment {name!r} is recorded. Recorded: {', '.join(recorded_names())}."
        )
    return json.loads(_FOLDER.joinpath(f"{name}.json").read_text(encoding="utf-8"))


def benchmark(name: str) -> dict[str, Any]:
    """Read a recorded benchmark, made by a script of `benchmarks/` with random weights.

    Args:
        name: "cpu_4_layers", "cpu_24_layers" (programs beside each other on gpt-oss-20b's sizes),
            "decode_turns" (two of them in short turns) or "profile" (where the time of one token
            goes).

    Returns:
        `cpu`, `date`, `settings`; then `bandwidth_bytes_per_s` with `peers` and
        `limits_tokens_per_s`, or with `bytes` and `seconds` by part; or `turns`, each with its own
        `bandwidth_bytes_per_s` and the tokens/s of each program.

    Raises:
        GptOssLiteError: no such record.
    """
    file = files("gptoss_lite").joinpath("data", "benchmarks", f"{name}.json")
    if not file.is_file():
        raise GptOssLiteError(
            f"No benchmark {name!r} is recorded: cpu_4_layers, cpu_24_layers, decode_turns, "
            "profile."
        )
    return json.loads(file.read_text(encoding="utf-8"))


def nano_scores() -> dict[str, Any]:
    """Read what the bundled model, `gpt-oss-nano`, can do.

    Returns:
        `settings` (date, device, versions, seeds, SHA-256 of the weights), `held_out` (losses),
        and `tasks`: for each task and effort `n` questions, `accuracy`, `sampled_accuracy`,
        `mean_tokens` of a reply, `majority_answer` (the share of the most frequent right answer),
        an `example` and some `mistakes`.

    Example:
        >>> sorted(nano_scores()["tasks"]["add"])
        ['high', 'low', 'medium']
    """
    return json.loads(_NANO.joinpath("scores.json").read_text(encoding="utf-8"))


def nano_analysis() -> dict[str, Any]:
    """Read what was found inside the bundled model, `gpt-oss-nano`.

    Returns:
        `settings`, `sinks` (mean mass of each head), `routing` (load and specialization, layer by
        layer), `ablations` (losses with a part changed), `recall` (accuracy by distance),
        `first_fact`, and `precision` (losses of three number formats).

    Example:
        >>> len(nano_analysis()["routing"])
        4
    """
    return json.loads(_NANO.joinpath("analysis.json").read_text(encoding="utf-8"))


def harmony_ids(name: str = "riddles") -> dict[str, Any]:
    """Read a conversation together with the ids that OpenAI's library gives it.

    Args:
        name: "riddles" or "a tool call and an answer".

    Returns:
        `messages` and `options` (what `Tokenizer.render` takes), the `ids` of gpt-oss's
        vocabulary, `pieces` (the text of each id), and `made_by`.

    Raises:
        GptOssLiteError: no such conversation.

    Example:
        >>> riddles = harmony_ids()
        >>> riddles["pieces"][:3], riddles["ids"][:3]
        (['<|start|>', 'system', '<|message|>'], [200006, 17360, 200008])
    """
    record = json.loads(HARMONY_IDS.read_text(encoding="utf-8"))
    for case in record["cases"]:
        if case["name"] == name:
            return {"made_by": record["made_by"], **case}
    names = [case["name"] for case in record["cases"]]
    raise GptOssLiteError(f"No conversation {name!r} is stored. Stored: {names}.")


def published_config() -> dict[str, Any]:
    """Read the config.json of gpt-oss-20b as OpenAI published it.

    Returns:
        `origin`, in words, and `config`, the file's content.

    Example:
        >>> published_config()["config"]["experts_per_token"]
        4
    """
    return json.loads(PUBLISHED_CONFIG.read_text(encoding="utf-8"))


def arm(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return one arm of a record by its name.

    Raises:
        GptOssLiteError: no such arm, with the names there are.
    """
    for found in record["arms"]:
        if found["name"] == name:
            return found
    names = [found["name"] for found in record["arms"]]
    raise GptOssLiteError(f"{record['id']} has no arm {name!r}. Arms: {names}.")


def print_table(record: Mapping[str, Any], metric: str = "loss") -> None:
    """Print the arms of a record: parameters, one column a seed, and the paired differences.

    An arm is compared with the one that differs from it in what is asked, which need not be the
    first: each row ends with the name of its own.

    Args:
        record: what `recorded` returned.
        metric: "loss" (at the end), "best" (of the checkpoints) or "own_loss" (on the text it
            learned from); the differences are those of the same metric.
    """
    unit = record["unit"]
    if metric == "own_loss":
        unit = unit.replace("held-out text", "the text that was learned from")
    width = max(len(found["label"]) for found in record["arms"])
    seeds = record["seeds"]
    print(f"Loss: {unit}.")
    head = "".join(f"{f'seed {seed}':>8}" for seed in seeds)
    print(f"{'':<{width}} {'params':>9}{head}   difference from the arm named")
    for found in record["arms"]:
        by_seed = {run["seed"]: run[metric] for run in found["runs"]}
        losses = "".join(f"{by_seed[s]:8.3f}" if s in by_seed else f"{'-':>8}" for s in seeds)
        row = f"{found['label']:<{width}} {found['parameters']:>9,}{losses}"
        if found["against"] is not None:
            changes = " ".join(f"{value:+.3f}" for value in differences(record, found, metric))
            row += f"   {changes:<{7 * len(seeds)}} {arm(record, found['against'])['label']}"
        print(row)


def differences(
    record: Mapping[str, Any], found: Mapping[str, Any], metric: str = "loss"
) -> list[float]:
    """Subtract from an arm the one it is paired with, seed by seed; nothing if there is none."""
    if found["against"] is None:
        return []
    theirs = {run["seed"]: run[metric] for run in arm(record, found["against"])["runs"]}
    mine = [run for run in found["runs"] if run["seed"] in theirs]
    return [run[metric] - theirs[run["seed"]] for run in mine]
