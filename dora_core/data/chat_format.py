"""Description of a tokenizer with its chat template: which tokens a prompt and a turn of the assistant consist of.

Found once by rendering small conversations, never by reading the template: the end of a turn is what the template writes behind a turn's
text, and not ``eos_token``, which many templates end a turn without. A template that writes nothing there ends a turn with the first
token of the next one (GLM), or, made of ordinary text alone, with the tokenizer's own end token.

Left out: templates that ask for documents or images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dora_core.data.chat_template import ChatTemplate, RefusedConversation, encode_texts, shown_day
from dora_core.errors import ModelError

if TYPE_CHECKING:
    from datetime import date

    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from dora_core.config.method import TextConfig

CHAT_TOKENS = 1
"""Version of the rules that make tokens of chats, part of the digest of stages that use a chat template. Raise it when they change."""
ASKED, AGAIN, ANSWERED, SYSTEM, THOUGHT = "Where is the harbour?", "And when?", "By the old mill.", "Be brief and kind.", "It is near."
"""Texts of the conversations that are rendered: no template contains them."""
THINKING = {"<think>": "</think>", "[THINK]": "[/THINK]", "<|START_THINKING|>": "<|END_THINKING|>", "<seed:think>": "</seed:think>"}
"""Tokens that open and close a thinking block, which templates write at the end of a prompt."""
OPEN_THINKING = re.compile(f"(?:{'|'.join(map(re.escape, THINKING))})\\s*$")
CLOSED_THINKING = re.compile(f"(?:{'|'.join(map(re.escape, [*THINKING.values(), '<channel|>']))})\\s*$")


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template does, in text and tokens.

    Attributes:
        end: text of the control tokens that end a turn of the assistant: one, or several in a row.
        end_id: the last of them.
        end_from: where it was found: behind the turn's text, as the first token of the next turn, or the tokenizer's own.
        after: text that the template writes behind it, which is not learned.
        header: end of every prompt, from the template's last control token on; empty where prompts have no such end.
        dropped: end of the prompt that finished turns do not have: an empty thinking block, or its beginning.
        opens_thinking: a response begins inside a thinking block, and has to close it.
        before: text between the prompt and the response's own, such as an empty thinking block or a channel.
        adds_bos: the template writes the tokenizer's beginning-of-sequence token.
        takes_system, takes_tool, must_alternate: roles the template takes.
        takes_tools: definitions of tools are rendered.
        thinks: thinking (``reasoning_content``) of a turn is rendered.
        day: the day that the template shows; None if it shows none.
    """

    name: str
    end: str
    end_id: int
    end_from: Literal["turn", "next turn", "tokenizer"]
    after: str
    header: str
    dropped: str
    opens_thinking: bool
    before: str
    adds_bos: bool
    takes_system: bool
    takes_tool: bool
    must_alternate: bool
    takes_tools: bool
    thinks: bool
    day: date | None

    def lines(self) -> list[str]:
        """For people, one fact each."""
        bos = "the template writes the beginning-of-sequence token" if self.adds_bos else "no beginning-of-sequence token is written"
        ended = {"turn": "", "next turn": ", the first token of the next turn", "tokenizer": ", the tokenizer's: the template writes none"}
        roles = ["system"] * self.takes_system + ["user", "assistant"] + ["tool"] * self.takes_tool
        lines = [
            f"chat template; {bos}; a turn ends with {self.end!r} ({self.end_id}{ended[self.end_from]})",
            f"roles {', '.join(roles)}{', user and assistant in turn' * self.must_alternate}; "
            f"tools {'rendered' if self.takes_tools else 'not rendered'}",
        ]
        if self.before:
            lines.append(f"between prompt and response it writes {self.before!r}, which is learned with the response")
        if self.dropped:
            lines.append(f"prompts end with {self.dropped!r}, which finished turns do not have")
        if self.day is not None:
            lines.append(f"the template shows the day: {self.day} in every prompt (text.template_date)")
        return lines


def describe_chat(tokenizer: PreTrainedTokenizerBase, text: TextConfig) -> tuple[ChatTemplate, ChatFormat]:
    """Render small conversations and describe the template; the template then knows the roles and tokens of its turns.

    Raises:
        ModelError: a question and its answer cannot be rendered, or the finished turn does not continue the prompt.
    """
    template = ChatTemplate(tokenizer, text)
    asked: list[Any] = [{"role": "user", "content": ASKED}]
    prompt, whole = template.render(asked), template.render(asked, ANSWERED)
    if ASKED not in prompt or ANSWERED not in whole:
        raise ModelError(
            f"the chat template of {template.name} leaves out the text of a question or an answer", hint="set text.template: plain"
        )
    shared, opens = _shared_start(template, prompt, whole)
    dropped = prompt[len(shared) :]
    place = whole.rindex(ANSWERED)
    end, end_from, after = _end_of_turn(template, asked, whole[place + len(ANSWERED) :])
    header = _header(template, prompt)
    opening = template.render(asked, prompt=False) + prompt[prompt.rindex(ASKED) :]
    template.protect({token for token in template.added if token in opening + end} - {*THINKING, *THINKING.values()})
    bos = tokenizer.bos_token
    takes_system = _renders(template, [{"role": "system", "content": SYSTEM}, *asked], SYSTEM, ASKED)
    template.takes_system = takes_system
    chat_format = ChatFormat(
        name=template.name,
        end_id=encode_texts(tokenizer, [end])[0][-1],
        end=end,
        end_from=end_from,
        after=after,
        header=header,
        dropped=dropped,
        opens_thinking=opens,
        before=whole[len(shared) : place],
        adds_bos=bos is not None and prompt.lstrip().startswith(bos),
        takes_system=takes_system,
        takes_tool=_takes_tool(template, asked),
        must_alternate=not _renders(template, [*asked, {"role": "user", "content": AGAIN}], ASKED, AGAIN),
        takes_tools=_takes_tools(template, asked),
        thinks=_renders(template, [*asked, {"role": "assistant", "content": ANSWERED, "reasoning_content": THOUGHT}], THOUGHT),
        day=_shown_day(tokenizer, text, prompt, asked),
    )
    return template, chat_format


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None = None, chat: ChatFormat | None = None
) -> frozenset[int]:
    """Ids of all tokens that end a response: the tokenizer's, those that the generation configuration declares, and the template's."""
    declared = getattr(generation, "eos_token_id", None)
    found: Collection[Any] = declared if isinstance(declared, list | tuple) else [declared]
    ends = {tokenizer.eos_token_id, *found, None if chat is None else chat.end_id} - {None}
    return frozenset(int(end) for end in ends)


def uses_chat(tokenizer: PreTrainedTokenizerBase, text: TextConfig) -> bool:
    """Whether prompts are rendered by the tokenizer's chat template.

    Raises:
        ModelError: ``text.template`` is ``chat``, and the tokenizer has none.
    """
    if text.template == "chat" and not tokenizer.chat_template:
        raise ModelError(
            f"text.template is 'chat' but the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template",
            hint="set text.template to 'plain' or 'auto', or use an instruction-tuned model",
        )
    return text.template != "plain" and bool(tokenizer.chat_template)


def _shared_start(template: ChatTemplate, prompt: str, whole: str) -> tuple[str, bool]:
    """The part of the prompt that the finished conversation begins with, and whether the rest opens a thinking block.

    Raises:
        ModelError: the rest is not a thinking block.
    """
    if whole.startswith(prompt):
        return prompt, False
    if (opening := OPEN_THINKING.search(prompt)) and whole.startswith(prompt[: opening.start()]):
        return prompt[: opening.start()], True
    shared = _common_start(prompt, whole)
    if not CLOSED_THINKING.search(prompt[len(shared) :]):
        raise ModelError(
            f"the chat template of {template.name} writes {prompt[-80:]!r} in front of a response, and a finished turn is another: "
            f"{whole[max(0, len(shared) - 40) : len(shared) + 80]!r}",
            hint="set text.template: plain, or text.template_arguments so that both agree",
        )
    return shared, False


def _end_of_turn(template: ChatTemplate, asked: list[Any], tail: str) -> tuple[str, Literal["turn", "next turn", "tokenizer"], str]:
    """The tokens that end a turn, one or several in a row, where they were found, and the text behind them."""
    if found := _first_tokens(template, tail):
        return found.group(), "turn", tail[found.end() :]
    try:
        longer = template.render([*asked, {"role": "assistant", "content": ANSWERED}, {"role": "user", "content": AGAIN}], prompt=False)
        following = longer[longer.rindex(ANSWERED) + len(ANSWERED) : longer.rindex(AGAIN)]
    except (RefusedConversation, ValueError):
        following = ""
    tokenizer = template.tokenizer
    found = _first_tokens(template, following, most=1)
    if found and not following[: found.start()].strip() and found.group() != tokenizer.eos_token:
        return found.group(), "next turn", tail
    if tokenizer.eos_token is None:
        raise ModelError(
            f"neither the chat template nor the tokenizer of {template.name} has a token that ends a turn",
            hint="use a causal language model's tokenizer, or set its eos_token",
        )
    return str(tokenizer.eos_token), "tokenizer", tail


def _header(template: ChatTemplate, prompt: str) -> str:
    """The end of every prompt from its last control token on."""
    tail = prompt[prompt.rindex(ASKED) + len(ASKED) :]
    places = [tail.rindex(token) for token in template.added if token in tail]
    return tail[max(places) :] if places else ""


def _first_tokens(template: ChatTemplate, text: str, most: int = 9) -> re.Match[str] | None:
    """The first control token, and up to ``most`` in all that follow one another directly (Command R: <|END_RESPONSE|><|END_OF_TURN…|>). A
    beginning-of-sequence token belongs to what follows."""
    bos, eos = template.tokenizer.bos_token, template.tokenizer.eos_token
    tokens = sorted((token for token in template.added if token != bos or token == eos), key=len, reverse=True)
    return re.search(f"(?:{'|'.join(map(re.escape, tokens))}){{1,{most}}}", text) if tokens else None


def _renders(template: ChatTemplate, turns: list[Any], *texts: str) -> bool:
    """Whether the template takes the conversation and writes all ``texts``: some leave a role out without a word."""
    try:
        rendered = template.render_turns([dict(turn) for turn in turns], prompt=False)
    except ModelError:
        return False
    return all(text in rendered for text in texts)


def _takes_tool(template: ChatTemplate, asked: list[Any]) -> bool:
    def turns(arguments: Any) -> list[Any]:
        call = {"id": "call00001", "type": "function", "function": {"name": "lookup", "arguments": arguments}}
        answer = {"role": "tool", "name": "lookup", "tool_call_id": "call00001", "content": AGAIN}
        return [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}, answer]

    arguments = {"place": "harbour"}
    return any(_renders(template, turns(form), "lookup", AGAIN) for form in (arguments, json.dumps(arguments)))  # templates differ


def _takes_tools(template: ChatTemplate, asked: list[Any]) -> bool:
    properties = {"place": {"type": "string", "description": "A place."}}
    function = {
        "name": "lookup",
        "description": "Look up.",
        "parameters": {"type": "object", "properties": properties, "required": ["place"]},
    }
    try:
        rendered = template.render_turns(
            [dict(turn) for turn in asked], [{"type": "function", "function": function}], prompt=True, has_tools=True
        )
    except ModelError:
        return False
    return "lookup" in rendered


def _shown_day(tokenizer: PreTrainedTokenizerBase, text: TextConfig, prompt: str, asked: list[Any]) -> date | None:
    """The pinned day, if the template shows it: another day renders another prompt."""
    day = shown_day(text)
    another = day.replace(year=day.year + 1, month=(day.month % 12) + 1, day=2 if day.day != 2 else 3)
    other = ChatTemplate(tokenizer, text.evolve(template_date=another.isoformat()))
    return day if other.render(asked) != prompt else None


def _common_start(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
