"""Messages on their way into a model that MLflow serves."""

from __future__ import annotations

import pandas as pd
import pytest

from dora_core.data.encoding import plain_prompt
from infra.tracking.served_chat import conversations, plain_text

HI = [{"role": "user", "content": "hi"}]
TURNS = [{"role": "system", "content": "be brief"}, *HI]


def test_tables_one_conversation_and_lists_of_them() -> None:
    assert conversations(pd.DataFrame({"messages": [HI, TURNS]})) == [HI, TURNS]
    assert conversations({"messages": HI}) == [HI] and conversations([{"messages": HI}, {"messages": TURNS}]) == [HI, TURNS]
    assert conversations({"messages": [{"role": "user", "content": "hi", "name": None}]}) == [HI]


@pytest.mark.parametrize("messages", [HI, TURNS])
def test_without_a_template_the_text_is_that_of_training(messages: list[dict[str, str]]) -> None:
    assert plain_text(messages) == plain_prompt(messages) + "\n"  # type: ignore[arg-type]
