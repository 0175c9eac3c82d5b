"""Record the conversations that come with the package, `gptoss_lite/data/traces/*.safetensors`.

    python tools/make_traces.py

Each is what gpt-oss-nano answers, greedily, be it right or wrong. `recording`
reads them back with `example`, and a test holds them against the shipped weights.
"""

import dataclasses
import hashlib
from pathlib import Path

import torch

import gptoss_lite as gl
from gptoss_lite.hub import BUNDLED, find
from gptoss_lite.recording import EXAMPLES, Recording
from gptoss_lite.tokenizer import Tokenizer

TARGET = Path(__file__).resolve().parents[1] / "gptoss_lite" / "data" / "traces"
LONGEST = 150_000  # bytes of a file

OWNERS = (
    "The owners are: lamp Ann, boat Max, ring Leo, ball Amy, hat Eli, kite Tom. Who has the hat?"
)
STORY = "Write a short story about Mia and a book."
QUESTIONS = {  # and the effort
    "add": (["What is 38 + 15?"], "medium"),
    "recall": ([OWNERS], "high"),
    "story": ([STORY], "medium"),
    # each question stands many windows after the first one
    "long": ([STORY, "What is 38 + 15?", "Sort the digits 38976."], "high"),
}


def conversation(
    model: gl.Transformer, tokenizer: Tokenizer, questions: list[str], effort: str
) -> Recording:
    """Ask one question after the other and record the whole conversation.

    As harmony wants it, the analysis of earlier answers is left out.
    """
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = tokenizer.render(messages, effort=effort)
        reply = list(gl.generate(model, prompt, max_new_tokens=400, stop=tokenizer.stop_ids))
        answer = tokenizer.parse(reply)[-1]["content"]
        print(f"  {question}\n    {answer}")
        messages.append({"role": "assistant", "channel": "final", "content": answer})
    run = gl.record(model, tokenizer, prompt + reply, n_prompt=len(prompt), lens=True).lean()
    weights = (find(BUNDLED) / "model.safetensors").read_bytes()
    about = {
        **run.about,
        "messages": messages[:-1],
        "effort": effort,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    return dataclasses.replace(run, about=about)


def main() -> None:
    torch.set_num_threads(1)
    model = gl.load(BUNDLED, dtype=torch.float32, progress=False)
    tokenizer = gl.load_tokenizer(BUNDLED)
    TARGET.mkdir(exist_ok=True)
    for name in EXAMPLES:
        questions, effort = QUESTIONS[name]
        print(name)
        run = conversation(model, tokenizer, questions, effort)
        path = run.save(TARGET / f"{name}.safetensors")
        n_bytes = path.stat().st_size
        print(f"  {path.name}: {len(run.about['tokens'])} tokens, {n_bytes:,} bytes")
        if n_bytes > LONGEST:
            raise SystemExit(f"{path.name} is larger than {LONGEST:,} bytes. Ask for less.")


if __name__ == "__main__":
    main()
