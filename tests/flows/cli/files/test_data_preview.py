"""The preview as text, as JSON and as a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dora_core.config.method import ModelConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.data.previewed import RecordShown, ResponseShown
from dora_core.errors import ConfigError
from dora_core.models.loading import build_policy, save_model, train_tokenizer
from flows.cli.files.data_preview import SHOWN_CHARS, TINY_END, Template, _clip, _example, _template, load_any
from flows.config.models import RealignConfig, SelfTrainConfig
from tests.dora_core.data.chat_families import FAMILIES
from tests.flows.cli.invoked import document, invoke

pytestmark = pytest.mark.usefixtures("own_home")


def test_preview_of_a_configuration(config_file: Path) -> None:
    code, said, _ = invoke("data", "preview", "-c", config_file)
    assert code == 0 and "a run would accept this data" in said and "h can be estimated: trusted: source human" in said
    assert said.count("── record") == 3 and "[user]" in said and "preferred]" in said
    assert re.search(r"⟦[^⟧]+⟧⟨<eos>⟩", said), "the response and the end token are marked"


def test_preview_of_files(mixture: Path) -> None:
    code, said, _ = invoke("data", "preview", mixture, "--shown", "0")
    assert code == 0 and "read as `dora init` would write it" in said and "── record" not in said


def test_preview_as_json(config_file: Path) -> None:
    found = document("data", "preview", "-c", config_file)
    assert found["accepted"] and found["total"]["records"] == 40 and found["factors"]["possible"]
    (examples,) = found["rendered"].values()
    assert examples[0].keys() == {"prompt", "response", "end"} and len(found["inputs"][0]["shown"]) == 3


def test_the_page_holds_the_records(config_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "data.html"
    code, said, _ = invoke("data", "preview", "-c", config_file, "-o", page)
    text = page.read_text()
    rows = json.loads(text.split('id="rows">')[1].split("</script>")[0])
    assert code == 0 and f"page: {page}" in said and len(rows) == 40 and rows[0]["kind"] == "record"
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", text.split('id="rows">')[0]), "nothing is loaded from elsewhere"


# ------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(("more", "kind"), [("", RealignConfig), ("rounds: {rounds: 1}\njudge: {kind: gold}\n", SelfTrainConfig)])
def test_the_kind_of_a_configuration_is_known_by_its_sections(more: str, kind: type[RealignConfig], config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + more)
    assert type(load_any(config_file)) is kind


def test_a_wrong_configuration_is_refused(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="objective"):
        load_any(config_file, ["align.objectiv.name=erm"])


@pytest.mark.parametrize(("objective", "uses"), [("dora", True), ("erm", False)])
def test_only_an_objective_with_factors_wants_them(objective: str, uses: bool, config_file: Path) -> None:
    wanted = load_any(config_file, [f"align.objective.name={objective}"]).wanted
    assert (wanted.objective, wanted.uses_factors) == (objective, uses)


def test_a_long_text_is_cut_and_its_rest_counted() -> None:
    assert _clip("x" * SHOWN_CHARS) == "x" * SHOWN_CHARS
    assert _clip("x" * (SHOWN_CHARS + 1500)) == "x" * SHOWN_CHARS + " … (1,500 more characters)"


def shown(*roles: str) -> RecordShown:
    """A record with the responses bad and good."""
    responses = [{"text": "bad", "source": None, "reward": 0.0}, {"text": "good", "source": None, "reward": 1.0}]
    fields = {"record_id": "1", "file": "a", "row": 0, "split": "train", "kind": "pairwise"}
    prompt = [{"role": role, "content": "q"} for role in roles]
    return RecordShown.model_validate(fields | {"responses": responses, "prompt": prompt})


def test_the_best_response_is_rendered_with_the_end_of_the_tiny_policy() -> None:
    record = shown("user")
    template = _template(None, ModelConfig(), TextConfig())
    assert TINY_END in template.note and template.encoder is None
    assert _example(record, template)[1:] == [("response", "good"), ("end", TINY_END)]


def test_a_chat_is_shown_token_by_token_with_its_end_and_its_refusals(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sat on a mat"], 300)
    tokenizer.chat_template = (
        "{%- for m in messages %}{%- if m.role == 'system' %}{{ raise_exception('no system') }}{%- endif %}"
        "{{- '<cls>' + m.content + '<sep>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<cls>' }}{%- endif %}"
    )
    save_model(build_policy(ModelConfig(hidden_size=32, layers=1, heads=2), tokenizer, 64), tokenizer, tmp_path / "model")
    template = _template(str(tmp_path / "model"), ModelConfig(), TextConfig())
    assert "no beginning-of-sequence token is written; a turn ends with '<sep>'" in template.note
    assert "generation stops at <eos>, <sep>; limits 512 + 512 tokens" in template.note
    expected = [("prompt", "<cls>q<sep><cls>"), ("response", "good"), ("end", "<sep>"), ("tokens", "4 + 5 tokens")]
    assert _example(shown("user"), template) == expected
    refused = _example(shown("system", "user"), template)[0][1]
    assert refused.startswith("(refused: the chat template of") and "text.system: merge" in refused
    cut = _template(str(tmp_path / "model"), ModelConfig(), TextConfig(max_response_tokens=4))
    assert _example(shown("user"), cut)[2:] == [("end", "(cut: no end token)"), ("tokens", "4 + 4 tokens, 1 cut")]


def test_turns_of_others_are_shown_apart_from_those_that_are_learned() -> None:
    family = FAMILIES["Qwen2.5"]
    turns = [{"role": role, "content": role[:2]} for role in ("assistant", "user", "assistant")]
    one = ResponseShown(text="a transcript", reward=1.0, source=None, turns=turns)
    record = shown("user").evolve(responses=[one])
    parts = _example(record, Template(Encoder(family.tokenizer(), TextConfig()), ""))
    between = "\n<|im_start|>user\nus<|im_end|>\n<|im_start|>assistant\n"
    assert parts[1:4] == [("response", "as<|im_end|>"), ("prompt", between), ("response", "as")] and parts[4] == ("end", "<|im_end|>")
    assert parts[5][1].endswith("tokens, 6 of them learned")
