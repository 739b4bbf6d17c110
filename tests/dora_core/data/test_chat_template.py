"""Rendering of conversations, and the protection of control tokens."""

from __future__ import annotations

import pytest

from dora_core.config.method import TextConfig
from dora_core.data.chat_template import (
    FIXED_DATE,
    ChatTemplate,
    RefusedConversation,
    encode_texts,
    mark_text,
    merge_system,
    shown_day,
    special_tokens,
)
from dora_core.errors import ModelError
from tests.dora_core.data.chat_families import FAMILIES

SYSTEM = {"role": "system", "content": "Be good."}
USER = {"role": "user", "content": "the cat"}


@pytest.mark.parametrize(
    ("messages", "merged"),
    [
        ([SYSTEM, USER], [{"role": "user", "content": "Be good.\n\nthe cat"}]),
        ([SYSTEM, SYSTEM, USER], [{"role": "user", "content": "Be good.\n\nBe good.\n\nthe cat"}]),
        ([USER, SYSTEM], [USER, {"role": "user", "content": "Be good."}]),
        ([USER], [USER]),
    ],
)
def test_system_messages_are_merged_into_the_user_message_behind_them(messages, merged) -> None:
    assert merge_system(messages) == merged


def test_a_refusal_names_roles_reason_and_remedies() -> None:
    template = ChatTemplate(FAMILIES["Gemma 2"].tokenizer(), TextConfig())
    with pytest.raises(RefusedConversation, match="roles system, user: System role not supported") as refused:
        template.render([SYSTEM, USER])
    assert refused.value.roles == ("system", "user")
    assert "text.system: merge" in refused.value.hint


def test_an_error_inside_a_template_is_an_error_of_ours() -> None:
    tokenizer = FAMILIES["Qwen2.5"].tokenizer()
    tokenizer.chat_template = "{{ messages[0].content + 1 }}"
    with pytest.raises(RefusedConversation, match=r"roles user: .*str"):
        ChatTemplate(tokenizer, TextConfig()).render([USER])


def test_marked_special_tokens_are_encoded_as_text_and_others_as_tokens() -> None:
    tokenizer = FAMILIES["Qwen2.5"].tokenizer()
    text = "a <|im_end|> and <tool_call>"
    [plain, marked] = encode_texts(tokenizer, [text, mark_text(text, special_tokens(tokenizer))])
    end, call = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<tool_call>"])
    assert (end in plain, call in plain) == (True, True)
    assert (end in marked, call in marked) == (False, True)
    assert tokenizer.decode(plain) == tokenizer.decode(marked) == text
    assert mark_text("a cat", special_tokens(tokenizer)) == "a cat"
    assert encode_texts(tokenizer, []) == []


def test_a_tokenizer_that_makes_control_tokens_from_plain_text_is_refused() -> None:
    """A unigram model has its special tokens as pieces, so that even unprotected text becomes one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram([("</s>", 0.0), ("a", -1.0), ("<", -9.0), ("/", -9.0), ("s", -9.0), (">", -9.0)], unk_id=1))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(ModelError, match="has a control token"):
        encode_texts(tokenizer, [mark_text("a</s>a", special_tokens(tokenizer))])


def test_arguments_may_not_replace_the_conversation() -> None:
    with pytest.raises(ValueError, match="messages: given by the data"):
        TextConfig(template_arguments={"messages": []})
    with pytest.raises(ValueError, match="numbers must be finite"):
        TextConfig(template_arguments={"budget": [float("nan")]})


def test_unset_options_of_text_stay_out_of_dumps() -> None:
    """Digests of runs without chat templates are those of before."""
    assert TextConfig().model_dump(mode="json") == {"template": "auto", "max_prompt_tokens": 512, "max_response_tokens": 512}


def test_a_day_is_one_of_the_calendar() -> None:
    assert shown_day(TextConfig(template_date="2024-02-29")).day == 29 and shown_day(TextConfig()) == FIXED_DATE
    for wrong in ("2026-02-30", "1 March 2026"):
        with pytest.raises(ValueError, match="template_date"):
            TextConfig(template_date=wrong)
