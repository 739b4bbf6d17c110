"""Tokens of chats are those of ``apply_chat_template``, for the templates of thirty families."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.config.method import TextConfig
from dora_core.data.chat_format import describe_chat, end_tokens, uses_chat
from dora_core.data.chat_template import FIXED_DATE
from dora_core.data.encoding import Encoder
from dora_core.data.response_turns import join_turns
from dora_core.errors import DataError, ModelError
from tests.dora_core.data.chat_families import CHATML, FAMILIES, IM, Family, byte_tokenizer, sentence_tokenizer, turns

LONG = TextConfig(max_prompt_tokens=4096, max_response_tokens=4096)
ASKED = [{"role": "user", "content": "in the end"}]
TALK = [
    {"role": "user", "content": "  spaced\n"},
    {"role": "assistant", "content": "the answer\n"},
    {"role": "user", "content": "and the other?"},
]
SYSTEM = [{"role": "system", "content": "Be good."}, *ASKED]
RESPONSES = ("the moon", " a line\n\nand the other \n", "中文 ünï 🙂", "")


def rendered_ids(family: Family, messages: list[Any], *, prompt: bool) -> list[int]:
    """Ids of transformers' own rendering, with the day written where the template shows it."""
    tokenizer = family.tokenizer()
    if family.shows_day:
        form = family.shows_day.split("(")[1].strip(")").strip("'\"")
        tokenizer.chat_template = family.template.replace(family.shows_day, repr(FIXED_DATE.strftime(form)))
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=True, return_dict=False)
    return ids


def conversations(family: Family) -> list[list[dict[str, str]]]:
    return [ASKED, TALK, *([SYSTEM] if family.takes_system else [])]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_ids_are_those_of_the_template(name: str) -> None:
    family = FAMILIES[name]
    encoder = Encoder(family.tokenizer(), LONG)
    for messages in conversations(family):
        expected = rendered_ids(family, messages, prompt=True)
        assert encoder.prompt(messages) == (expected, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_response_and_end_are_the_whole_conversation(name: str) -> None:
    """The rendered conversation is the prompt, then the response with its end token, then what the template writes behind it. Where the
    template leaves the end of the prompt (``dropped``) out of finished turns, that is not part of it; where it writes no end token, the
    response has one all the same."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    encoder = Encoder(tokenizer, LONG)
    chat = encoder.chat
    assert chat is not None
    responses = [f"<think>\nso\n</think>\n\n{y}" for y in RESPONSES] if family.opens_thinking else RESPONSES
    for messages in conversations(family):
        for response in responses:
            encoded = encoder.encode(messages, response)
            assert encoded.response_ids[-1] == tokenizer.convert_tokens_to_ids(family.end)
            if family.opens_thinking:  # this template drops thoughts from finished turns, or lays them out anew
                assert tokenizer.decode(encoded.prompt_ids + encoded.response_ids).endswith(response.removeprefix("<think>\n") + family.end)
                continue
            whole = rendered_ids(family, [*messages, {"role": "assistant", "content": response}], prompt=False)
            start = encoded.prompt_ids
            if family.dropped:
                assert tokenizer.decode(start).endswith(family.dropped)
                start = tokenizer(tokenizer.decode(start).removesuffix(family.dropped), add_special_tokens=False)["input_ids"]
            learned = encoded.response_ids if chat.end_from == "turn" else encoded.response_ids[:-1]
            if chat.end_from == "tokenizer":  # only text behind the response: its first letters may merge with the last ones
                assert tokenizer.decode(whole) == tokenizer.decode(start + learned) + chat.after
                continue
            assert whole[: len(start) + len(learned)] == start + learned
            after = tokenizer.decode(whole[len(start) + len(learned) :])
            assert after == ("" if family.end in family.strips else chat.after)


@pytest.mark.parametrize("name", FAMILIES)
def test_description(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    _, chat = describe_chat(tokenizer, TextConfig())
    assert chat.end_id == tokenizer.convert_tokens_to_ids(family.end)
    assert (chat.adds_bos, chat.takes_system) == (family.writes_bos, family.takes_system)
    assert (chat.dropped, chat.opens_thinking) == (family.dropped, family.opens_thinking)
    assert chat.day == (FIXED_DATE if family.shows_day else None)
    assert repr(chat.end) in chat.lines()[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_text_of_the_data_never_becomes_a_control_token(name: str) -> None:
    """Special tokens and the tokens of turns, written in a question and in an answer, are ordinary text there: the prompt has as many
    control tokens as that of a harmless question, the response has its end alone, and both decode to the given texts."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    encoder = Encoder(tokenizer, LONG)
    words = [token for token in (*family.special, *family.others) if token not in ("<think>", "</think>", "<tool_call>", "</tool_call>")]
    evil = f"it says {' and '.join(words)} in one: {''.join(words)}; the end"
    harmless = encoder.encode(ASKED, "x</think>plain" if family.opens_thinking else "plain")
    asked = encoder.encode([{"role": "user", "content": evil}], "x</think>" + evil if family.opens_thinking else evil)
    controls = set(tokenizer.convert_tokens_to_ids(words))
    for found, expected in ((asked.prompt_ids, harmless.prompt_ids), (asked.response_ids, harmless.response_ids)):
        assert [i for i in found if i in controls] == [i for i in expected if i in controls]
    assert evil in tokenizer.decode(asked.prompt_ids)
    assert evil in tokenizer.decode(asked.response_ids)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", ["Llama 2", "Mistral v0.3", "Zephyr", "Gemma 3", "Vicuna"])
def test_a_tokenizer_that_puts_spaces_in_front_of_texts_gives_the_tokens_of_the_whole(name: str, legacy: bool) -> None:
    """A response encoded by itself would begin with a space that it has not."""
    family = FAMILIES[name]
    tokenizer = sentence_tokenizer(family.special, bos=family.bos, eos=family.eos, legacy=legacy)
    tokenizer.chat_template = family.template
    encoder = Encoder(tokenizer, LONG)
    for response in ("the moon", "  two spaces", "\nline", ""):
        encoded = encoder.encode(TALK, response)
        whole = tokenizer.apply_chat_template([*TALK, {"role": "assistant", "content": response}], tokenize=True, return_dict=False)
        assert encoded.prompt_ids == tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert (encoded.prompt_ids + encoded.response_ids) == whole[: len(encoded.prompt_ids) + len(encoded.response_ids)]
        assert encoded.response_ids[-1] == tokenizer.convert_tokens_to_ids(family.end)


def test_the_day_is_pinned_and_can_be_named() -> None:
    family = FAMILIES["Llama 3.2"]
    named = Encoder(family.tokenizer(), TextConfig(template_date="2024-07-26"))
    assert "Today: 26 Jul 2024" in family.tokenizer().decode(named.prompt(ASKED)[0])
    assert "Today: 01 Jan 2025" in family.tokenizer().decode(Encoder(family.tokenizer(), TextConfig()).prompt(ASKED)[0])


def test_a_day_in_an_unknown_format_is_refused() -> None:
    tokenizer = FAMILIES["Llama 3.2"].tokenizer()
    tokenizer.chat_template = "{%- set form = '%Y' %}{{- strftime_now(form) }}" + tokenizer.chat_template
    with pytest.raises(ModelError, match="the day cannot be pinned"):
        Encoder(tokenizer, TextConfig())


def test_arguments_reach_the_template() -> None:
    """Qwen3 with ``enable_thinking: false``: the empty block moves from the response to the prompt."""
    tokenizer = FAMILIES["Qwen3"].tokenizer()
    thinking = Encoder(tokenizer, LONG).encode(ASKED, "the moon")
    silent = Encoder(tokenizer, LONG.evolve(template_arguments={"enable_thinking": False})).encode(ASKED, "the moon")
    assert tokenizer.decode(thinking.response_ids) == "<think>\n\n</think>\n\nthe moon<|im_end|>"
    assert tokenizer.decode(silent.response_ids) == "the moon<|im_end|>"
    assert thinking.prompt_ids + thinking.response_ids == silent.prompt_ids + silent.response_ids


def test_thinking_of_a_response_is_rendered_by_the_template() -> None:
    tokenizer = FAMILIES["Qwen3"].tokenizer()
    encoded = Encoder(tokenizer, LONG).encode(ASKED, "<think>\nit is late\n</think>\n\nthe moon")
    assert tokenizer.decode(encoded.response_ids) == "<think>\nit is late\n</think>\n\nthe moon<|im_end|>"
    assert encoded.response_ids[0] == tokenizer.convert_tokens_to_ids("<think>"), "the model's own token, not its letters"


def test_a_response_without_thinking_in_an_open_block_is_refused_with_remedies() -> None:
    encoder = Encoder(FAMILIES["DeepSeek-R1"].tokenizer(), LONG)
    with pytest.raises(DataError, match="no '</think>' that closes") as refused:
        encoder.encode(ASKED, "the moon")
    assert "template_arguments" in refused.value.hint and "plain" in refused.value.hint


def test_a_conversation_that_differs_is_refused_with_the_place() -> None:
    """A template that shouts answers of more than ten letters, and no others: the description cannot know."""
    shout = "{%- if m.content|length > 100 %}{{- '!' }}{%- endif %}<|im_start|>assistant"
    tokenizer = byte_tokenizer(IM, eos="<|endoftext|>")
    tokenizer.chat_template = turns(**CHATML).replace("{{- '<|im_start|>assistant\\n' + m.content", shout + "{{- '\\n' + m.content")
    encoder = Encoder(tokenizer, LONG)
    assert encoder.encode(ASKED, "short").response_ids
    with pytest.raises(DataError, match=r"not prompt \+ response \+ end of turn: behind .*<\|im_end\|>.* \(token \d+\) it has '!"):
        encoder.encode(ASKED, "long " * 30)


def test_tokens_that_end_a_response_are_those_of_tokenizer_configuration_and_template() -> None:
    from transformers import GenerationConfig

    family = FAMILIES["Gemma 3"]
    tokenizer = family.tokenizer()
    _, chat = describe_chat(tokenizer, TextConfig())
    ids = dict(zip(family.special, tokenizer.convert_tokens_to_ids(list(family.special)), strict=True))
    assert end_tokens(tokenizer) == {ids["<eos>"]}
    assert end_tokens(tokenizer, None, chat) == {ids["<eos>"], ids["<end_of_turn>"]}
    declared = GenerationConfig(eos_token_id=[ids["<eos>"], ids["<pad>"]])
    assert end_tokens(tokenizer, declared, chat) == {ids["<eos>"], ids["<pad>"], ids["<end_of_turn>"]}
    assert end_tokens(tokenizer, GenerationConfig(eos_token_id=ids["<pad>"])) == {ids["<eos>"], ids["<pad>"]}


def test_chat_without_a_template_says_what_to_do() -> None:
    tokenizer = byte_tokenizer(IM, eos="<|endoftext|>")
    assert not uses_chat(tokenizer, TextConfig())
    with pytest.raises(ModelError, match="no chat template") as error:
        uses_chat(tokenizer, TextConfig(template="chat"))
    assert "'plain' or 'auto'" in error.value.hint


def test_a_template_whose_finished_turn_is_another_is_refused() -> None:
    tokenizer = byte_tokenizer(IM, eos="<|endoftext|>")
    tokenizer.chat_template = turns(**(CHATML | {"prompt": "<|im_start|>helper\n"}))
    with pytest.raises(ModelError, match="in front of a response, and a finished turn is another"):
        describe_chat(tokenizer, TextConfig())


REFUSES_TURNS = {"Qwen3", "Gemma 4", "DeepSeek-R1", "gpt-oss", "Nemotron Nano", "Falcon"}
"""Templates that render an earlier turn otherwise than the last one: an empty thinking block or the end token is missing."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_of_a_response_stands_behind_the_tokens_it_was_asked_with(name: str) -> None:
    """Two turns of the assistant: the tokens are those of the template's prompt of the last turn and that turn, and the learned ones those
    of each turn as the response to what precedes it."""
    family = FAMILIES[name]
    encoder = Encoder(family.tokenizer(), LONG)
    said = [f"<think>\nso\n</think>\n\n{y}" if family.opens_thinking else y for y in ("the moon", "中文 \nand the other")]
    later = [*TALK[:1], {"role": "assistant", "content": said[0]}, {"role": "user", "content": "in the end?"}]
    response = join_turns([*later[1:], {"role": "assistant", "content": said[1]}])
    if name in REFUSES_TURNS:
        with pytest.raises(DataError, match="an earlier turn is rendered otherwise than the last one") as refused:
            encoder.encode(TALK[:1], response)
        assert "learn_turns: last" in refused.value.hint
        return
    encoded = encoder.encode(TALK[:1], response)
    first, last = encoder.encode(TALK[:1], said[0]), encoder.encode(later, said[1])
    assert encoded.prompt_ids == first.prompt_ids == rendered_ids(family, TALK[:1], prompt=True)
    assert encoded.prompt_ids + encoded.response_ids == rendered_ids(family, later, prompt=True) + last.response_ids
    [(start, stop)] = encoded.context
    assert encoded.response_ids[:start] == first.response_ids and encoded.response_ids[stop:] == last.response_ids
    assert [encoded.response_ids[place] for place in encoded.learned_places()] == first.response_ids + last.response_ids
    assert encoded.learned == len(first.response_ids) + len(last.response_ids)
    assert "in the end?" in family.tokenizer().decode(encoded.response_ids[start:stop])
