"""Find a model's folder on disk, or download the few files of it that are needed.

A model is named in one of four ways: a preset ("gpt-oss-20b"), the bundled model ("gpt-oss-nano"),
a local folder, or a repository of the Hugging Face hub ("openai/gpt-oss-20b"). Whatever goes wrong
on the way ends in one sentence that says what was looked for, where, and what to do.
"""

import difflib
import errno
import fnmatch
import importlib.resources
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import (
    GatedRepoError,
    RepositoryNotFoundError,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from gptoss_lite.errors import CheckpointError, TokenizerError

Want = Literal["weights", "tokenizer", "config"]

BUNDLED = "gpt-oss-nano"
LONGEST_NAME = 80  # of a source that is repeated in an error
OFFLINE_CHOICE = f'Without a network, use the bundled model "{BUNDLED}".'


class Repo(NamedTuple):
    """A repository of the hub and the size of what we download from it."""

    id: str
    gigabytes: float


REPOS = {
    "gpt-oss-20b": Repo("openai/gpt-oss-20b", 13.8),
    "gpt-oss-120b": Repo("openai/gpt-oss-120b", 65.3),
    "gpt2": Repo("openai-community/gpt2", 0.5),
    "gpt2-medium": Repo("openai-community/gpt2-medium", 1.5),
    "gpt2-large": Repo("openai-community/gpt2-large", 3.2),
    "gpt2-xl": Repo("openai-community/gpt2-xl", 6.4),
    "qwen3-30b-a3b": Repo("Qwen/Qwen3-30B-A3B", 61.1),
}

# What to download. Patterns see whole paths, so everything below the root is left out separately:
# gpt-oss repositories hold their weights three times (root, original/ and metal/). Pickle files
# (.bin, .pt) are never fetched, because reading one can run code.
FILES: dict[Want, tuple[str, ...]] = {
    "weights": (
        "*.safetensors",
        "*.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "tokenizer*.json",
        "special_tokens_map.json",
        "chat_template*",
    ),
    "tokenizer": ("tokenizer*.json",),
    "config": ("config.json", "generation_config.json"),
}
BELOW_ROOT = "*/*"
# A folder has what is wanted if it holds a file like this.
PROOF: dict[Want, str] = {
    "weights": "*.safetensors",
    "tokenizer": "tokenizer.json",
    "config": "config.json",
}


def find(source: str | os.PathLike[str], *, want: Want = "weights", progress: bool = True) -> Path:
    """Return the folder that holds a model's weights, tokenizer or config.

    Args:
        source: preset name, folder, or "organization/name" on the hub. A preset name wins over
            a folder of that name; write "./gpt2" for the folder. A Path is always a folder.
        want: what the folder must hold; from the hub, only the files for it are downloaded
            ("weights" brings config and tokenizer too).
        progress: show a progress bar while downloading.

    Returns:
        An existing folder with at least one file of the wanted kind. For OpenAI's own layout
        that is `original/` below the given folder (weights, config) or the folder above it
        (tokenizer).

    Raises:
        CheckpointError: nothing there, or the download failed; says where it looked.
        TokenizerError: the folder exists and holds no tokenizer.json.

    Example:
        >>> find("gpt-oss-nano", want="tokenizer").name
        'gpt-oss-nano'
        >>> find("gpt-oss-20")
        Traceback (most recent call last):
        gptoss_lite.errors.CheckpointError: "gpt-oss-20" is no model: did you mean "gpt-oss-20b"?...
    """
    if source == BUNDLED:
        data = Path(str(importlib.resources.files("gptoss_lite")))
        return _in_folder(data / "data" / BUNDLED, want)
    if isinstance(source, str) and source in REPOS:
        return _download(REPOS[source].id, want, progress)
    if source == "":  # as a path, it would be the current folder
        raise CheckpointError(
            f'"" is no model: use {", ".join((BUNDLED, *REPOS))}, a folder ("." is the current '
            'one), or a hub id like "openai/gpt-oss-20b".'
        )
    try:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return _in_folder(folder, want)
        is_file = folder.exists()
    except TypeError:
        raise CheckpointError(
            f"{_shortened(source)} names no folder: it is {type(source).__name__}, neither str nor "
            f"Path. {OFFLINE_CHOICE}"
        ) from None
    except RuntimeError as problem:  # no such user for ~
        raise CheckpointError(
            f"{_shortened(source)} names no folder: {_first_line(problem)}. {OFFLINE_CHOICE}"
        ) from None
    except OSError as problem:
        raise CheckpointError(
            f"{_shortened(source)} cannot be looked up: {problem.strerror}. {OFFLINE_CHOICE}"
        ) from None
    if is_file:
        raise CheckpointError(f"{folder} is a file: give the folder that holds it.")
    if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return _download(source, want, progress)
    raise CheckpointError(_unknown(source, folder))


def _shortened(source: object) -> str:
    text = repr(str(source)) if isinstance(source, str | os.PathLike) else repr(source)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}...'"


def _unknown(source: str | os.PathLike[str], folder: Path) -> str:
    """Explain a source that is neither a name nor a folder."""
    names = [BUNDLED, *REPOS]
    if not isinstance(source, str):
        if (name := os.fspath(source)) in names:
            return (
                f"There is no folder {folder.absolute()}, and a Path is always a folder. "
                f'For the model, give its name as a string: "{name}".'
            )
        return f"There is no folder {folder.absolute()}. {OFFLINE_CHOICE}"
    if os.sep in source or source.startswith((".", "~")):
        return f"There is no folder {folder.absolute()}. {OFFLINE_CHOICE}"
    near = difflib.get_close_matches(source.lower(), names, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return (
        f'"{source}" is no model: {hint}Use {", ".join(names)}, a folder '
        f'(there is none at {folder.absolute()}), or a hub id like "openai/gpt-oss-20b".'
    )


def _in_folder(folder: Path, want: Want) -> Path:
    """Return the folder, or its part in OpenAI's `original/` layout, that holds what is wanted."""
    folder = folder.absolute()
    places = [folder, folder / "original"]
    if want == "tokenizer" and (folder.name == "original" or (folder / "dtypes.json").exists()):
        places = [folder, folder.parent]
    for place in places:
        if any(place.glob(PROOF[want])):
            return place
    held = sorted(entry.name for entry in folder.glob("*"))
    listing = ", ".join(held[:5]) + (", ..." if len(held) > 5 else "")
    kind = TokenizerError if want == "tokenizer" else CheckpointError
    raise kind(
        f"There is no {PROOF[want]} in {' or '.join(map(str, places))}, "
        f"which holds {listing or 'nothing'}. {OFFLINE_CHOICE}"
    )


def _download(repo: str, want: Want, progress: bool) -> Path:
    """Fetch what is missing in the cache; without a network, make do with what is there."""
    size = next((known.gigabytes for known in REPOS.values() if known.id == repo), None)
    reason: Exception | None = None
    try:
        size = _require_space(repo, want)
    except CheckpointError:
        raise
    # The hub library lets several HTTP libraries' errors through, by version. All end in one
    # sentence that names the cause.
    except Exception as error:
        reason = error
    try:
        with _progress_bars(progress):
            folder = huggingface_hub.snapshot_download(
                repo,
                allow_patterns=list(FILES[want]),
                ignore_patterns=[BELOW_ROOT],
                local_files_only=reason is not None,
            )
    except Exception as error:
        raise CheckpointError(_explain(repo, size, reason, error)) from (reason or error)
    return _in_folder(Path(folder), want)


def _require_space(repo: str, want: Want) -> float:
    """Ask the hub how much there is to download and check that the disk can take it."""
    info = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
    total = missing = 0
    for file in info.siblings or ():
        name = file.rfilename
        if "/" in name or not any(fnmatch.fnmatch(name, pattern) for pattern in FILES[want]):
            continue
        total += file.size or 0
        cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=info.sha)
        missing += 0 if isinstance(cached, str) else file.size or 0
    cache = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    disk = next(place for place in (cache, *cache.parents) if place.exists())
    free = shutil.disk_usage(disk).free
    if missing > free:
        raise CheckpointError(
            f"{repo} needs {missing / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB free: "
            f"make room, or set HF_HOME to a folder on a larger disk. {OFFLINE_CHOICE}"
        )
    return total / 1e9


def _explain(repo: str, size: float | None, reason: Exception | None, error: Exception) -> str:
    """Say in one sentence why a download failed.

    Args:
        repo: the repository.
        size: of all wanted files, in GB, if known.
        reason: why the hub could not be asked; None if it was, and the download itself failed.
        error: what the download raised.
    """
    what = repo if size is None else f"{repo} ({size:.1f} GB)"
    cause = reason or error
    if isinstance(cause, GatedRepoError):
        why = f"{what} is gated: accept its terms on its page and set HF_TOKEN."
    elif isinstance(cause, RepositoryNotFoundError):
        why = (
            f"The hub has no public repository {repo}, and there is no folder "
            f"{Path(repo).absolute()}."
        )
    elif constants.HF_HUB_OFFLINE:
        why = f"{what} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids a download."
    elif reason is not None:
        why = (
            f"{what} is not in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be "
            f"reached ({_first_line(reason)})."
        )
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        why = f"The disk of {constants.HF_HUB_CACHE} became full while downloading {what}."
    else:
        why = (
            f"The download of {what} broke off ({_first_line(error)}): run the same call again, "
            "files that are complete are kept."
        )
    return f"{why} {OFFLINE_CHOICE}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Switch the hub library's progress bars off for one download."""
    switch = not shown and not are_progress_bars_disabled()
    if switch:
        disable_progress_bars()
    try:
        yield
    finally:
        if switch:
            enable_progress_bars()
