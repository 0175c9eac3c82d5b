"""Exercises of chapter 13, harmony: what a user sees, what a history keeps, where a reply ends."""

from gptoss_lite.exercises.exercise import Exercise

Messages = list[dict[str, str]]


def shown(messages: list[dict[str, str]]) -> list[str]:
    """Return the contents that a chat program shows to its user, in order.

    That is what the user wrote, and what the assistant wrote on the channel "final". A message is a
    dict with "role", "content" and, for the assistant, "channel".
    """
    return [
        message["content"]
        for message in messages
        if message["role"] == "user" or message.get("channel") == "final"
    ]


def _everything(messages: Messages) -> list[str]:
    return [message["content"] for message in messages]


def _not_analysis(messages: Messages) -> list[str]:
    return [m["content"] for m in messages if m.get("channel") != "analysis"]


def _assistant_only(messages: Messages) -> list[str]:
    return [m["content"] for m in messages if m.get("channel") == "final"]


def history(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages that go back to the model with the next question.

    Messages on the channel "analysis" are left out if they stand before the last message on the
    channel "final". Analysis after it belongs to a turn that is not finished, and stays.
    """
    finals = [i for i, message in enumerate(messages) if message.get("channel") == "final"]
    last = finals[-1] if finals else -1
    return [m for i, m in enumerate(messages) if i > last or m.get("channel") != "analysis"]


def _drop_all(messages: Messages) -> Messages:
    return [m for m in messages if m.get("channel") != "analysis"]


def _first_final(messages: Messages) -> Messages:
    finals = [i for i, message in enumerate(messages) if message.get("channel") == "final"]
    first = finals[0] if finals else -1
    return [m for i, m in enumerate(messages) if i > first or m.get("channel") != "analysis"]


def _commentary_too(messages: Messages) -> Messages:
    return [m for m in history(messages) if m.get("channel") != "commentary"]


def reply(tokens: list[str]) -> list[str]:
    """Return a model's tokens up to the one that ends its turn, and that one too.

    A reply may be several messages: thoughts first, then the answer. If none of the tokens ends the
    turn, all of them are returned.
    """
    kept = []
    for token in tokens:
        kept.append(token)
        if token in ("<|return|>", "<|call|>"):
            break
    return kept


def broken_reply(tokens: list[str]) -> list[str]:
    """Return a model's tokens up to the one that ends its turn, and that one too.

    A reply may be several messages: thoughts first, then the answer. If none of the tokens ends the
    turn, all of them are returned.
    """
    kept = []
    for token in tokens:
        kept.append(token)
        if token in ("<|return|>", "<|end|>"):
            break
    return kept


def _never_calls(tokens: list[str]) -> list[str]:
    return tokens[: tokens.index("<|return|>") + 1] if "<|return|>" in tokens else list(tokens)


def _without_the_stop(tokens: list[str]) -> list[str]:
    kept = reply(tokens)
    return kept[:-1] if kept and kept[-1] in ("<|return|>", "<|call|>") else kept


def _said(role: str, content: str, channel: str = "") -> dict[str, str]:
    return {"role": role, "content": content} | ({"channel": channel} if channel else {})


_TURN = [
    _said("user", "2 + 2?"),
    _said("assistant", "Easy.", "analysis"),
    _said("assistant", "4", "final"),
]
_CALL = [
    _said("user", "Rain?"),
    _said("assistant", "Ask the tool.", "analysis"),
    _said("assistant", "{}", "commentary"),
    _said("functions.weather", "no", "commentary"),
]
_SYSTEM = [_said("system", "Reasoning: low")]
_ANSWER = ["<|channel|>", "final", "<|message|>", "4", "<|return|>"]
_THOUGHT = ["<|channel|>", "analysis", "<|message|>", "Easy.", "<|end|>", "<|start|>", "assistant"]
_ASK = ["<|channel|>", "commentary", "<|message|>", "{}", "<|call|>"]

EXERCISES = (
    Exercise(
        id="ch13.ex1",
        title="What the user sees",
        minutes=5,
        level="easy",
        solution=shown,
        cases=((_TURN,), (_SYSTEM + _TURN,)),
        hidden=((_CALL,), (_TURN + _CALL,), ([],)),
        hints=(
            "Two kinds of messages are kept. Not every message has a channel: use .get.",
            'Keep a message if its role is "user" or its channel is "final".',
        ),
        wrong=(_everything, _not_analysis, _assistant_only),
    ),
    Exercise(
        id="ch13.ex2",
        title="What history keeps",
        minutes=10,
        level="implement",
        solution=history,
        cases=((_TURN,), (_CALL,)),
        hidden=((_TURN + _TURN,), (_TURN + _CALL,), (_CALL + _TURN,), (_TURN + _TURN + _CALL,)),
        hints=(
            "First find the place of the last final message. There may be none.",
            'Keep message i if i is after that place, or if its channel is not "analysis".',
        ),
        wrong=(_drop_all, _first_final, _commentary_too),
    ),
    Exercise(
        id="ch13.ex3",
        title="A model that never answers",
        minutes=10,
        level="find the bug",
        solution=reply,
        stub=broken_reply,
        cases=((_ANSWER,), (_THOUGHT + _ANSWER,)),
        hidden=((_THOUGHT + _ASK + _ANSWER,), (_THOUGHT[:4],), ([],), (_ANSWER + _ANSWER,)),
        hints=(
            "The model thinks and then falls silent. Which token does a thought end with?",
            "<|end|> ends a message. A turn is ended by <|return|> or <|call|>.",
        ),
        wrong=(_never_calls, _without_the_stop),
    ),
)
