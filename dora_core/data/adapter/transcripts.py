r"""Conversations written as one text: Anthropic-HH transcripts, and texts that already hold a chat template.

A transcript (``\n\nHuman: …\n\nAssistant: …``) is always read. Templated text is refused by default, because a second template would be put
around it and its special tokens would become tokens of the policy; ``messages: {templated: parse}`` reads ChatML, Llama 2, Llama 3, Gemma,
Zephyr and Phi 3, HelpSteer's turns and the Beaver prompt. Left out: other templates (they are recognised and refused), and texts cut off
inside a marker.
"""

from __future__ import annotations

import re
from typing import Any

Turn = dict[str, Any]

_HH_SPLIT = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}

_TOKEN = re.compile(r"<\|[A-Za-z_][A-Za-z0-9_]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|<(?:start|end)_of_turn>|<extra_id_\d+>|\[/?INST\]|<</?SYS>>")
_CHATML = re.compile(r"<\|im_start\|>([A-Za-z_]+)\n(.*?)(?:<\|im_end\|>\s*|\Z)", re.DOTALL)
_LLAMA3 = re.compile(r"<\|start_header_id\|>([A-Za-z_]+)<\|end_header_id\|>\n*(.*?)(?:<\|eot_id\|>\s*|\Z)", re.DOTALL)
_LLAMA2 = re.compile(r"(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?:</s>|(?=\s*(?:<s>)?\s*\[INST\])|\Z)", re.DOTALL)
_LLAMA2_SYSTEM = re.compile(r"\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)
_BEAVER_START = "BEGINNING OF CONVERSATION:"
_BEAVER_SPLIT = re.compile(r"(?:^|\s)(USER|ASSISTANT):")
_END_TOKENS = re.compile(r"(?:\s*(?:<\|im_end\|>|<\|eot_id\|>|<\|endoftext\|>|<\|end_of_text\|>|<end_of_turn>|<\|end\|>|<eos>|</s>))+\s*\Z")
_ROLE_PROMPT = re.compile(
    r"(?:^|\s)USER:.*\sASSISTANT:\s*\Z|(?:^|\n)[ \t]*(?:User|Human):.*\n[ \t]*Assistant:\s*\Z|\n\nAssistant:\s*\Z",
    re.DOTALL,
)
_INSTRUCT = re.compile(r"(?:^|\n)Instruct(?:ion)?:.*\nOutput:\s*\Z", re.DOTALL)
_HEADINGS = re.compile(r"^###[ \t]*(\w[\w ]{0,30}?)[ \t]*:", re.MULTILINE)
_OPEN_HEADING = re.compile(r"(?:^|\n)###[ \t]*(?:Response|Assistant|Answer|Output|Completion|AI|Bot|GPT)[ \t]*:\s*\Z", re.IGNORECASE)
_GEMMA = re.compile(r"<start_of_turn>([A-Za-z_]+)\n(.*?)(?:<end_of_turn>\s*|\Z)", re.DOTALL)
_ROLE_TOKENS = re.compile(
    r"<\|(system|user|assistant)\|>\s*(.*?)\s*(?:(?:</s>|<\|end\|>|<\|endoftext\|>)\s*|(?=<\|(?:system|user|assistant)\|>)|\Z)", re.DOTALL
)
_EXTRA_ID = re.compile(r"\n?<extra_id_1>(User|Assistant)\n?")


def is_plain(text: str) -> bool:
    """Whether a text certainly holds neither a transcript nor a template nor a list or object; substring tests only, for speed."""
    if text[:1] in "[{ \n\t\r" or text[-1:] in "]}":
        return False
    if "<" in text and ("<|" in text or "_of_turn>" in text or "<extra_id_" in text or "<｜" in text or "SYS>>" in text or "</s>" in text):
        return False
    if ":" in text and ("ssistant:" in text or "ASSISTANT:" in text or "USER:" in text or "### " in text or "Output:" in text):
        return False
    return "]" not in text or "INST]" not in text


def hh_transcript(text: str) -> list[Turn] | None:
    r"""Messages of an HH transcript, None for any other text. The first line breaks may be missing where a turn of the assistant
    follows."""
    start = text.lstrip()
    if not text.startswith(("\n\nHuman:", "\n\nAssistant:")):
        if not (start.startswith("Human:") and "\n\nAssistant:" in start):
            return None
        text = f"\n\n{start}"
    pieces = _HH_SPLIT.split(text)[1:]
    return [{"role": _HH_ROLES[name], "content": content.strip()} for name, content in zip(pieces[::2], pieces[1::2], strict=True)]


def has_token(text: str) -> bool:
    """Whether a text holds a special token of a template, which a tokenizer would turn into a control token."""
    return _TOKEN.search(text) is not None or (text.rstrip().endswith("</s>") and "<s>" not in text[5:])


def template_in(text: str, *, prompt: bool) -> str | None:
    """The sign of a chat template in a text, in words; None if there is none. See :func:`has_token`."""
    token = _TOKEN.search(text)
    if token is not None:
        return f"the template token {token[0]!a}"
    if text.rstrip().endswith("</s>") and "<s>" not in text[5:]:
        return "the end token '</s>'"
    if text.lstrip().startswith(_BEAVER_START):
        return f"the template {_BEAVER_START!r}"
    if prompt:
        if "### Response:" in text and ("### Instruction:" in text or "### Input:" in text):
            return "the Alpaca template '### Instruction: … ### Response:'"
        if (marks := _HEADINGS.findall(text)) and len(marks) > 1 and _OPEN_HEADING.search(text):
            return f"the template '### {marks[0]}: … ### {marks[-1]}:'"
        if _INSTRUCT.search(text):
            return "the template 'Instruct: … Output:'"
        if _ROLE_PROMPT.search(text):
            return "the template 'User: … Assistant:'"
    return None


def parse_template(text: str) -> list[Turn] | None:
    """Messages of a ChatML, Llama 2, Llama 3, Gemma, Zephyr, Phi 3 or Beaver text, the empty last one of an open turn included; None if
    it is none of them, whole."""
    body = text.strip()
    for prefix in ("<|begin_of_text|>", "<|endoftext|>", "<bos>"):
        body = body.removeprefix(prefix)
    if body.startswith("<|im_start|>"):
        return _whole(_CHATML, body)
    if body.startswith("<|start_header_id|>"):
        return _whole(_LLAMA3, body)
    if body.startswith("<start_of_turn>"):
        return _whole(_GEMMA, body)
    if _ROLE_TOKENS.match(body):
        return _whole(_ROLE_TOKENS, body)
    if re.match(r"(?:<s>)?\s*\[INST\]", body):
        return _llama2(body)
    if body.startswith(_BEAVER_START):
        return _beaver(body.removeprefix(_BEAVER_START))
    if "<extra_id_1>" in body:
        return _extra_id(body)
    return None


def without_end_tokens(text: str) -> str:
    """A response without the end tokens that a template wrote behind it."""
    return _END_TOKENS.sub("", text)


def _whole(pattern: re.Pattern[str], text: str) -> list[Turn] | None:
    turns, position = [], 0
    text = f"{text}\n" if re.search(r"(?:<\|im_start\|>|<start_of_turn>)[A-Za-z_]+\Z", text) else text
    for match in pattern.finditer(text):
        if match.start() != position:
            return None
        turns.append({"role": match[1], "content": match[2].strip()})
        position = match.end()
    return turns if turns and position == len(text) else None


def _llama2(text: str) -> list[Turn] | None:
    turns: list[Turn] = []
    position = 0
    for match in _LLAMA2.finditer(text):
        if text[position : match.start()].strip():
            return None
        question, answer = match[1], match[2]
        system = _LLAMA2_SYSTEM.match(question)
        if system is not None:
            if turns:
                return None
            turns.append({"role": "system", "content": system[1].strip()})
            question = question[system.end() :]
        turns += [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]
        position = match.end()
    return turns if turns and not text[position:].strip() else None


def _extra_id(text: str) -> list[Turn] | None:
    """HelpSteer's turns: the first one is the user's, a line ``<extra_id_1>Assistant`` or ``<extra_id_1>User`` begins each other one."""
    pieces = _EXTRA_ID.split(text)
    names = {"User": "user", "Assistant": "assistant"}
    rest = [{"role": names[name], "content": content.strip()} for name, content in zip(pieces[1::2], pieces[2::2], strict=True)]
    first = [{"role": "user", "content": pieces[0].strip()}] if pieces[0].strip() else []
    return first + rest if rest else None


def _beaver(text: str) -> list[Turn] | None:
    pieces = _BEAVER_SPLIT.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        return None
    names = {"USER": "user", "ASSISTANT": "assistant"}
    return [{"role": names[name], "content": content.strip()} for name, content in zip(pieces[1::2], pieces[2::2], strict=True)]
