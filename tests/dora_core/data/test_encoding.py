"""One template rule, one truncation rule."""

from __future__ import annotations

import pytest

from dora_core.config.method import TextConfig
from dora_core.data.chat_template import RefusedConversation
from dora_core.data.encoding import Encoder, chat_turns, plain_prompt
from dora_core.data.response_turns import join_turns
from dora_core.errors import DataError, ModelError
from tests.dora_core.data.chat_families import FAMILIES

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


def text_of(tokenizer, text: TextConfig, messages) -> str:
    return tokenizer.decode(Encoder(tokenizer, text).prompt(messages)[0])


def test_chat_template_is_used_when_there_is_one(tokenizer) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    assert text_of(tokenizer, TextConfig(), USER) == "<user>the cat sat<assistant>", "the template writes no BOS, and none is added"
    assert text_of(tokenizer, TextConfig(template="plain"), USER) == "<bos>the cat sat\n"


def test_control_tokens_in_plain_texts_are_text(tokenizer) -> None:
    encoded = Encoder(tokenizer, TextConfig(template="plain")).encode([{"role": "user", "content": "a <sep> in <bos>"}], "on <eos> a mat")
    special = set(tokenizer.all_special_ids)
    assert [i for i in encoded.prompt_ids if i in special] == [tokenizer.bos_token_id]
    assert [i for i in encoded.response_ids if i in special] == [tokenizer.eos_token_id]
    assert tokenizer.decode(encoded.prompt_ids + encoded.response_ids) == "<bos>a <sep> in <bos>\non <eos> a mat<eos>"


CHATML = FAMILIES["Qwen2.5"]


def chat_encoder(prompt: int, response: int = 64) -> Encoder:
    return Encoder(CHATML.tokenizer(), TextConfig(max_prompt_tokens=prompt, max_response_tokens=response))


SYSTEM = {"role": "system", "content": "Be good."}
LONG_TALK = [SYSTEM, *[{"role": role, "content": f"{role} says {n}"} for n in range(6) for role in ("user", "assistant")]]
LONG_TALK += [{"role": "user", "content": "and now?"}]


def test_a_long_chat_loses_its_oldest_turns_whole_and_keeps_its_system_message() -> None:
    whole = chat_encoder(4096).prompt(LONG_TALK)[0]
    [cut] = chat_encoder(160).prompts([LONG_TALK])
    text = CHATML.tokenizer().decode(cut.ids)
    assert text.startswith("<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nuser says ")
    assert text.endswith("<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n")
    assert len(cut.ids) <= 160 and cut.cut == len(whole) - len(cut.ids) and not cut.lost_system
    assert cut.ids == chat_encoder(4096).prompt([SYSTEM, *LONG_TALK[len(LONG_TALK) - text.count("<|im_start|>") + 2 :]])[0], "a rendering"


def test_definitions_of_tools_stay_when_their_turn_is_lost(tokenizer) -> None:
    tokenizer.chat_template = TOOL_TEMPLATE
    talk = [WITH_TOOLS[0], {"role": "assistant", "content": "x" * 60}, {"role": "user", "content": "and now"}]
    assert text_of(tokenizer, TextConfig(max_prompt_tokens=40), talk) == "[lookup]<user>and now"


def test_a_long_question_loses_its_beginning_behind_its_header() -> None:
    messages = [SYSTEM, {"role": "user", "content": "x" * 300 + " the last words"}]
    [cut] = chat_encoder(120).prompts([messages])
    text = CHATML.tokenizer().decode(cut.ids)
    assert text.startswith("<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nx")
    assert text.endswith("x the last words<|im_end|>\n<|im_start|>assistant\n")
    assert len(cut.ids) == 120 and cut.cut == len(chat_encoder(4096).prompt(messages)[0]) - 120 and not cut.lost_system


def test_a_system_message_that_leaves_no_room_is_lost_and_said_so() -> None:
    messages = [{"role": "system", "content": "s" * 300}, {"role": "user", "content": "the question"}]
    encoded = chat_encoder(60).encode(messages, "the moon")
    text = CHATML.tokenizer().decode(encoded.prompt_ids)
    assert encoded.lost_system and len(encoded.prompt_ids) == 60
    assert text.endswith("<|im_start|>user\nthe question<|im_end|>\n<|im_start|>assistant\n")


def test_a_cut_chat_response_has_no_end_token() -> None:
    encoder = chat_encoder(64, 4)
    encoded = encoder.encode(USER, "many words here")
    assert len(encoded.response_ids) == encoded.cut + 4 - encoded.cut == 4
    assert encoder.end_id not in encoded.response_ids and encoded.truncated == encoded.cut == len("many words here") + 1 - 4 - 1


def test_a_response_whose_first_letters_would_merge_with_the_prompt_is_encoded_apart() -> None:
    """Rendered as one text, the line break of the header and that of the response are one token; the prompt ends with its own."""
    tokenizer = CHATML.tokenizer()
    encoded = chat_encoder(64).encode(USER, "\nthe cat")
    [one, two] = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "\n\n"))
    assert len(one) == len(two) == 1 and one != two
    assert encoded.prompt_ids[-1:] == encoded.response_ids[:1] == one


def test_a_system_message_is_merged_or_refused_where_the_template_takes_none() -> None:
    tokenizer = FAMILIES["Gemma 2"].tokenizer()
    with pytest.raises(RefusedConversation, match="roles system, user: it takes no system message") as refused:
        Encoder(tokenizer, TextConfig()).prompt([SYSTEM, *USER])
    assert "text.system: merge" in refused.value.hint and "text.template: plain" in refused.value.hint
    merged = Encoder(tokenizer, TextConfig(system="merge")).prompt([SYSTEM, *USER])
    assert merged == Encoder(tokenizer, TextConfig()).prompt([{"role": "user", "content": "Be good.\n\nthe cat sat"}])


def test_generated_tokens_become_the_text_of_a_message() -> None:
    """Of gpt-oss, the text of the last channel; end tokens go, whichever ended the response."""
    tokenizer = FAMILIES["gpt-oss"].tokenizer()
    encoder = Encoder(tokenizer, TextConfig())
    said = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>the moon"
    ids = [tokenizer(said + end, add_special_tokens=False)["input_ids"] for end in ("<|return|>", "<|call|>", "")]
    ends = encoder.ends() | set(tokenizer.convert_tokens_to_ids(["<|call|>"]))
    assert encoder.decode(ids, ends) == ["the moon"] * 3
    plain = Encoder(CHATML.tokenizer(), TextConfig())
    assert plain.decode([plain.encode(USER, "the moon").response_ids], plain.ends()) == ["the moon"]


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
    "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls %}!{{ c.function.name }}{% endfor %}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% endfor %}"
)


def test_tools_and_tool_calls_reach_the_chat_template(tokenizer) -> None:
    tokenizer.chat_template = TOOL_TEMPLATE
    assert text_of(tokenizer, TextConfig(), WITH_TOOLS) == "[lookup]<user>the cat<assistant>!lookup<tool>sat#c1"
    bare = [message | {"extra": None} for message in USER]
    assert chat_turns(bare) == (USER, None), "a prompt without tools reaches templates and servers as it always did"


def test_tools_that_cannot_be_rendered_are_refused_and_never_left_out(tokenizer) -> None:
    for template, text in ((CHAT_TEMPLATE, "the chat template"), (None, "plain text")):
        tokenizer.chat_template = template
        with pytest.raises(ModelError, match=f"have tools, and {text} of .* cannot render them"):
            text_of(tokenizer, TextConfig(), WITH_TOOLS)


TRAJECTORY = [{"role": role, "content": text} for role, text in (("assistant", "one"), ("user", "two?"), ("assistant", "three four"))]


def test_a_cut_response_of_several_turns_ends_with_a_learned_token() -> None:
    """Tokens: one<|im_end|> are 4 of a byte tokenizer without these merges, then the other's turn, then three four<|im_end|>."""
    whole = chat_encoder(64, 256).encode(USER, join_turns(TRAJECTORY))
    [(start, stop)] = whole.context
    assert start == 4 and whole.learned == len(whole.response_ids) - (stop - start)
    for limit in range(4, len(whole.response_ids)):
        cut = chat_encoder(64, limit).encode(USER, join_turns(TRAJECTORY))
        kept = limit if limit > stop else start
        assert cut.response_ids == whole.response_ids[:kept], "the question alone would be read for nothing"
        assert cut.context == (whole.context if limit > stop else ())
        assert cut.truncated == cut.cut == len(whole.response_ids) - kept


def test_responses_of_one_and_of_several_turns_share_a_prompt() -> None:
    encoder = chat_encoder(64, 256)
    [[several, one]] = encoder.encode_lists([USER], [[join_turns(TRAJECTORY), "one"]])
    assert several.prompt_ids is one.prompt_ids and one == encoder.encode(USER, "one") and several.response_ids[:4] == one.response_ids


def test_several_turns_in_plain_text_are_refused(tokenizer) -> None:
    with pytest.raises(DataError, match="without a chat template it is not defined"):
        Encoder(tokenizer, TextConfig()).encode(USER, join_turns(TRAJECTORY))
