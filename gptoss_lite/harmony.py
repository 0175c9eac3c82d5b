"""Harmony, the chat format of gpt-oss: conversations to text parts, and a reply back to messages.

A conversation is a list of plain dicts. Every message becomes

    <|start|>{header}<|message|>{content}<|end|>

and the header says who speaks (`assistant`), to whom (` to=functions.add`), on which channel
(`<|channel|>final`) and in which form (` <|constrain|>json`). Nothing here knows ids: `render`
returns parts, each either the name of a special token or plain text, and a tokenizer turns them
into ids. Keeping the two apart is what stops a user from typing `<|end|>` and ending a message.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast

from gptoss_lite.errors import TokenizerError

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, RETURN, CALL = "<|end|>", "<|return|>", "<|call|>"
SPECIAL_TOKENS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, RETURN, CALL)
MESSAGE_ENDS = (END, RETURN, CALL, "<|endoftext|>")

EFFORTS = ("low", "medium", "high")
ROLES = ("system", "developer", "user", "assistant")
BUILT_IN_TOOLS = ("python", "browser")

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
VALID_CHANNELS = (
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
TOOLS_CHANNEL = "Calls to these tools must go to the commentary channel: 'functions'."


class Message(TypedDict):
    """One message, a plain dict at run time.

    `role` is system, developer, user, assistant, or the name of the tool that answers, such as
    `functions.add` (`{"role": "tool", "name": "functions.add"}` says the same). `channel` is
    analysis, commentary or final; `recipient` is the tool a call goes to; `content_type` is the
    form of the content, `<|constrain|>json` for a call with JSON arguments.
    """

    role: str
    content: str
    name: NotRequired[str]
    channel: NotRequired[str]
    recipient: NotRequired[str]
    content_type: NotRequired[str]


class Part(NamedTuple):
    """A stretch of a rendered conversation: a special token's name, or plain text."""

    text: str
    special: bool = False


# --- Rendering: messages to parts ---------------------------------------------------------------


def render(
    messages: Sequence[Mapping[str, Any]],
    *,
    effort: str = "medium",
    date: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    drop_analysis: bool = True,
    ending: Literal["prompt", "history", "training"] = "prompt",
) -> list[Part]:
    """Lay out a conversation the way gpt-oss was trained to read it.

    A system message with the effort is put first unless the conversation brings its own, which
    is then used word for word (its own `Reasoning:` line counts, not `effort`). Instructions
    belong in a developer message. A reply that goes back as history ends in `<|end|>` whatever
    token the model stopped with, and the model's earlier chains of thought are left out.

    Args:
        messages: dicts as `Message` describes, oldest first.
        effort: "low", "medium" or "high": how long the model thinks before it answers.
        date: the current date for the system message, such as "2025-06-28"; None leaves it out.
        tools: functions the model may call, each `{"name", "description", "parameters"}` with a
            JSON schema as parameters; the `{"type": "function", "function": {...}}` form works too.
        drop_analysis: leave out the analysis of turns that have reached their final answer.
        ending: "prompt" adds `<|start|>assistant` for the model to continue; "history" adds
            nothing; "training" ends a last final answer with `<|return|>`.

    Returns:
        Parts whose texts, joined, are the prompt.

    Raises:
        TokenizerError: a message, tool, effort or ending that the format does not have.

    Source:
        OpenAI, "Harmony response format", sections on chat format, reasoning and function calls.

    Example:
        >>> parts = render([{"role": "user", "content": "What is 2 + 2?"}], effort="low")
        >>> print(text_of(parts).split("<|end|>", 1)[1])
        <|start|>user<|message|>What is 2 + 2?<|end|><|start|>assistant
    """
    if ending not in ("prompt", "history", "training"):
        raise TokenizerError(
            f'ending={ending!r} is not known: use "prompt", "history" or "training".'
        )
    kept = [_checked(message, place) for place, message in enumerate(messages)]
    kept = without_old_analysis(kept) if drop_analysis else kept
    parts: list[Part] = []
    for message in _with_preamble(kept, effort, date, tools):
        parts += _render_message(message)
    if ending == "prompt":
        parts += [Part(START, True), Part("assistant")]
    elif ending == "training" and kept and kept[-1].get("channel") == "final":
        parts[-1] = Part(RETURN, True)
    return parts


def text_of(parts: Iterable[Part]) -> str:
    """Join parts for reading. Do not tokenize this string: it no longer says what was special.

    Example:
        >>> text_of([Part("<|start|>", True), Part("user")])
        '<|start|>user'
    """
    return "".join(part.text for part in parts)


def without_old_analysis(messages: Sequence[Message]) -> list[Message]:
    """Leave out every chain of thought that came before the latest final answer.

    Analysis after it belongs to a turn in progress (a tool call that waits for its result), and
    the model needs it to go on.

    Example:
        >>> thought = Message(role="assistant", channel="analysis", content="Easy.")
        >>> answer = Message(role="assistant", channel="final", content="4")
        >>> [m["content"] for m in without_old_analysis([thought, answer, thought])]
        ['4', 'Easy.']
    """
    finals = [place for place, message in enumerate(messages) if message.get("channel") == "final"]
    last_final = finals[-1] if finals else -1
    return [
        message
        for place, message in enumerate(messages)
        if place > last_final or message.get("channel") != "analysis"
    ]


def system_text(effort: str = "medium", date: str | None = None, has_tools: bool = False) -> str:
    """Write the system message: identity, dates, reasoning effort, channels.

    Example:
        >>> print(system_text("high", date="2025-06-28"))
        You are ChatGPT, a large language model trained by OpenAI.
        Knowledge cutoff: 2024-06
        Current date: 2025-06-28
        <BLANKLINE>
        Reasoning: high
        <BLANKLINE>
        # Valid channels: analysis, commentary, final. Channel must be included for every message.
    """
    if effort not in EFFORTS:
        raise TokenizerError(f'effort={effort!r} is not known: use "low", "medium" or "high".')
    top = [IDENTITY, f"Knowledge cutoff: {KNOWLEDGE_CUTOFF}"]
    if date is not None:
        top.append(f"Current date: {date}")
    channels = f"{VALID_CHANNELS}\n{TOOLS_CHANNEL}" if has_tools else VALID_CHANNELS
    return "\n\n".join(["\n".join(top), f"Reasoning: {effort}", channels])


def developer_text(instructions: str | None, tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Write the developer message: instructions, then the functions the model may call.

    Text that already starts with one of the two headings is kept as it is, so that a message
    taken from a parsed conversation can be rendered again.

    Example:
        >>> print(developer_text("Always respond in riddles"))
        # Instructions
        <BLANKLINE>
        Always respond in riddles
    """
    sections = []
    if instructions is not None:
        written = instructions.startswith(("# Instructions\n", "# Tools\n"))
        sections.append(instructions if written else f"# Instructions\n\n{instructions}")
    if tools:
        sections.append(tools_text(tools))
    return "\n\n".join(sections)


def _with_preamble(
    messages: list[Message], effort: str, date: str | None, tools: Sequence[Mapping[str, Any]]
) -> list[Message]:
    """Put the system message in front and the tools into the (first) developer message."""
    rest = list(messages)
    system = Message(role="system", content=system_text(effort, date, bool(tools)))
    if rest and rest[0]["role"] == "system":
        system = rest.pop(0)
    developer = next((i for i, m in enumerate(rest) if m["role"] == "developer"), None)
    if developer is None:
        if tools:
            rest.insert(0, Message(role="developer", content=developer_text(None, tools)))
        return [system, *rest]
    for place, message in enumerate(rest):
        if message["role"] == "developer":
            offered = tools if place == developer else ()
            text = developer_text(message["content"], offered)
            rest[place] = cast(Message, {**message, "content": text})
    return [system, *rest]


def _checked(message: Mapping[str, Any], place: int) -> Message:
    """Accept one message or say what is wrong with it."""
    where = f"message {place}"
    if not isinstance(message, Mapping):
        kind = type(message).__name__
        raise TokenizerError(f'{where} is a {kind}: use a dict with "role" and "content".')
    fields: dict[str, Any] = {k: value for k, value in message.items() if value is not None}
    missing = [key for key in ("role", "content") if key not in fields]
    if missing:
        raise TokenizerError(f"{where} has no {' and no '.join(missing)}: {dict(message)!r}.")
    unknown = sorted(set(fields) - set(Message.__annotations__))
    if unknown:
        known = ", ".join(Message.__annotations__)
        raise TokenizerError(f"{where} has unknown keys {', '.join(unknown)}: use {known}.")
    for key, value in fields.items():
        if not isinstance(value, str):
            kind = type(value).__name__
            raise TokenizerError(f"{where}: {key} must be a str, got {kind}.")
        if key != "content" and (not value or value != "".join(value.split())):
            raise TokenizerError(f"{where}: {key}={value!r} must be one word without spaces.")
    _check_role(fields, where)
    return cast(Message, fields)


def _check_role(fields: Mapping[str, str], where: str) -> None:
    role = fields["role"]
    if role == "tool" and "name" not in fields:
        raise TokenizerError(
            f'{where} has role "tool" but no name: give "name", for example "functions.add".'
        )
    if role not in (*ROLES, *BUILT_IN_TOOLS, "tool") and "." not in role:
        raise TokenizerError(
            f"{where}: role={role!r} is not known: use {', '.join(ROLES)}, "
            "or a tool's name such as functions.add."
        )


def _render_message(message: Message) -> list[Part]:
    """Write one message: header, content, end."""
    role, name = message["role"], message.get("name")
    if name is not None:
        role = name if role == "tool" else f"{role}:{name}"
    recipient, channel = message.get("recipient"), message.get("channel")
    parts = [Part(START, True), Part(role)]
    if recipient is not None:
        parts.append(Part(f" to={recipient}"))
    if channel is not None:
        parts += [Part(CHANNEL, True), Part(channel)]
    parts += _render_content_type(message.get("content_type"))
    parts += [Part(MESSAGE, True), Part(message["content"])]
    is_call = role.split(":")[0] == "assistant" and recipient is not None
    parts.append(Part(CALL if is_call else END, True))
    return [part for part in parts if part.text]


def _render_content_type(content_type: str | None) -> list[Part]:
    if content_type is None:
        return []
    if not content_type.startswith(CONSTRAIN):
        return [Part(f" {content_type}")]
    return [Part(" "), Part(CONSTRAIN, True), Part(content_type.removeprefix(CONSTRAIN))]


# --- Tools: JSON schemas written as TypeScript --------------------------------------------------


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Write function tools as the TypeScript-like namespace that gpt-oss reads.

    Args:
        tools: `{"name", "description", "parameters"}` dicts; parameters is a JSON schema.

    Returns:
        The `# Tools` section of a developer message.

    Raises:
        TokenizerError: a tool without a name, or a schema with `oneOf`.

    Source:
        OpenAI, "Harmony response format", section "Function calling".

    Example:
        >>> number = {"type": "number"}
        >>> schema = {"type": "object", "properties": {"x": number}, "required": ["x"]}
        >>> add = {"name": "double", "description": "Twice x.", "parameters": schema}
        >>> print(tools_text([add]))
        # Tools
        <BLANKLINE>
        ## functions
        <BLANKLINE>
        namespace functions {
        <BLANKLINE>
        // Twice x.
        type double = (_: {
        x: number,
        }) => any;
        <BLANKLINE>
        } // namespace functions
    """
    lines = ["# Tools\n", "## functions\n", "namespace functions {\n"]
    for tool in tools:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise TokenizerError(f'a tool needs a "name": {tool!r}.')
        lines += [f"// {line}" for line in _lines(function.get("description") or "")]
        schema = function.get("parameters")
        arguments = "" if schema is None else f"_: {_typescript(schema, '', function['name'])}"
        lines.append(f"type {function['name']} = ({arguments}) => any;\n")
    return "\n".join([*lines, "} // namespace functions"])


def _lines(text: str) -> list[str]:
    """Split at line ends; unlike str.splitlines, at nothing else."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


def _typescript(schema: Mapping[str, Any], indent: str, tool: str) -> str:
    """Write one JSON schema as a type; what TypeScript cannot say becomes `any`."""
    if "oneOf" in schema:
        raise TokenizerError(
            f'the parameters of tool {tool!r} use "oneOf", which is not supported: '
            'list the types instead, for example {"type": ["string", "number"]}.'
        )
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        return " | ".join("number" if entry == "integer" else entry for entry in kind)
    if kind == "object":
        return _typescript_object(schema, indent, tool)
    if kind == "array":
        items = schema.get("items")
        return "Array<any>" if items is None else f"{_typescript(items, indent, tool)}[]"
    if kind == "string":
        choices = [f'"{value}"' for value in schema.get("enum", ()) if isinstance(value, str)]
        return " | ".join(choices) or "string"
    return {"number": "number", "integer": "number", "boolean": "boolean"}.get(str(kind), "any")


def _typescript_object(schema: Mapping[str, Any], indent: str, tool: str) -> str:
    out = f"{indent}// {schema['description']}\n" if "description" in schema else ""
    out += "{\n"
    for key, value in (schema.get("properties") or {}).items():
        optional = "" if key in schema.get("required", ()) else "?"
        kind = _typescript(value, indent + "    ", tool)
        if value.get("nullable") and "null" not in kind:
            kind += " | null"
        out += _comments(value, indent) + f"{indent}{key}{optional}: {kind},{_default(value)}\n"
    return out + indent + "}"


def _comments(schema: Mapping[str, Any], indent: str) -> str:
    """Write a property's title, description and examples above it."""
    lines = []
    if "title" in schema:
        lines += [f"// {schema['title']}", "//"]
    if "description" in schema:
        lines.append(f"// {schema['description']}")
    if schema.get("examples"):
        lines.append("// Examples:")
        lines += [f'// - "{text}"' for text in schema["examples"] if isinstance(text, str)]
    return "".join(f"{indent}{line}\n" for line in lines)


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return ""
    value = schema["default"]
    if isinstance(value, str) and schema.get("enum"):
        return f" // default: {value}"
    if isinstance(value, str):
        return f' // default: "{value}"'
    return " // default: " + json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# --- Parsing: parts to messages -----------------------------------------------------------------


def parse(parts: Iterable[Part]) -> list[Message]:
    """Read messages back from parts; made for replies, which may be cut off or malformed.

    A reply continues `<|start|>assistant`, so the first message needs no start and is the
    assistant's unless it says otherwise. Nothing is ever refused: a message without an end keeps
    what there is, text without a header is the assistant's content, and an empty start (a
    generation prompt) is no message.

    Args:
        parts: special-token names and texts, in order.

    Returns:
        Messages with only those keys that the reply gave.

    Source:
        OpenAI, "Harmony response format", sections "Message format" and "Receiving tool calls".

    Example:
        >>> reply = [Part("<|channel|>", True), Part("final"), Part("<|message|>", True), Part("4")]
        >>> parse(reply)
        [{'role': 'assistant', 'content': '4', 'channel': 'final'}]
    """
    messages: list[Message] = []
    header: list[Part] = []
    content: str | None = None  # None while we are still in the header
    started = False  # did a <|start|> open this message?

    def finish() -> None:
        message = _parse_message(header, content, started)
        if message is not None:
            messages.append(message)

    for part in parts:
        if part.special and part.text in (*MESSAGE_ENDS, START):
            finish()
            header, content, started = [], None, part.text == START
        elif content is not None:
            content += part.text
        elif part == Part(MESSAGE, True):
            content = ""
        else:
            header.append(part)
    finish()
    return messages


def _parse_message(header: Sequence[Part], content: str | None, started: bool) -> Message | None:
    """Build one message; `content` is None if the reply ended inside the header."""
    fields, loose = _parse_header(header, started)
    if content is None and set(fields) <= {"role", "name"}:  # no header at all: plain text
        text = text_of(header)
        content = text.split(maxsplit=1)[-1] if started and loose else text if loose else None
        if content is None:
            return None
    elif content is None:
        content = " ".join(loose)
    elif loose:
        fields.setdefault("recipient" if "content_type" in fields else "content_type", loose[-1])
    return cast(Message, {"role": "assistant", "content": content, **fields})


def _parse_header(header: Sequence[Part], started: bool) -> tuple[dict[str, str], list[str]]:
    """Sort a header's words into fields; words without a label come back as loose."""
    fields: dict[str, str] = {}
    loose: list[str] = []
    expected = "role" if started else ""
    for part in header:
        if part.special and part.text in (CHANNEL, CONSTRAIN):
            expected = "channel" if part.text == CHANNEL else "content_type"
            continue
        for word in part.text.split():
            if word.startswith("to="):
                fields["recipient"] = word.removeprefix("to=")
            elif expected == "content_type":
                fields["content_type"] = CONSTRAIN + word
            elif expected:
                fields[expected] = word
            else:
                loose.append(word)
            expected = ""
    role, colon, name = fields.get("role", "").partition(":")
    if colon and role in ROLES:
        fields |= {"role": role, "name": name}
    return fields, loose
