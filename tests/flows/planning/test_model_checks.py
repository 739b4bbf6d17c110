"""Checks of the policy's files at plan time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dora_core.config.method import ModelConfig, TextConfig
from dora_core.data.chat_format import CHAT_TOKENS
from dora_core.data.conversations import Conversation
from dora_core.errors import DataError, ModelError
from dora_core.models.loading import build_policy, save_model, train_tokenizer
from flows.config.models import RealignConfig
from flows.planning import model_checks
from flows.planning.model_checks import Described, check_data, describe_policy
from flows.planning.specs import pinned

RESPONSES = '"chosen": "b", "rejected": "c", "chosen_source": "human", "rejected_source": "some-lm"'
PLAIN_ROW = f'{{"prompt": "a", {RESPONSES}}}\n'


@pytest.fixture
def config(tmp_path) -> RealignConfig:
    """A configuration with a small saved model as policy."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["the cat sat on a mat"], 300)
    save_model(build_policy(ModelConfig(hidden_size=32, layers=1, heads=2), tokenizer, 1024), tokenizer, tmp_path / "model")
    (tmp_path / "d.jsonl").write_text(PLAIN_ROW)
    return RealignConfig.model_validate(
        {
            "project": "checks",
            "data": {"train": [{"path": str(tmp_path / "d.jsonl")}]},
            "policy": {"source": str(tmp_path / "model")},
        }
    )


def with_template(config: RealignConfig, template: str, rows: str) -> RealignConfig:
    """The configuration with a chat template in the policy's folder, and these rows."""
    (Path(config.policy.source) / "chat_template.jinja").write_text(template)
    Path(str(config.data.train[0].path)).write_text(rows)
    return pinned(config)


REFUSES = (
    "{%- for m in messages %}{%- if m.role == 'system' %}{{ raise_exception('no system') }}{%- endif %}"
    "{{- '<cls>' + m.role + ' ' + m.content + '<sep>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<cls>assistant ' }}{%- endif %}"
)
SYSTEM_PROMPT = '[{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]'
SYSTEM_ROW = f'{{"id": "with-system", "prompt": {SYSTEM_PROMPT}, {RESPONSES}}}\n'


def test_tokens_are_described_and_their_rules_enter_the_digest(config) -> None:
    chat = with_template(config, REFUSES, PLAIN_ROW)
    described = describe_policy(chat)
    assert "LlamaForCausalLM" in described.lines[0] and "records are packed" in described.lines[1]
    assert (
        any("a turn ends with '<sep>'" in line for line in described.lines)
        and "generation stops at '<eos>' (2), '<sep>' (4)" in described.lines[-1]
    )
    assert chat.text.chat_tokens == CHAT_TOKENS
    plain = pinned(config.evolve(text=TextConfig(template="plain")))
    assert plain.text.chat_tokens is None and any(
        line.startswith("plain text; '<bos>' is put in front") for line in describe_policy(plain).lines
    )


def test_a_role_that_the_template_refuses_is_met_before_anything_runs(config) -> None:
    chat = with_template(config, REFUSES, PLAIN_ROW + SYSTEM_ROW)
    with pytest.raises(DataError, match=r"record with-system \(data.train\[0\], row 1\): .* roles system, user") as refused:
        describe_policy(chat)
    assert "text.system: merge" in refused.value.hint and "text.template: plain" in refused.value.hint
    assert describe_policy(chat.evolve(text=TextConfig(system="merge"))).lines
    shapes = [Conversation(roles=["system", "user"], tools=False, record_id="far-behind")]
    with pytest.raises(DataError, match="record far-behind: "):
        check_data(chat, shapes)
    check_data(chat.evolve(policy=ModelConfig()), shapes)


def test_an_unpinned_day_is_a_note(config) -> None:
    chat = with_template(config, "{{- strftime_now('%Y') }}" + REFUSES, PLAIN_ROW)
    assert "every prompt shows 2025-01-01" in describe_policy(chat).notes[0]
    named = chat.evolve(text=TextConfig(template_date="2026-03-01"))
    assert not describe_policy(named).notes and "2026-03-01" in " ".join(describe_policy(named).lines)


def test_tiny_has_no_files_and_nothing_is_checked(config, monkeypatch) -> None:
    def fail(files, config):
        raise AssertionError("no check runs")

    monkeypatch.setattr(model_checks, "CHECKS", (fail,))
    assert describe_policy(config.evolve(policy=ModelConfig())) == Described()


def test_lines_and_notes_of_all_checks_are_joined_and_the_first_refusal_ends_them(config, monkeypatch) -> None:
    def width(files, config):
        return Described(lines=(f"width {files.config.hidden_size}",))

    def doubt(files, config):
        return Described(notes=("a doubt",))

    def refuse(files, config):
        raise ModelError("does not fit", hint="use another")

    monkeypatch.setattr(model_checks, "CHECKS", (width, doubt))
    assert describe_policy(config) == Described(("width 32",), ("a doubt",))
    monkeypatch.setattr(model_checks, "CHECKS", (width, refuse))
    with pytest.raises(ModelError, match="does not fit"):
        describe_policy(config)
