"""Write a checkpoint of random weights with the true names, shapes and bytes of a gpt-oss model.

It generates noise. It is for measuring: loading, memory, speed, at the widths of the published
files and with as many layers as fit, without downloading anything.

Example:
    python tools/write_random_checkpoint.py /tmp/random-20b --model gpt-oss-20b --layers 2
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.headers import read_folder
from gptoss_lite.synthetic import write_synthetic

MODELS = ("gpt-oss-20b", "gpt-oss-120b", "gpt-oss-nano")
LAYOUTS = ("hf", "original")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        folder = write_synthetic(
            args.model,
            args.folder,
            layers=args.layers,
            vocab=args.vocab,
            original=args.layout == "original",
            seed=args.seed,
        )
    except GptOssLiteError as problem:
        print(problem, file=sys.stderr)
        return 2
    total = sum(info.n_bytes for info in read_folder(folder).values())
    label = f"random weights, shapes of {args.model}; generates noise"
    print(f"{folder}: {label} ({total / 1e9:.2f} GB)")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, example = (__doc__ or "").partition("Example:")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog="Example:" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where to; must not exist or be empty")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="default: %(default)s")
    parser.add_argument("--layers", type=int, help="how many layers; default: all of the model")
    parser.add_argument("--vocab", type=int, help="rows of the embeddings; default: all")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for option in ("layers", "vocab"):
        if (value := getattr(args, option)) is not None and value < 1:
            parser.error(f"--{option} {value}: there must be at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
