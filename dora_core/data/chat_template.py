"""A tokenizer's chat template as a function from conversations to text, the same on every day and for every text.

The template is the only source of control tokens: in the texts of the data they are marked before rendering, and
:func:`encode_texts` then encodes them as the ordinary text that they are. The functions for it are transformers' own
(``apply_chat_template(sanitize_control_tokens=True)`` calls the same).
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from dora_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dora_core.config.method import TextConfig
    from dora_core.data.records import Message

FIXED_DATE = datetime.date(2025, 1, 1)
"""Day that a template with a date shows unless ``text.template_date`` names another: a run must not depend on the day it runs on."""
MARK = "\U000f0000"
"""Private-use character in front of a control token's text that is data (transformers' choice)."""
REMEDIES = "set text.template: plain, or use a model whose template takes such conversations"


def shown_day(text: TextConfig) -> datetime.date:
    """The day that a template with a date shows."""
    return datetime.date.fromisoformat(text.template_date) if text.template_date else FIXED_DATE


class RefusedConversation(ModelError):
    """A chat template does not take a conversation.

    Attributes:
        roles: of its messages.
    """

    def __init__(self, message: str, *, hint: str, roles: tuple[str, ...]):
        super().__init__(message, hint=hint)
        self.roles = roles


def chat_turns(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Messages as a chat template or a chat server takes them, with their tool calls; and the prompt's tool definitions, if any."""
    tools, turns = None, list[dict[str, Any]]()
    for message in messages:
        extra = json.loads(message.get("extra") or "{}")
        tools = extra.pop("tools", None) or tools
        turns.append({"role": message["role"], "content": message["content"], **extra})
    return turns, tools


class ChatTemplate:
    """Rendering and encoding of conversations under one :class:`TextConfig`.

    Args:
        tokenizer: has a chat template.

    Attributes:
        takes_system: False makes :meth:`render` refuse or merge system messages, as ``text.system`` says. The description of the template
            (``chat_format.py``) finds it out.
        structure: added tokens that no text may become; further ones are texts of the model's own, e.g. a thinking block's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: TextConfig):
        self.tokenizer, self._text = tokenizer, text
        self.takes_system = True
        self.name = str(tokenizer.name_or_path or "this model")
        self._sources: dict[bool, str] = {}
        self._prefix = _pinned_date(tokenizer, shown_day(text), self.name)
        self.added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if not token.content.isspace()}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | set(tokenizer.all_special_tokens)
        written = {content for content in self.added if content in self._source(False)}
        self.structure = frozenset(special)
        self._in_prompts = _any_of(special | written)
        self._in_responses = _any_of(special)

    def protect(self, tokens: set[str]) -> None:
        """Add tokens that the template's turns consist of to :attr:`structure`."""
        self.structure |= tokens
        self._in_responses = _any_of(self.structure)

    def render(self, messages: Sequence[Message], response: str | None = None, *, prompt: bool = True) -> str:
        """A conversation as the template writes it; texts of control tokens in the data are marked.

        Args:
            response: appended as a turn of the assistant; the conversation then ends there.
            prompt: without a response: end with the generation prompt.

        Raises:
            RefusedConversation: the template refuses the conversation, or cannot render its tools.
        """
        messages = self._merged(messages)
        turns, tools = chat_turns(messages)
        if response is not None:
            turns.append({"role": "assistant", "content": response})
        return self.render_turns(turns, tools, prompt=prompt and response is None, has_tools=any(m.get("extra") for m in messages))

    def render_turns(self, turns: list[dict[str, Any]], tools: list[Any] | None = None, *, prompt: bool, has_tools: bool = False) -> str:
        """The same of turns as the template takes them."""
        from jinja2 import TemplateError

        source = self._source(has_tools)
        if has_tools and "tool" not in source:
            refuse_tools("the chat template", self.name)
        turns, tools = self._marked(turns, tools)
        options: dict[str, Any] = {"tools": tools} if tools else {}
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=prompt,
                chat_template=source,
                **self._text.template_arguments,
                **options,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise self._refusal(turns, f"{error or type(error).__name__}") from error
        return rendered

    def marked_response(self, response: str) -> str:
        """A response's text with marks, as :meth:`render` has it."""
        return mark_text(response, self._in_responses)

    def _merged(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation without a system message that the template does not take."""
        if self.takes_system or not any(message["role"] == "system" for message in messages):
            return messages
        if self._text.system == "refuse":
            raise self._refusal(messages, "it takes no system message")
        return merge_system(messages)

    def _refusal(self, turns: Sequence[Any], reason: str) -> RefusedConversation:
        roles = tuple(str(turn["role"]) for turn in turns)
        merge = "set text.system: merge to put the system message into the user message after it, or " if "system" in roles else ""
        return RefusedConversation(
            f"the chat template of {self.name} refuses a conversation of roles {', '.join(roles)}: {reason}",
            hint=merge + REMEDIES,
            roles=roles,
        )

    def _source(self, has_tools: bool) -> str:
        if has_tools not in self._sources:
            self._sources[has_tools] = self._prefix + self.tokenizer.get_chat_template(tools=[{}] if has_tools else None)
        return self._sources[has_tools]

    def _marked(self, turns: list[dict[str, Any]], tools: list[Any] | None) -> tuple[list[dict[str, Any]], list[Any] | None]:
        if not any(self._in_prompts.search(text) for text in _texts([turns, tools])):
            return turns, tools
        from transformers.utils.chat_template_utils import mark_control_tokens

        by_role = [self._in_responses if turn["role"] == "assistant" else self._in_prompts for turn in turns]
        marked = [mark_control_tokens(turn, tokens) for turn, tokens in zip(turns, by_role, strict=True)]
        return marked, mark_control_tokens(tools, self._in_prompts)


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """Put each system message in front of the user message after it, with an empty line between; one at the end becomes a user message."""
    merged: list[Message] = []
    held: list[str] = []
    for message in messages:
        if message["role"] == "system":
            held.append(message["content"])
        elif message["role"] == "user" and held:
            merged.append({**message, "content": "\n\n".join([*held, message["content"]])})
            held = []
        else:
            merged.append(message)
    return [*merged, {"role": "user", "content": "\n\n".join(held)}] if held else merged


def refuse_tools(what: str, name: str) -> NoReturn:
    raise ModelError(
        f"prompts of the data have tools, and {what} of {name} cannot render them",
        hint="use a model whose chat template has tools, or set data.tools: refuse to quarantine these rows",
    )


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, in one call of the tokenizer; of those with marks, one by one.

    Raises:
        ModelError: the tokenizer makes a control token from text that cannot be split.
    """
    from transformers.utils.chat_template_utils import encode_marked_chat

    plain = [text for text in texts if MARK not in text]
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    ids = iter(tokenizer(plain, **options)["input_ids"] if plain else [])
    try:
        return [encode_marked_chat(tokenizer, text) if MARK in text else next(ids) for text in texts]
    except ValueError as error:
        raise ModelError(
            f"a text of the data has a control token of {tokenizer.name_or_path or 'the tokenizer'} in it: {error}",
            hint="leave these rows out, or use a model with a byte-level tokenizer",
        ) from error


def mark_text(text: str, tokens: re.Pattern[str]) -> str:
    """``text`` with marks around ``tokens``, for :func:`encode_texts`."""
    if not tokens.search(text):
        return text
    from transformers.utils.chat_template_utils import mark_control_tokens

    marked: str = mark_control_tokens(text, tokens)
    return marked


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Pattern of the texts of all special tokens."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return _any_of(special | set(tokenizer.all_special_tokens))


def _any_of(tokens: set[str] | frozenset[str]) -> re.Pattern[str]:
    """A pattern of these texts, longer ones first; of nothing, it never matches. White space that is an added token (Gemma) counts as
    text."""
    written = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, written)) or "(?!)")


def _texts(value: Any) -> Iterator[str]:
    """All strings in lists and values of dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _pinned_date(tokenizer: PreTrainedTokenizerBase, day: datetime.date, name: str) -> str:
    """Jinja code that makes ``strftime_now`` show ``day``; empty for a template that does not call it.

    Arguments of a template cannot be functions (transformers makes plain data of them), so every format that the template names is
    rendered beforehand, and looked up.
    """
    templates = tokenizer.chat_template
    source = "\n".join(templates.values()) if isinstance(templates, dict) else templates
    if "strftime_now" not in source:
        return ""
    formats = re.findall(r"""strftime_now\s*\(\s*(?:format\s*=\s*)?("[^"]*"|'[^']*')\s*\)""", source)
    if len(formats) < len(re.findall(r"strftime_now\s*\(", source)):
        raise ModelError(
            f"the chat template of {name} shows the day in a format that is not written in it, so the day cannot be pinned",
            hint="set text.template: plain, or give the tokenizer a template without strftime_now",
        )
    shown = {one[1:-1]: day.strftime(one[1:-1]) for one in formats}
    return "{% set strftime_now = " + json.dumps(shown) + ".get %}\n"  # trim_blocks takes the line break away again
