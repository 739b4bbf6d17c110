"""Rules between the sections of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dora_core.errors import ConfigError
from flows.config.loading import load_config
from flows.config.models import RealignConfig, ReportConfig, SelfTrainConfig

DATA = "data: {train: [{path: org/data}]}\n"


def test_a_stages_section_says_what_differs_from_the_default(tmp_path: Path) -> None:
    sections = "default: {workers: 8, gpus_per_worker: 1}, align: {strategy: fsdp}, sft: {workers: 1}"
    (tmp_path / "c.yaml").write_text(f"{DATA}execution: {{{sections}}}")
    config = load_config(tmp_path / "c.yaml", ["execution.reward.micro_batch_tokens=2048"])
    of = config.execution.of
    assert (of("align").workers, of("align").gpus_per_worker, of("align").strategy) == (8, 1, "fsdp")
    assert (of("sft").workers, of("sft").gpus_per_worker, of("sft").strategy) == (1, 1, "ddp")
    assert (of("reward").workers, of("reward").micro_batch_tokens) == (8, 2048)
    assert of("classify") == config.execution.default
    assert RealignConfig.model_validate(config.model_dump(mode="json")).execution == config.execution
    (tmp_path / "c.yaml").write_text(DATA + "execution: {default: {workers: -1}, align: {strategy: fsdp}}")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert "execution.default.workers" in caught.value.message and "execution.align" not in caught.value.message, "told once"


def test_a_stage_without_a_section_has_the_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(DATA + "execution: {default: {workers: 5}}")
    assert load_config(tmp_path / "c.yaml").execution.of("ingest").workers == 5


def test_streamed_layers_are_for_stages_that_score_and_do_not_sample(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    sections = "reference: {stream_layers: true}, evaluate: {stream_layers: true}"
    file.write_text(f"{DATA}execution: {{{sections}}}")
    with pytest.raises(ConfigError, match=r"set evaluate\.kl_prompts: 0"):
        load_config(file)
    assert load_config(file, ["evaluate.kl_prompts=0"]).execution.of("reference").stream_layers
    for section in ("default", "generate"):
        file.write_text(f"{DATA}execution: {{{section}: {{stream_layers: true}}}}")
        with pytest.raises(
            ConfigError,
            match=rf"{section}\.stream_layers: only .* stream; .* generate and judge use a server",
        ):
            load_config(file)


def test_random_weights_need_a_supervised_start(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(DATA + "policy: {source: tiny}\nsft: {enabled: false}")
    with pytest.raises(ConfigError, match="needs a supervised start"):
        load_config(tmp_path / "c.yaml")


LABEL = "label: {column: ok, true: [true], false: [false]}"


@pytest.mark.parametrize("keys", [f"shape: unpaired, {LABEL}", LABEL, "preset: kto"])
def test_inputs_known_to_be_unpaired_need_a_loss_that_reads_labels(tmp_path: Path, keys: str) -> None:
    inputs = f"data: {{train: [{{path: org/data}}, {{path: org/thumbs, {keys}}}]}}\n"
    (tmp_path / "c.yaml").write_text(inputs + "align: {loss: {name: dpo}}")
    with pytest.raises(ConfigError, match=r"data.train\[1\]: rows are unpaired .* align.loss.name: dpo compares") as error:
        load_config(tmp_path / "c.yaml")
    assert "set align.loss.name to bco or kto" in str(error.value) and "data.train[0]" not in str(error.value)
    (tmp_path / "c.yaml").write_text(inputs + "align: {loss: {name: kto}}")
    assert load_config(tmp_path / "c.yaml").align.loss.name == "kto"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("trust: {apply: soft_label}\nalign: {loss: {name: lire}}", "does not read how sure a label is"),
        ("trust: {apply: soft_label}\nalign: {label_probability: ignore}", "contradicts align.label_probability"),
        ("trust: {apply: weight}\nalign: {objective: {name: erm}}", "does not read h"),
        ("trust: {apply: weight, method: off}", "needs an estimate"),
    ],
)
def test_trust_that_the_training_cannot_use_is_refused(tmp_path: Path, sections: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(DATA + sections.replace("off", "'off'"))
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("judge", "loss", "message"),
    [
        ("{kind: reward_model}", "dpo", "needs verdicts on samples against each other"),
        ("{kind: llm, model: m, against: given}", "dpo", "needs verdicts on samples against each other"),
        ("{kind: llm, model: m, against: each_other}", "lire", "does not train on them"),
    ],
)
def test_votes_of_judged_samples_need_such_a_judge_and_such_a_loss(tmp_path: Path, judge: str, loss: str, message: str) -> None:
    endpoint = "execution: {judge: {endpoint: {url: 'http://localhost:1/v1'}}}"
    rounds = f"rounds: {{mix: {{vote_prior: 0.5}}}}\njudge: {judge}\n{endpoint}\n"
    (tmp_path / "c.yaml").write_text(DATA + rounds + f"align: {{loss: {{name: {loss}}}}}")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml", model=SelfTrainConfig)


def test_votes_need_a_loss_that_reads_soft_labels(tmp_path: Path) -> None:
    data = "data: {train: [{path: org/data, shape: pair, votes: {counts: {chosen: yes_votes, rejected: no_votes}}}]}\n"
    (tmp_path / "c.yaml").write_text(data + "align: {loss: {name: lire}}")
    with pytest.raises(ConfigError, match=r"data\.train\[0\]\.votes make soft labels, which align\.loss\.name=lire does not read"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(data + "align: {loss: {name: lire}, label_probability: ignore}")
    assert load_config(tmp_path / "c.yaml").data.train[0].votes is not None


@pytest.mark.parametrize("sections", ["trust: {apply: soft_label}", "exchange: {enabled: true}", "align: {objective: {name: auto}}"])
def test_goals_in_prompts_exclude_trust_in_labels(tmp_path: Path, sections: str) -> None:
    data = "data: {train: [{path: org/data}], goal: {best: 1}}\n"
    (tmp_path / "c.yaml").write_text(data + sections)
    with pytest.raises(ConfigError, match=r"data\.goal reverses preferences"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(data)
    assert load_config(tmp_path / "c.yaml").data.goal is not None
    with pytest.raises(ConfigError, match="rounds need prompts without goals"):
        load_config(tmp_path / "c.yaml", model=SelfTrainConfig)


@pytest.mark.parametrize("more", ["policy: {source: tiny}", "policy: {source: ./model}\ntext: {template: plain}"])
def test_responses_of_several_turns_need_a_chat_template(tmp_path: Path, more: str) -> None:
    (tmp_path / "c.yaml").write_text(f"data: {{train: [{{path: x, messages: {{learn_turns: all}}}}]}}\n{more}")
    with pytest.raises(ConfigError, match=r"data.train\[0\].messages.learn_turns=all: .* has no chat template"):
        load_config(tmp_path / "c.yaml")


ONE_INPUT = {"data": {"train": [{"path": "prefs.jsonl"}]}}


def test_no_text_is_shown_unless_asked_for() -> None:
    config = RealignConfig.model_validate(ONE_INPUT)
    assert config.report.prompts == 0 and "report" not in config.model_dump(mode="json"), "manifests of earlier releases stay equal"
    shown = RealignConfig.model_validate(ONE_INPUT | {"report": {"prompts": 6}})
    assert shown.model_dump(mode="json")["report"] == {"prompts": 6}


@pytest.mark.parametrize("prompts", [-1, 51])
def test_a_page_shows_few_prompts(prompts: int) -> None:
    with pytest.raises(ValidationError):
        ReportConfig(prompts=prompts)
