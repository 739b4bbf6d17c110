"""What stays of a prompt when system message, white space, Unicode form and later turns are taken away."""

from __future__ import annotations

import pytest

from dora_core.data.questions import question_hash, question_of
from dora_core.data.records import hash_prompt

ASKED = [{"role": "user", "content": "How do I bake a cafe\u0301 cake?"}]


@pytest.mark.parametrize(
    "other",
    [
        [{"role": "system", "content": "Be brief."}, *ASKED],
        [{"role": "user", "content": "  How do I\n bake a cafe\u0301\u00a0cake? "}],
        [{"role": "user", "content": "How do I bake a caf\u00e9 cake?"}],  # NFC
        [{"role": "user", "content": "\uff28ow do I bake a caf\u00e9 cake\uff1f"}],  # full width: NFKC
        [*ASKED, {"role": "assistant", "content": "With flour."}, {"role": "user", "content": "And sugar?"}],
    ],
)
def test_forms_of_one_question(other: list[dict[str, str]]) -> None:
    assert question_hash(other) == question_hash(ASKED)
    assert hash_prompt(other) != hash_prompt(ASKED)


def test_other_questions_differ() -> None:
    assert question_hash([{"role": "user", "content": "How do I bake a cake?"}]) != question_hash(ASKED)
    assert question_of([{"role": "system", "content": "a"}, {"role": "tool", "content": " b"}]) == "a b", "no turn of the user"
