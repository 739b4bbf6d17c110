"""The work of a training worker: what it learned about memory, the model that it starts from, and the model that it leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dora_core.config.execution import Execution
from dora_core.config.method import LoraConfig, ModelConfig, OptimizationConfig
from dora_core.errors import ModelError
from dora_core.models.loading import build_policy, load_policy, save_model, train_tokenizer
from dora_core.training.distributed import Worker
from dora_core.training.loop import OutOfMemory
from infra.store.store import Store
from tasks.training.job import (
    REPORT,
    CausalLM,
    Memory,
    ScalarHead,
    TrainingJob,
    _balanced,
    decoder_layers,
    load,
    save_trained,
    trained_folder,
    trained_model,
)
from tasks.training.report import TrainingReport
from tests.ranks import run_ranks
from tests.tasks.training import sharded_jobs

TINY = ModelConfig(hidden_size=16, layers=3, heads=2, vocab_size=300)
DIGEST = "a" * 64


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tokenizer = train_tokenizer(["How do I clean it?", "Wipe it with a damp cloth."], TINY.vocab_size)
    torch.manual_seed(0)
    save_model(build_policy(TINY, tokenizer, 64), tokenizer, folder)
    return folder


def job(start: Path, store: Path, **changes: Any) -> TrainingJob:
    given: dict[str, Any] = {
        "build": lambda start, worker: None,
        "arguments": {},
        "model": ModelConfig(source=str(start)),
        "optimization": OptimizationConfig(),
        "execution": Execution(micro_batch_tokens=1000),
        "store_uri": str(store),
        "stage": "align",
        "digest": DIGEST,
    }
    return TrainingJob(**given | changes)


def out_of_memory(budget: int) -> OutOfMemory:
    error = OutOfMemory("out of memory")
    error.budget = budget
    return error


def test_a_budget_that_was_learned_stays_for_the_next_attempt(start: Path, tmp_path: Path) -> None:
    one = job(start, tmp_path)
    memory = Memory.of(one)
    assert (memory.micro_batch_tokens, memory.warnings) == (1000, [])
    memory.lower(one, out_of_memory(250))
    again = Memory.of(one)
    assert again.micro_batch_tokens == 250
    assert again.warnings[0].endswith("set execution.align.micro_batch_tokens to 250 to save the attempt")
    again.lower(one, out_of_memory(125))
    assert [Memory.of(one).micro_batch_tokens, len(Memory.of(one).warnings)] == [125, 2]


def test_a_smaller_configured_budget_counts(start: Path, tmp_path: Path) -> None:
    Memory.of(job(start, tmp_path)).lower(job(start, tmp_path), out_of_memory(250))
    assert Memory.of(job(start, tmp_path, execution=Execution(micro_batch_tokens=100))).micro_batch_tokens == 100
    assert Memory.of(job(start, tmp_path, digest="b" * 64)).micro_batch_tokens == 1000, "another training"


def test_layers_are_the_repeated_blocks(start: Path) -> None:
    model, _ = load_policy(start)
    assert len(decoder_layers(model)) == TINY.layers and decoder_layers(torch.nn.Linear(1, 1)) == []


@pytest.mark.parametrize("kind", [CausalLM, ScalarHead])
def test_the_start_is_the_same_on_every_rank(kind: type, start: Path, tmp_path: Path) -> None:
    one = job(start, tmp_path, kind=kind)
    first, second = (load(one, Worker()).module.state_dict() for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_trained_weights_are_those_of_the_model_that_is_saved(start: Path, tmp_path: Path) -> None:
    one = job(start, tmp_path)
    module = load(one, Worker()).module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.125)
    weights = module.state_dict()
    model = trained_model(one, weights)
    assert all(torch.equal(value, weights[f"model.{name}"].to(value.dtype)) for name, value in model.state_dict().items())
    with pytest.raises(AssertionError, match="unexpected"):
        trained_model(one, weights | {"model.unheard": torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_saved_in_the_type_they_had(dtype: torch.dtype, start: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(start)
    save_model(model.to(dtype), tokenizer, tmp_path / "start")
    one = job(tmp_path / "start", tmp_path / "store")
    started = load(one, Worker())
    assert next(started.module.parameters()).dtype == torch.float32, "trained in float32"
    folder = Store(one.store_uri).folder("align", DIGEST)
    save_trained(one, started.module.state_dict(), tokenizer, folder.path)
    with safe_open(folder.path / "model" / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {dtype}  # noqa: SIM118
    expected = {name: value.float() for name, value in model.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in load_policy(folder.path / "model")[0].state_dict().items())


def test_adapters_are_kept_beside_the_merged_model(start: Path, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, result="adapter")
    one = job(start, tmp_path, optimization=OptimizationConfig(lora=lora))
    started = load(one, Worker())
    with torch.no_grad():
        for parameter in started.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.125)
    folder = Store(one.store_uri).folder("align", DIGEST)
    save_trained(one, started.module.state_dict(), started.tokenizer, folder.path)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = started.module.model.eval()(input_ids=ids).logits
    for name in ("model", "adapter"):  # an adapter's folder is loaded as its base with the adapter
        torch.testing.assert_close(load_policy(folder.path / name)[0].eval()(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "option", [{"weight_decomposed": True}, {"target_parameters": ["w"]}, {"modules_to_save": ["lm_head"]}, {"result": "adapter"}]
)
def test_adapters_that_a_sharded_model_could_not_save_are_refused(start: Path, tmp_path: Path, option: dict[str, Any]) -> None:
    one = job(start, tmp_path, optimization=OptimizationConfig(lora=LoraConfig(**option)), execution=Execution(strategy="fsdp"))
    group: Any = "two ranks"
    with pytest.raises(ModelError, match=f"lora.{next(iter(option))}.* does not work on a sharded model") as error:
        load(one, Worker(group=group))
    assert "strategy: ddp" in str(error.value.hint)


@pytest.mark.parametrize(
    ("option", "name"),
    [({"lora": LoraConfig()}, "lora"), ({"router_balance": 0.1}, "router_balance"), ({"optimizer": "adamw_8bit"}, "optimizer=adamw_8bit")],
)
def test_what_a_tensor_group_would_compute_wrongly_is_refused(start: Path, tmp_path: Path, option: dict[str, Any], name: str) -> None:
    execution = Execution(strategy="fsdp", workers=2, tensor_parallel=2)
    one = job(start, tmp_path, optimization=OptimizationConfig(**option), execution=execution)
    with pytest.raises(ModelError, match=f"tensor_parallel=2 does not work with .*optimization.{name}"):
        load(one, Worker())


def test_the_folder_of_a_trained_model_is_on_this_machine(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = store.folder("align", DIGEST)
    (folder.path / "model").mkdir()
    (folder.path / "model" / "config.json").write_text("{}")
    assert (trained_folder(store, "align", DIGEST) / "config.json").read_text() == "{}"


@pytest.fixture(scope="module")
def sharded(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs of two ranks (``sharded_jobs.py``), and of one process with the whole model."""
    folder = tmp_path_factory.mktemp("jobs")
    shutil.copytree(start, folder / "start")
    shutil.copytree(start, folder / "untied")
    weights = load_file(folder / "untied" / "model.safetensors")
    both = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(both, folder / "untied" / "model.safetensors", metadata={"format": "pt"})
    run_ranks(sharded_jobs.rank_main, str(folder))
    return folder


def trained(folder: Path, name: str) -> dict[str, torch.Tensor]:
    model = folder / "store" / "sft" / sharded_jobs.DIGESTS[name] / "model"
    assert (model / "tokenizer.json").is_file() and (model / "config.json").is_file()
    return {name: tensor for file in model.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", sharded_jobs.KINDS)
def test_two_ranks_with_shards_leave_the_model_of_one_process(name: str, sharded: Path, tmp_path: Path) -> None:
    report = TrainingReport.model_validate_json((sharded / f"{name}.json").read_text())
    shutil.copytree(sharded / "start", tmp_path / "start")
    shutil.copytree(sharded / "untied", tmp_path / "untied")
    alone = sharded_jobs.run(name, tmp_path, Worker(), Execution(workers=0))
    assert report.curve["loss"] == pytest.approx(alone.curve["loss"], rel=1e-4) and report.steps == alone.steps == 3
    got, expected = trained(sharded, name), trained(tmp_path, name)
    assert got.keys() == expected.keys()
    before = load_file(sharded / "start" / "model.safetensors")
    moved = max((expected[at] - weight).abs().max().item() for at, weight in before.items() if at in expected)
    assert max((got[at] - weight).abs().max().item() for at, weight in expected.items()) < 1e-2 * moved
    notes = [warning for warning in report.warnings if "read the whole model" in warning]
    assert len(notes) == (name == "whole") and all("which are one weight" in note for note in notes)


def test_experts_of_a_reward_model_are_not_balanced(start: Path, tmp_path: Path) -> None:
    one = job(start, tmp_path, kind=ScalarHead, optimization=OptimizationConfig(router_balance=0.001))
    with pytest.raises(ModelError, match="a reward model's experts are not balanced"):
        _balanced(SimpleNamespace(), one, load(one, Worker()), Worker())  # type: ignore[arg-type]
    plain = SimpleNamespace()
    assert _balanced(plain, job(start, tmp_path), load(one, Worker()), Worker()) is plain  # type: ignore[arg-type]


@pytest.mark.fault(27)
def test_a_trained_model_is_whole_although_the_listing_lags_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 on another machine has written model and adapter, and the listing shows one file of them."""
    (tmp_path / "bucket").mkdir()
    bucket = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem())
    there, here = (Store(str(tmp_path / name)) for name in ("there", "here"))
    there.remote = here.remote = (bucket, "")
    folder, files = there.folder("align", DIGEST), ["adapter/a.json", "model/config.json", "model/model.safetensors"]
    for name in files:
        folder.write_json(name, name)
    folder.write_json(REPORT, {"files": files})
    monkeypatch.setattr(here, "list", lambda relative: ["config.json"])
    trained = trained_folder(here, "align", DIGEST)
    assert sorted(path.relative_to(trained.parent).as_posix() for path in trained.parent.rglob("*.*")) == files
