"""Encoding messages as token ids: one template rule and one truncation rule for every stage.

Prompt and response are tokenised apart and their ids concatenated, so the prompt's tokens never depend on the response
(log-probabilities of two responses share exactly the same prefix). Prompts keep their end, responses their beginning; a
response that was cut has no end-of-sequence token, because the model generated none there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dora_core.data.records import Message
from dora_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dora_core.config.method import TextConfig


@dataclass(frozen=True)
class EncodedResponse:
    """Token ids of one (prompt, response); ``truncated`` counts tokens lost on either side."""

    prompt_ids: list[int]
    response_ids: list[int]
    truncated: int

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def plain_prompt(messages: Sequence[Message]) -> str:
    """Messages as plain text: a lone user message is its content, a conversation is ``Role: content`` lines."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The text in front of the response: the prompt in the tokenizer's chat template, or plain text and a line break.

    Args:
        template: ``auto`` (chat template when the tokenizer has one), ``chat`` or ``plain`` (``TextConfig.template``).

    Raises:
        ModelError: ``chat`` with a tokenizer that has no chat template.
    """
    if template == "chat" and not tokenizer.chat_template:
        raise ModelError(
            f"text.template is 'chat' but the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template",
            hint="set text.template to 'plain' or 'auto', or use an instruction-tuned model",
        )
    turns, tools = chat_turns(messages)
    has_tools = any(message.get("extra") for message in messages)
    if template == "plain" or not tokenizer.chat_template:
        if has_tools:
            _refuse_tools("plain text", tokenizer)
        return plain_prompt(messages) + "\n"
    if has_tools and "tool" not in tokenizer.get_chat_template(tools=tools):
        _refuse_tools("the chat template", tokenizer)
    options = {"tools": tools} if tools else {}
    rendered: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    return rendered


def chat_turns(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Messages as a chat template or a chat server takes them, with their tool calls; and the prompt's tool definitions, if any."""
    tools, turns = None, list[dict[str, Any]]()
    for message in messages:
        extra = json.loads(message.get("extra") or "{}")
        tools = extra.pop("tools", None) or tools
        turns.append({"role": message["role"], "content": message["content"], **extra})
    return turns, tools


def _refuse_tools(what: str, tokenizer: PreTrainedTokenizerBase) -> NoReturn:
    raise ModelError(
        f"prompts of the data have tools, and {what} of {tokenizer.name_or_path or 'this model'} cannot render them",
        hint="use a model whose chat template has tools, or set data.tools: refuse to quarantine these rows",
    )


class Encoder:
    """Encodes (prompt, response) pairs under one :class:`TextConfig`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: TextConfig):
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token", hint="use a causal language model's tokenizer"
            )
        self.tokenizer, self.text = tokenizer, text
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id  # looked up once: a lookup takes microseconds

    def prompt(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Prompt ids and the number of tokens cut from their front (a leading BOS survives the cut)."""
        rendered = render_prompt(messages, self.tokenizer, self.text.template)
        return self._cut_prompt(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def encode(self, messages: Sequence[Message], response: str) -> EncodedResponse:
        """One pair."""
        prompt_ids, cut = self.prompt(messages)
        return self._cut_response(prompt_ids, cut, self.tokenizer(response, add_special_tokens=False)["input_ids"])

    def encode_lists(self, prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[str]]) -> list[list[EncodedResponse]]:
        """:meth:`encode` of every response of every prompt; all texts go to the tokenizer in one call, which then uses all cores. The
        responses of a prompt share one list of prompt ids."""
        rendered = [render_prompt(messages, self.tokenizer, self.text.template) for messages in prompts]
        ids = iter(self._ids([response for of_prompt in responses for response in of_prompt]))
        cut_prompts = [self._cut_prompt(prompt) for prompt in self._ids(rendered)]
        return [
            [self._cut_response(*prompt, next(ids)) for _ in of_prompt] for prompt, of_prompt in zip(cut_prompts, responses, strict=True)
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        return self.tokenizer(texts, **options)["input_ids"] if texts else []

    def _cut_prompt(self, ids: list[int]) -> tuple[list[int], int]:
        if self._bos is not None and (not ids or ids[0] != self._bos):
            ids = [self._bos, *ids]
        cut = max(0, len(ids) - self.text.max_prompt_tokens)
        if cut:
            head = ids[:1] if self._bos is not None else []
            ids = head + ids[len(ids) - self.text.max_prompt_tokens + len(head) :]
        return ids, cut

    def _cut_response(self, prompt_ids: list[int], cut: int, ids: list[int]) -> EncodedResponse:
        ids = [*ids, self._eos]
        lost = max(0, len(ids) - self.text.max_response_tokens)
        return EncodedResponse(prompt_ids, ids[: self.text.max_response_tokens], cut + lost)
