"""Sampling: greedy equals transformers, samples follow the softmax, and batches do not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.config.method import GenerateConfig
from dora_core.errors import ModelError
from dora_core.models import generation
from dora_core.models.batching import TokenBudget
from dora_core.models.generation import Sample, choose, sample, uniform_numbers
from tests.dora_core.models.limited_memory import hold

VOCAB, EOS, PAD = 23, 5, 0
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SHARP = {"initializer_range": 0.4}  # random weights far from uniform: greedy texts vary and some of them end


def llama() -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **SHARP, num_key_value_heads=2, max_position_embeddings=128))


def gpt2() -> transformers.PreTrainedModel:
    """Absolute positions: a wrong position behind left padding shows."""
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, **SHARP))


def mistral() -> transformers.PreTrainedModel:
    """A sliding window shorter than the texts: layers that keep the cache of transformers."""
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, **SHARP, num_key_value_heads=4, sliding_window=6))


def prompts_of(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(6, VOCAB, rng.integers(1, 9)).tolist() for _ in range(count)]


def drawn(model: transformers.PreTrainedModel, prompts, keys=None, batch_tokens: int = 10_000, **config) -> list[list[Sample]]:
    keys = range(len(prompts)) if keys is None else keys
    return sample(model, prompts, keys, GenerateConfig(**config), eos_id=EOS, pad_id=PAD, batch_tokens=batch_tokens)


def watched_exchanges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(responses still going, prompts joining them) of every exchange from now on."""
    seen, exchange = list[tuple[int, int]](), generation._Batch.exchange

    def watched(batch: generation._Batch, joining: dict) -> list:
        seen.append((batch.going, len(joining)))
        return exchange(batch, joining)

    monkeypatch.setattr(generation._Batch, "exchange", watched)
    return seen


@pytest.fixture(params=[llama, gpt2, mistral])
def model(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    return request.param().eval()


# -------------------------------------------------------------------------------------------------------- whole responses


def test_greedy_is_what_transformers_generates_for_each_prompt_alone(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """All prompts from the start, and 6 at a time, others joining as they end; in double precision, where rounding decides nothing."""
    monkeypatch.setattr(generation, "CACHE_ROOM", 3)  # buffers are made anew many times
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 40)  # several groups
    model, prompts, most = model.double(), prompts_of(24), 30
    options = {"do_sample": False, "max_new_tokens": most, "eos_token_id": EOS, "pad_token_id": PAD}
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        expected.append(model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist())
    lengths = {len(ids) for ids in expected}
    assert len(lengths) > 2
    assert most in lengths, "some texts end at different times and some are cut, or the test shows little"
    for places in (24, 6):
        exchanges = watched_exchanges(monkeypatch)
        budget = places * (max(map(len, prompts)) + most)
        got = [row for (row,) in drawn(model, prompts, temperature=0, max_new_tokens=most, batch_tokens=budget)]
        assert [s.ids for s in got] == expected
        assert [s.finished for s in got] == [ids[-1] == EOS for ids in expected]
        assert sum(joining for _, joining in exchanges) == len(prompts)
        assert sum(going > 0 and joining > 0 for going, joining in exchanges) > 3 or places == 24, "prompts join others under way"


def test_a_response_depends_on_seed_prompt_and_sample_number_alone(model) -> None:
    """In double precision, where rounding between batches of different shape cannot move a token."""
    model, prompts, options = model.double(), prompts_of(12), {"max_new_tokens": 20, "seed": 7}
    together = drawn(model, prompts, samples=3, **options)
    assert drawn(model, prompts, samples=3, batch_tokens=1, **options) == together, "one prompt at a time"
    assert drawn(model, prompts, samples=3, batch_tokens=300, **options) == together, "about 4 prompts at a time, others joining"
    backwards = drawn(model, prompts[::-1], keys=range(11, -1, -1), samples=3, **options)
    assert backwards[::-1] == together
    assert [row[:1] for row in together] == drawn(model, prompts, samples=1, **options), "more samples do not change the first"
    shorter = drawn(model, prompts, samples=3, seed=7, max_new_tokens=8)
    assert [[s.ids for s in row] for row in shorter] == [[s.ids[:8] for s in row] for row in together]

    assert len({tuple(s.ids) for row in together for s in row}) > 30, "samples differ from each other"
    assert drawn(model, prompts, samples=3, seed=8, max_new_tokens=20) != together


def test_an_end_of_sequence_is_the_last_token_and_only_there(model) -> None:
    rows = drawn(model, prompts_of(40), samples=4, max_new_tokens=25, temperature=2.0)
    ended = [s for row in rows for s in row if s.finished]
    cut = [s for row in rows for s in row if not s.finished]
    assert ended
    assert cut
    assert all(s.ids.index(EOS) == len(s.ids) - 1 for s in ended)
    assert all(EOS not in s.ids and len(s.ids) == 25 for s in cut)


def test_every_end_token_ends_a_response(model) -> None:
    """With all tokens that were drawn as end tokens, each response is its first token, finished; greedy, so that it can be known."""
    [[long]] = sample(model, [[5, 6]], [1], GenerateConfig(temperature=0, max_new_tokens=6), eos_id=[], pad_id=PAD, batch_tokens=1000)
    assert len(long.ids) == 6 and not long.finished
    ends = {long.ids[0], EOS}
    [[short]] = sample(model, [[5, 6]], [1], GenerateConfig(temperature=0, max_new_tokens=6), eos_id=ends, pad_id=PAD, batch_tokens=1000)
    assert (short.ids, short.finished) == (long.ids[:1], True)


def test_a_model_with_a_recurrent_state_is_refused() -> None:
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError, match="cannot sample from MambaForCausalLM") as caught:
        drawn(mamba.eval(), prompts_of(2))
    assert "generate.served_model" in caught.value.hint


# --------------------------------------------------------------------------------------------------------- distributions

CHI_SQUARE_999 = {5: 20.5, 22: 48.3}
"""99.9 % quantiles of χ² by degrees of freedom; seeds are fixed, so a pass is a pass for good."""


def chi_square(tokens: list[int], p: np.ndarray) -> float:
    expected = len(tokens) * p
    return float(((np.bincount(tokens, minlength=len(p)) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_first_tokens_follow_the_models_softmax(temperature: float) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.2)).eval()
    prompt = [7, 8, 9]
    rows = drawn(model, [prompt] * 40, samples=256, max_new_tokens=1, temperature=temperature, batch_tokens=100_000)
    p = (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(0).detach().numpy()
    tokens = [s.ids[0] for row in rows for s in row]
    assert min(p) * len(tokens) > 5, "the χ² approximation holds"
    assert chi_square(tokens, p) < CHI_SQUARE_999[VOCAB - 1]
    assert chi_square(tokens, p**1.2 / (p**1.2).sum()) > CHI_SQUARE_999[VOCAB - 1], "a sixth more heat would be noticed"


def test_uniform_numbers_are_uniform_streams_of_their_own() -> None:
    long = uniform_numbers(1, 2, 3, 1000)
    assert np.array_equal(uniform_numbers(1, 2, 3, 10), long[:10])
    others = [uniform_numbers(*which, 1000) for which in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (12, 3, 3))]
    assert all(abs(np.corrcoef(long, other)[0, 1]) < 4 / math.sqrt(1000) for other in others)
    first = [uniform_numbers(0, 2**63 + 5, s, 1)[0] for s in range(6000)]
    assert chi_square([int(6 * u) for u in first], np.full(6, 1 / 6)) < CHI_SQUARE_999[5]


def test_choose_inverts_the_cumulative_distribution() -> None:
    """p = .5, .3, .15, .05 has the steps .5, .8, .95, 1."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    cases = {0.0: 0, 0.49: 0, 0.51: 1, 0.79: 1, 0.81: 2, 0.94: 2, 0.96: 3, 1 - 2**-53: 3}
    uniform = torch.tensor(list(cases), dtype=torch.float64)
    assert choose(logits.expand(len(cases), -1), uniform, 1.0, 1.0).tolist() == list(cases.values())
    never = torch.tensor([[-math.inf, 0.0, -math.inf]])
    assert choose(never.expand(2, -1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0, 1.0).tolist() == [1, 1]


def test_top_p_by_hand() -> None:
    """p in another order than its rank; top_p .81 needs three tokens, {1, 3, 0} of mass .95; .79 needs {1, 3} of mass .8."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    cases = {  # (top_p, u): token; the steps are in the order of the vocabulary
        (0.81, 0.15 / 0.95 - 1e-6): 0,
        (0.81, 0.15 / 0.95 + 1e-6): 1,
        (0.81, 0.65 / 0.95 + 1e-6): 3,
        (0.79, 0.0): 1,
        (0.79, 0.5 / 0.8 - 1e-6): 1,
        (0.79, 0.5 / 0.8 + 1e-6): 3,
        (0.3, 0.999): 1,
    }
    for (top_p, u), token in cases.items():
        assert choose(logits, torch.tensor([u], dtype=torch.float64), 1.0, top_p).item() == token, (top_p, u)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12),
    u=st.floats(0, 1, exclude_max=True),
    top_p=st.floats(0.01, 1),
)
def test_every_choice_is_in_the_nucleus(logits: list[float], u: float, top_p: float) -> None:
    token = choose(torch.tensor([logits]), torch.tensor([u], dtype=torch.float64), 1.0, top_p).item()
    p = np.exp(np.array(logits) - np.logaddexp.reduce(logits))
    likelier = p[p > p[token]].sum()  # the nucleus stops at the first token with which top_p is reached
    assert likelier < top_p + 1e-9


# ---------------------------------------------------------------------------------------------------------- out of memory


@pytest.fixture
def small_model() -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    sizes = {"vocab_size": 23, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, initializer_range=0.4)).eval().double()


def drawn_within(model: transformers.PreTrainedModel, budget: int | TokenBudget, samples: int = 3):
    prompts = [np.random.default_rng(i).integers(6, 23, 1 + i % 8).tolist() for i in range(12)]
    return sample(
        model, prompts, range(12), GenerateConfig(samples=samples, max_new_tokens=20, seed=7), eos_id=5, pad_id=0, batch_tokens=budget
    )


@pytest.mark.fault(3)
def test_responses_are_the_same_however_often_memory_ran_out(small_model) -> None:
    """In double precision, where rounding between batches of different shape cannot move a token."""
    together = drawn_within(small_model, 10_000)
    device, budget = hold(small_model, 200), TokenBudget(10_000)
    assert drawn_within(small_model, budget) == together
    assert 0 < device.failures < 6 and budget.lowered is not None and budget.lowered <= 200 * 2
    failures = device.failures
    assert drawn_within(small_model, budget) == together
    assert device.failures == failures, "a budget that is kept does not fail again"


@pytest.mark.fault(3)
def test_samples_of_one_prompt_that_do_not_fit_are_the_end(small_model) -> None:
    hold(small_model, 30)
    with pytest.raises(ModelError, match="even one row at a time") as caught:
        drawn_within(small_model, 10_000)
    assert "generate.samples" in caught.value.hint
