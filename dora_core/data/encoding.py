"""Encoding messages as token ids: one template rule and one truncation rule for every stage.

With a chat template (``chat_format.py``) prompt ids are exactly those of ``apply_chat_template(…, add_generation_prompt=True)``, and
response ids those that the template writes from there to the end of that turn, its end token included. Without one, prompt and response are
tokenised apart, a missing BOS is put in front of the prompt, and the tokenizer's end token behind the response. Either way the prompt's
tokens never depend on the response (log-probabilities of two responses share exactly the same prefix), and texts of the data never
become control tokens.

Prompts keep their end, responses their beginning; a response that was cut has no end token, because the model generated none there. A chat
prompt that is too long loses its oldest turns, then the beginning of its last text; its system message stays if it fits.

A response of several turns (``response_turns.py``) is one sequence in which each turn of the assistant stands behind exactly the tokens
that it was asked with, and between them the turns of others, which are not learned. Templates that render an earlier turn otherwise than
the last one, such as those that drop its thoughts, have no such sequence: the record is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from dora_core.data.chat_format import THINKING, ChatFormat, describe_chat, end_tokens, uses_chat
from dora_core.data.chat_template import MARK, ChatTemplate, chat_turns, encode_texts, mark_text, refuse_tools, special_tokens
from dora_core.data.response_turns import TURN, split_turns
from dora_core.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from dora_core.config.method import TextConfig
    from dora_core.data.records import Message

__all__ = ["EncodedResponse", "Encoder", "chat_turns", "plain_prompt"]


MUCH_CUT = 0.05
"""Share of texts that were cut from which it is a note of the run."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt. ``cut``: tokens lost at its front; ``lost_system``: its system message was among them."""

    ids: list[int]
    cut: int = 0
    lost_system: bool = False


@dataclass(frozen=True)
class EncodedResponse:
    """Token ids of one (prompt, response).

    Attributes:
        truncated: tokens lost on either side.
        context: ``[start, stop)`` places in ``response_ids`` that are not learned, ascending: turns between those of the assistant.
        cut: tokens that the response alone lost; known where the texts are encoded, and not kept with the ids.
        lost_system: the prompt's system message was among the tokens lost; likewise.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    truncated: int
    context: tuple[tuple[int, int], ...] = ()
    cut: int = field(default=0, compare=False)
    lost_system: bool = field(default=False, compare=False)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def learned(self) -> int:
        """Number of tokens that log π is the sum over: |y|."""
        return len(self.response_ids) - sum(stop - start for start, stop in self.context)

    def learned_places(self) -> Sequence[int]:
        """Places of these tokens in ``response_ids``, ascending."""
        if not self.context:
            return range(len(self.response_ids))
        starts, stops = [0, *(stop for _, stop in self.context)], [*(start for start, _ in self.context), len(self.response_ids)]
        return list(chain.from_iterable(map(range, starts, stops)))


TurnIds: TypeAlias = "tuple[list[int], tuple[tuple[int, int], ...]]"
"""Ids of a response, and the places that are not learned."""


def plain_prompt(messages: Sequence[Message]) -> str:
    """Messages as plain text: a lone user message is its content, a conversation is ``Role: content`` lines."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


class Encoder:
    """Encodes (prompt, response) pairs under one :class:`TextConfig`.

    Attributes:
        chat, template: description of the chat template, and the template; None where prompts are plain text.
        end_id: the token that ends a response.

    Raises:
        ModelError: the tokenizer has no end token, or its chat template cannot be used.
    """

    chat: ChatFormat | None
    template: ChatTemplate | None
    _opening: list[int]

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: TextConfig):
        self.tokenizer, self.text = tokenizer, text
        if uses_chat(tokenizer, text):
            template, self.chat = describe_chat(tokenizer, text)
            self.template = template
            self.end_id = self.chat.end_id
            [before] = encode_texts(tokenizer, [self.chat.before])
            special = set(tokenizer.all_special_ids) | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
            self._opening = before if before and before[-1] in special else []
            return
        self.chat, self.template, self._opening = None, None, []
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token", hint="use a causal language model's tokenizer"
            )
        self._bos, self.end_id = tokenizer.bos_token_id, tokenizer.eos_token_id  # looked up once: a lookup takes microseconds
        self._special = special_tokens(tokenizer)

    def prompt(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Prompt ids and the number of tokens cut from their front."""
        [encoded] = self.prompts([messages])
        return encoded.ids, encoded.cut

    def prompts(self, prompts: Sequence[Sequence[Message]]) -> list[EncodedPrompt]:
        """All prompts, in one call of the tokenizer."""
        return self._prompts(prompts, [self._prompt_text(messages) for messages in prompts])

    def encode(self, messages: Sequence[Message], response: str) -> EncodedResponse:
        """One pair."""
        [[encoded]] = self.encode_lists([messages], [[response]])
        return encoded

    def encode_lists(self, prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[str]]) -> list[list[EncodedResponse]]:
        """:meth:`encode` of every response of every prompt; all texts go to the tokenizer in one call, which then uses all cores. The
        responses of a prompt share one list of prompt ids.

        Raises:
            RefusedConversation: the chat template refuses a conversation.
            DataError: a rendered conversation is not its prompt, its response and the end of the turn; the message shows the place.
        """
        texts = [self._prompt_text(messages) for messages in prompts]
        encoded = self._prompts(prompts, texts)
        ids: Iterator[TurnIds]
        if any(TURN in response for of_prompt in responses for response in of_prompt):
            ids = self._several_turns(prompts, responses)
        else:
            single = self._chat_responses(prompts, texts, responses) if self.chat else self._plain_responses(responses)
            ids = ((found, ()) for found in single)
        return [[self._cut_response(prompt, *next(ids)) for _ in of_prompt] for prompt, of_prompt in zip(encoded, responses, strict=True)]

    def _prompts(self, prompts: Sequence[Sequence[Message]], texts: list[str]) -> list[EncodedPrompt]:
        return [self._cut_prompt(ids, messages) for ids, messages in zip(encode_texts(self.tokenizer, texts), prompts, strict=True)]

    def ends(self, generation: GenerationConfig | None = None) -> frozenset[int]:
        """Ids of all tokens that end a response, with those that the model's generation configuration declares."""
        return end_tokens(self.tokenizer, generation, self.chat)

    def decode(self, responses: Sequence[Sequence[int]], ends: frozenset[int]) -> list[str]:
        """Texts of generated responses, as they would stand in a message: without end token and special tokens, and without what the
        template writes in front of a text in special tokens (the channel of gpt-oss)."""
        own = [self._own(list(ids), ends) for ids in responses]
        texts: list[str] = self.tokenizer.batch_decode(own, skip_special_tokens=True)
        return texts

    def _own(self, ids: list[int], ends: frozenset[int]) -> list[int]:
        """Ids of a response's own text."""
        ids = ids[:-1] if ids and ids[-1] in ends else ids
        opening = self._opening
        if opening:
            starts = [place for place in range(len(ids) - len(opening) + 1) if ids[place : place + len(opening)] == opening]
            ids = ids[starts[-1] + len(opening) :] if starts else ids
        return ids

    # -------------------------------------------------------------------------------------------------------- plain text

    def _prompt_text(self, messages: Sequence[Message]) -> str:
        if self.template is not None:
            return self.template.render(messages)
        return mark_text(_plain_text(messages, self.tokenizer), self._special)

    def _plain_responses(self, responses: Sequence[Sequence[str]]) -> Iterator[list[int]]:
        texts = [mark_text(response, self._special) for of_prompt in responses for response in of_prompt]
        return ([*ids, self.end_id] for ids in encode_texts(self.tokenizer, texts))

    # --------------------------------------------------------------------------------------------------------------- chat

    def _chat_responses(
        self, prompts: Sequence[Sequence[Message]], texts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Iterator[list[int]]:
        """Ids of every response as the template writes it, cut out of the text from the prompt's last control token on: a tokenizer splits
        texts at added tokens, so nothing before it changes the ids behind it."""
        assert self.chat is not None and self.template is not None
        header = self.chat.header
        heads, turns = list[str](), list[str]()
        for messages, prompt, of_prompt in zip(prompts, texts, responses, strict=True):
            head = header if header and prompt.endswith(header) else prompt
            for response in of_prompt:
                heads.append(head)
                turns.append(self._turn(prompt, self.template.render(messages, response), response))
        head_ids = dict(zip(distinct := list(dict.fromkeys(heads)), encode_texts(self.tokenizer, distinct), strict=True))
        found = encode_texts(self.tokenizer, [head + turn for head, turn in zip(heads, turns, strict=True)])
        return (self._behind(head_ids[head], ids, turn) for head, ids, turn in zip(heads, found, turns, strict=True))

    def _several_turns(self, prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[str]]) -> Iterator[TurnIds]:
        """Ids and context of every response: each turn of the assistant is encoded as the response to all that precedes it, and their
        sequences must continue one another.

        Raises:
            DataError: prompts are plain text, or an earlier turn's tokens are others in the prompt of a later one.
        """
        if self.chat is None:
            raise DataError(
                "a response has several turns (messages.learn_turns: all), and without a chat template it is not defined how they are read",
                hint="use a model with a chat template, or leave learn_turns out",
            )
        counts, answers = list[int](), list[list[str]]()
        asked: list[list[Message]] = []
        for messages, of_prompt in zip(prompts, responses, strict=True):
            for turns in map(split_turns, of_prompt):
                places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
                counts.append(len(places))
                asked += [[*messages, *turns[:place]] for place in places]
                answers += [[turns[place]["content"]] for place in places]
        texts = [self._prompt_text(messages) for messages in asked]
        found = zip(encode_texts(self.tokenizer, texts), self._chat_responses(asked, texts, answers), strict=True)
        return (self._joined_turns([next(found) for _ in range(count)]) for count in counts)

    def _joined_turns(self, exchanges: list[tuple[list[int], list[int]]]) -> TurnIds:
        """One sequence behind the first prompt, from (prompt, turn) of each turn of the assistant."""
        first, context = exchanges[0][0], list[tuple[int, int]]()
        whole = first
        for prompt, turn in exchanges:
            if prompt[: len(whole)] != whole:
                self._refuse_ids(whole, prompt, "an earlier turn is rendered otherwise than the last one (messages.learn_turns: all)")
            context += [(len(whole) - len(first), len(prompt) - len(first))] if len(prompt) > len(whole) else []
            whole = [*prompt, *turn]
        return whole[len(first) :], tuple(context)

    def _turn(self, prompt: str, whole: str, response: str) -> str:
        """The response's text from the end of the prompt to the end token, which is left out where the template does not write it."""
        chat = self.chat
        assert chat is not None
        shared = prompt.removesuffix(chat.dropped) if chat.dropped else prompt
        tail = (chat.end if chat.end_from == "turn" else "") + chat.after
        if not whole.startswith(shared):
            self._refuse(prompt, whole)
        if tail and not whole.endswith(tail):
            self._refuse(shared + whole[len(shared) :].rstrip() + tail, whole)
        turn = whole[len(shared) : len(whole) - len(chat.after)]
        if not chat.opens_thinking:
            return turn
        assert self.template is not None
        opener = chat.dropped.strip()
        opened, closing, answer = self.template.marked_response(response).partition(THINKING[opener])
        if not closing:
            raise DataError(
                f"prompts of {chat.name} end with {chat.dropped!r}, and a response has no {THINKING[opener]!r} that closes this block: "
                f"{response[:60]!r}",
                hint=f"give responses with their thinking (… {THINKING[opener]} answer), switch thinking off where the template can "
                "(text.template_arguments: {enable_thinking: false}), or set text.template: plain",
            )
        thought = opened.replace(opener, "", 1).lstrip("\n") if response.startswith(opener) else opened
        return thought + closing + answer + (chat.end if chat.end_from == "turn" else "")

    def _behind(self, head: list[int], ids: list[int], turn: str) -> list[int]:
        """The ids of a turn behind those of the prompt's end."""
        chat = self.chat
        assert chat is not None
        if ids[: len(head)] == head:
            found = ids[len(head) :]
        else:  # the first characters of the response would merge with the prompt's last ones; they are generated apart
            [found] = encode_texts(self.tokenizer, [turn])
            if self.tokenizer.decode([*head, *found]) != self.tokenizer.decode(ids):
                self._refuse_ids([*head, *found], ids)
        return found if chat.end_from == "turn" else [*found, chat.end_id]  # the end of a next turn is one token

    def _refuse(self, expected: str, whole: str) -> NoReturn:
        expected_ids, ids = encode_texts(self.tokenizer, [expected, whole])
        self._refuse_ids(expected_ids, ids)

    def _refuse_ids(self, expected: list[int], ids: list[int], why: str = "") -> NoReturn:
        place = next((i for i, (a, b) in enumerate(zip(expected, ids, strict=False)) if a != b), min(len(expected), len(ids)))
        shown = self.tokenizer.decode(ids[max(0, place - 8) : place])
        ours, theirs = (self.tokenizer.decode(side[place : place + 8]) for side in (expected, ids))
        assert self.chat is not None
        raise DataError(
            f"a conversation rendered by the chat template of {self.chat.name} is not prompt + response + end of turn: behind {shown!r} "
            f"(token {place}) it has {theirs!r}, expected {ours!r}{f'; {why}' if why else ''}",
            hint="leave the record out, or learn the last turn alone (messages.learn_turns: last, differ: cut)"
            if why
            else "leave the record out, or set text.template: plain; `dora data preview` shows how records are rendered",
        )

    # ---------------------------------------------------------------------------------------------------------------- cuts

    def _cut_prompt(self, ids: list[int], messages: Sequence[Message]) -> EncodedPrompt:
        limit = self.text.max_prompt_tokens
        if self.chat is None:
            if self._bos is not None and (not ids or ids[0] != self._bos):
                ids = [self._bos, *ids]
            return _cut_front(ids, 1 if self._bos is not None else 0, limit, has_system=_has_system(messages))
        if len(ids) <= limit:
            return EncodedPrompt(ids)
        return self._shortened(ids, messages)

    def _shortened(self, ids: list[int], messages: Sequence[Message]) -> EncodedPrompt:
        """A chat prompt without its oldest turns; the last one loses the beginning of its text if it is still too long."""
        limit, kept = self.text.max_prompt_tokens, _system_of(messages)
        turns, tools = list(messages[len(kept) :]), chat_turns(messages)[1]
        for first in (place for place, turn in enumerate(turns) if place and turn["role"] == "user"):
            [shorter] = encode_texts(self.tokenizer, [self._prompt_text(_with_tools([*kept, *turns[first:]], tools))])
            if len(shorter) <= limit:
                return EncodedPrompt(shorter, len(ids) - len(shorter))
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=0)
        text = self._prompt_text(_with_tools([*kept, *turns[last:]], tools))
        [shorter] = encode_texts(self.tokenizer, [text])
        content = turns[last]["content"].strip() if turns else ""
        head = self._before_content(text, content, shorter)
        if head is not None and limit - head >= limit // 4:
            cut = _cut_front(shorter, head, limit, has_system=False)
            return EncodedPrompt(cut.ids, len(ids) - len(cut.ids))
        # The system message leaves no room for the question: keep its first token alone, as without a chat template.
        cut = _cut_front(shorter, 1 if self.chat and self.chat.adds_bos else 0, limit, has_system=True)
        return EncodedPrompt(cut.ids, len(ids) - len(cut.ids), cut.lost_system)

    def _before_content(self, text: str, content: str, ids: list[int]) -> int | None:
        """Number of ids in front of the last question's own text; None where it is not found in the rendered text."""
        place = text.rfind(content) if content else -1
        if place < 0 or MARK in text:
            return None
        [head] = encode_texts(self.tokenizer, [text[:place]])
        while head and ids[: len(head)] != head:
            head.pop()
        return len(head)

    def _cut_response(self, prompt: EncodedPrompt, ids: list[int], context: tuple[tuple[int, int], ...] = ()) -> EncodedResponse:
        limit = self.text.max_response_tokens
        if context and len(ids) > limit:
            limit = next((start for start, stop in context if start < limit <= stop), limit)  # nothing would be learned behind it
            context = tuple(span for span in context if span[1] <= limit)
        lost = max(0, len(ids) - limit)
        return EncodedResponse(prompt.ids, ids[:limit], prompt.cut + lost, context, lost, prompt.lost_system)


def _plain_text(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    if any(message.get("extra") for message in messages):
        refuse_tools("plain text", str(tokenizer.name_or_path or "this model"))
    return plain_prompt(messages) + "\n"


def _with_tools(messages: list[Message], tools: list[Any] | None) -> list[Message]:
    """The messages with the tool definitions of a longer conversation, in the first message if none has them."""
    if not tools or not messages or chat_turns(messages)[1]:
        return messages
    extra = json.loads(messages[0].get("extra") or "{}") | {"tools": tools}
    first: Message = {**messages[0], "extra": json.dumps(extra)}
    return [first, *messages[1:]]


def _has_system(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[0]["role"] == "system"


def _system_of(messages: Sequence[Message]) -> list[Message]:
    """The messages before the first turn of a user or the assistant."""
    first = next((place for place, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return list(messages[:first])


def _cut_front(ids: list[int], head: int, limit: int, *, has_system: bool) -> EncodedPrompt:
    """At most ``limit`` ids: the first ``head`` of them and the last ones."""
    cut = max(0, len(ids) - limit)
    if not cut:
        return EncodedPrompt(ids)
    return EncodedPrompt(ids[:head] + ids[len(ids) - limit + head :], cut, has_system)
