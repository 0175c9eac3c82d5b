"""Train the tokenizer of `gpt-oss-nano`: o200k's split rule, harmony's special tokens, 2048 ids.

Ids 0..2032 are byte-level BPE tokens; the last fifteen are the special tokens that stand at
199998..200012 in o200k_harmony, in the same order and with the same gaps. No token holds two
digits, so the model reads a number digit by digit.

    python experiments/nano_tokenizer.py --out gptoss_lite/data/gpt-oss-nano/tokenizer.json
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import nano_world
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2_048
FIRST_REAL_SPECIAL = 199_998
SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|reserved_200000|>",
    "<|reserved_200001|>",
    "<|return|>",
    "<|constrain|>",
    "<|reserved_200004|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|reserved_200009|>",
    "<|reserved_200010|>",
    "<|reserved_200011|>",
    "<|call|>",
)
O200K_SPLIT = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def split_rule(*, single_digits: bool) -> pre_tokenizers.PreTokenizer:
    """Cut text as o200k does; while training, cut numbers into digits as well.

    No merge of two digits is ever learned that way, so the finished tokenizer can keep
    o200k's own rule (`single_digits=False`) and still writes a number digit by digit.
    """
    steps = [pre_tokenizers.Split(Regex(O200K_SPLIT), behavior="isolated")]
    if single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(steps)


def corpus(seed: int, documents: int, *, prose: bool) -> Iterator[str]:
    """Yield the text the merges are learned from, special tokens cut out."""
    stage = nano_world.CHAT
    for index in range(documents):
        text = nano_world.document(seed, index, stage, prose=prose).text
        for special in SPECIALS:
            text = text.replace(special, "\n")
        yield text
    yield from [" ".join(("", *nano_world.VOCABULARY))] * 100  # so each of them is one token
    if prose:
        yield from random.Random(seed).sample(nano_world.prose_passages(), 1_500)


def train(seed: int = 0, documents: int = 20_000, *, prose: bool = True) -> Tokenizer:
    """Learn the merges and append the special tokens at the end of the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split_rule(single_digits=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed, documents, prose=prose), trainer)
    tokenizer.pre_tokenizer = split_rule(single_digits=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(f"{tokenizer.get_vocab_size()} tokens instead of {VOCAB_SIZE}")
    return tokenizer


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-prose", action="store_true")
    args = parser.parse_args()
    tokenizer = train(args.seed, prose=not args.no_prose)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out), pretty=False)
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
