"""Transcripts and templates in texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.data.adapter.transcripts import hh_transcript, is_plain, parse_template, template_in, without_end_tokens


def pairs(turns):
    return None if turns is None else [(turn["role"], turn["content"]) for turn in turns]


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        ("\n\nHuman: a\n\nAssistant:", [("user", "a"), ("assistant", "")]),
        ("Human: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        ("\n\nAssistant: b", [("assistant", "b")]),
        ("Human: a", None),
        ("Say Human: a\n\nAssistant: b", None),
        ("a\n\nHuman: b", None),
    ],
)
def test_transcript(text, turns):
    assert pairs(hh_transcript(text)) == turns


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        (
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n",
            [("system", "s"), ("user", "u"), ("assistant", "")],
        ),
        ("<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant", [("user", "u"), ("assistant", "")]),
        ("<|im_start|>assistant\na<|im_end|>", [("assistant", "a")]),
        (
            "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] a </s><s>[INST] v [/INST]",
            [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "")],
        ),
        ("[INST] u [/INST]", [("user", "u"), ("assistant", "")]),
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            [("user", "u"), ("assistant", "")],
        ),
        (
            "BEGINNING OF CONVERSATION: USER: u ASSISTANT: a USER: v ASSISTANT:",
            [("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "")],
        ),
        ("<|im_start|>user\nu<|im_end|> and more", None),
        ("more <|im_start|>user\nu<|im_end|>", None),
        ("x [INST] u [/INST]", None),
        ("BEGINNING OF CONVERSATION: hello", None),
        ("u\n<extra_id_1>Assistant\na\n<extra_id_1>User\nv", [("user", "u"), ("assistant", "a"), ("user", "v")]),
        ("plain", None),
    ],
)
def test_template_is_parsed_whole_or_not_at_all(text, turns):
    assert pairs(parse_template(text)) == turns


@pytest.mark.parametrize(
    "text",
    [
        "a<|im_end|>",
        "<|eot_id|>",
        "x [INST] y",
        "<<SYS>>",
        "<start_of_turn>user",
        "<｜User｜>hi",
        "bye</s>",
        "BEGINNING OF CONVERSATION: USER: x ASSISTANT:",
        "<|endoftext|>",
        "<|assistant|>\n",
    ],
)
def test_sign_of_a_template_is_seen_in_any_text(text):
    assert template_in(text, prompt=False) and template_in(text, prompt=True) and not is_plain(text)


@pytest.mark.parametrize(
    "text",
    ["### Instruction:\nx\n\n### Response:", "A chat. USER: x ASSISTANT:", "System text\n\nHuman: x\n\nAssistant:", "User: x\nAssistant:"],
)
def test_prompt_templates_without_tokens(text):
    assert template_in(text, prompt=True) and not is_plain(text)


@pytest.mark.parametrize(
    "text", ["a <b> c", "x |> f <| y", "<s>struck</s> through", "a[0]", "see [INS]", "USER: x", "### Heading\ntext", "the <image> tag"]
)
def test_ordinary_text_is_no_template(text):
    assert template_in(text, prompt=True) is None and template_in(text, prompt=False) is None


def test_end_tokens_are_taken_off_the_end_only():
    assert without_end_tokens("a<|im_end|>\n") == "a" and without_end_tokens("a</s> </s>") == "a" and without_end_tokens("a\n") == "a\n"


@given(st.text())
def test_plain_text_has_neither(text):
    if is_plain(text):
        assert hh_transcript(text) is None and template_in(text, prompt=True) is None and template_in(text, prompt=False) is None
