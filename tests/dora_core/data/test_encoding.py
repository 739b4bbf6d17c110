"""One template rule, one truncation rule."""

from __future__ import annotations

import pytest

from dora_core.config.method import TextConfig
from dora_core.data.encoding import Encoder, chat_turns, plain_prompt, render_prompt
from dora_core.errors import ModelError

USER = [{"role": "user", "content": "the cat sat"}]
CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def test_plain_prompt_of_a_question_and_of_a_conversation() -> None:
    assert plain_prompt(USER) == "the cat sat"
    talk = [*USER, {"role": "assistant", "content": "on"}, {"role": "user", "content": "a mat"}]
    assert plain_prompt(talk) == "User: the cat sat\nAssistant: on\nUser: a mat"


def test_short_texts_are_kept_whole_and_end_with_eos(tokenizer) -> None:
    encoded = Encoder(tokenizer, TextConfig()).encode(USER, "on a mat")
    assert tokenizer.decode(encoded.prompt_ids) == "<bos>the cat sat\n"
    assert tokenizer.decode(encoded.response_ids) == "on a mat<eos>"
    assert encoded.truncated == 0


def test_prompt_loses_its_beginning_and_response_its_end(tokenizer) -> None:
    text = TextConfig(max_prompt_tokens=8, max_response_tokens=4)
    words = "one very old dog run home"
    whole = Encoder(tokenizer, TextConfig()).encode([{"role": "user", "content": words * 5}], words * 5)
    cut = Encoder(tokenizer, text).encode([{"role": "user", "content": words * 5}], words * 5)
    assert cut.prompt_ids == [tokenizer.bos_token_id, *whole.prompt_ids[-7:]]
    assert cut.response_ids == whole.response_ids[:4], "a cut response has no end-of-sequence token"
    assert cut.truncated == len(whole) - len(cut)


def test_prompt_tokens_do_not_depend_on_the_response(tokenizer) -> None:
    encoder = Encoder(tokenizer, TextConfig())
    assert encoder.encode(USER, "on").prompt_ids == encoder.encode(USER, "\n\n a mat").prompt_ids


def test_chat_template_is_used_when_there_is_one(tokenizer) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    assert render_prompt(USER, tokenizer, "auto") == "<user>the cat sat<assistant>"
    assert render_prompt(USER, tokenizer, "plain") == "the cat sat\n"


def test_chat_without_a_template_says_what_to_do(tokenizer) -> None:
    with pytest.raises(ModelError, match="no chat template") as error:
        render_prompt(USER, tokenizer, "chat")
    assert "'plain' or 'auto'" in error.value.hint


def test_lists_are_encoded_as_one_by_one(tokenizer) -> None:
    encoder = Encoder(tokenizer, TextConfig(max_prompt_tokens=8, max_response_tokens=4))
    prompts = [USER, [{"role": "user", "content": "one very old dog run home " * 3}], USER]
    responses = [["on", "on a mat and one very old dog", ""], [], ["home"]]
    found = encoder.encode_lists(prompts, responses)
    assert found == [[encoder.encode(p, y) for y in ys] for p, ys in zip(prompts, responses, strict=True)]
    assert found[0][0].prompt_ids is found[0][1].prompt_ids
    assert encoder.encode_lists([], []) == []


CALL = '{"tool_calls":[{"function":{"name":"lookup"},"id":"c1"}]}'
WITH_TOOLS = [
    {"role": "user", "content": "the cat", "extra": '{"tools":[{"name":"lookup"}]}'},
    {"role": "assistant", "content": "", "extra": CALL},
    {"role": "tool", "content": "sat", "extra": '{"tool_call_id":"c1"}'},
]
TOOL_TEMPLATE = (
    "{% for t in tools %}[{{ t.name }}]{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls %}!{{ c.function.name }}{% endfor %}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% endfor %}"
)


def test_tools_and_tool_calls_reach_the_chat_template(tokenizer) -> None:
    tokenizer.chat_template = TOOL_TEMPLATE
    assert render_prompt(WITH_TOOLS, tokenizer, "auto") == "[lookup]<user>the cat<assistant>!lookup<tool>sat#c1"
    bare = [message | {"extra": None} for message in USER]
    assert chat_turns(bare) == (USER, None), "a prompt without tools reaches templates and servers as it always did"


def test_tools_that_cannot_be_rendered_are_refused_and_never_left_out(tokenizer) -> None:
    for template, text in ((CHAT_TEMPLATE, "the chat template"), (None, "plain text")):
        tokenizer.chat_template = template
        with pytest.raises(ModelError, match=f"have tools, and {text} of .* cannot render them"):
            render_prompt(WITH_TOOLS, tokenizer, "auto")
