"""Presets of the shape pair: a preferred and another response in one row."""

from __future__ import annotations

from dora_core.data.presets.base import Preset, Variant, register_preset

_LISTS = frozenset({"responses", "answers", "generations", "completions", "all_generated_responses"})


@register_preset
class Trl(Preset):
    """TRL's preference format, with a prompt column or with the prompt at the beginning of both responses
    (trl-lib/ultrafeedback_binarized)."""

    name = "trl"
    variants = (
        Variant(needs={"prompt": "any", "chosen": "response", "rejected": "response"}, without=_LISTS, adapter={"shape": "pair"}),
        Variant(needs={"chosen": "response", "rejected": "response"}, without=_LISTS, adapter={"shape": "pair"}),
    )


@register_preset
class HH(Preset):
    """Anthropic/hh-rlhf: two whole transcripts that share all but the last turn."""

    name = "hh"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"chosen": "transcript", "rejected": "transcript"}, without=frozenset({"prompt", *_LISTS}), adapter={"shape": "pair"}
        ),
    )


@register_preset
class Binarized(Preset):
    """HuggingFaceH4/ultrafeedback_binarized: whole conversations with scores. `messages` repeats `chosen`."""

    name = "binarized"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"prompt": "any", "chosen": "messages", "rejected": "messages", "score_chosen": "number", "score_rejected": "number"},
            adapter={
                "shape": "pair",
                "label": {"scores": [{"chosen": "score_chosen", "rejected": "score_rejected"}]},
                "carry": ["prompt_id"],
                "ignore": ["messages"],
            },
        ),
    )


@register_preset
class Orca(Preset):
    """Intel/orca_dpo_pairs and jondurbin/truthy-dpo: system prompt and question in columns of their own."""

    name = "orca"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"system": "any", "question": "text", "chosen": "response", "rejected": "response"},
            adapter={"shape": "pair", "columns": {"prompt": "question"}, "context": {"system": "system"}},
        ),
        Variant(
            needs={"system": "any", "prompt": "text", "chosen": "text", "rejected": "text"},
            without=frozenset({"question", "input", "instruction"}),
            adapter={"shape": "pair", "context": {"system": "system"}, "carry": ["source"]},
        ),
    )


@register_preset
class Sharegpt(Preset):
    """LLaMA-Factory's sharegpt preference format (hiyouga/DPO-En-Zh-20k): `conversations`, and one message each as chosen and rejected."""

    name = "sharegpt"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"conversations": "messages", "chosen": "message", "rejected": "message"},
            adapter={"shape": "pair", "columns": {"prompt": "conversations"}, "context": {"system": "system"}},
            optional=frozenset({"context.system"}),
        ),
    )


@register_preset
class OpenaiPreference(Preset):
    """OpenAI's preference fine-tuning format: `input.messages`, `preferred_output`, `non_preferred_output`."""

    name = "openai_preference"
    variants = (
        Variant(
            needs={"input.messages": "messages", "preferred_output": "messages", "non_preferred_output": "messages"},
            adapter={
                "shape": "pair",
                "columns": {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"},
            },
        ),
    )


@register_preset
class Tulu3(Preset):
    """allenai/llama-3.1-tulu-3-8b-preference-mixture: `source` is the subset of the prompt, not the author of a response."""

    name = "tulu3"
    refines = ("trl", "skywork")
    variants = (
        Variant(
            needs={"id": "text", "source": "text", "prompt": "text", "chosen": "messages", "rejected": "messages"},
            without=frozenset({"score_chosen", "chosen-rating", "chosen_rating", "chosen_score", "messages"}),
            adapter={
                "shape": "pair",
                "columns": {"chosen_source": "chosen_model", "rejected_source": "rejected_model"},
                "carry": ["source", "prompt_id"],
            },
            optional=frozenset({"columns.chosen_source", "columns.rejected_source"}),
        ),
    )


@register_preset
class Argilla(Preset):
    """argilla/ultrafeedback-binarized-preferences(-cleaned), argilla/dpo-mix-7k, argilla/Capybara-Preferences and
    argilla/distilabel-math-preference-dpo, with ratings."""

    name = "argilla"
    refines = ("trl", "skywork", "tulu3")
    variants = (
        Variant(
            needs={"prompt": "text", "chosen": "response", "rejected": "response", "chosen-rating": "number", "rejected-rating": "number"},
            adapter={
                "shape": "pair",
                "columns": {"chosen_source": "chosen-model", "rejected_source": "rejected-model"},
                "label": {"scores": [{"chosen": "chosen-rating", "rejected": "rejected-rating"}]},
                "carry": ["source"],
            },
            optional=frozenset({"columns.chosen_source", "columns.rejected_source"}),
        ),
        Variant(
            needs={
                "instruction": "text",
                "chosen_response": "text",
                "rejected_response": "text",
                "chosen_avg_rating": "number",
                "rejected_avg_rating": "number",
            },
            adapter={
                "shape": "pair",
                "columns": {
                    "prompt": "instruction",
                    "chosen": "chosen_response",
                    "rejected": "rejected_response",
                    "chosen_source": "chosen_model",
                    "rejected_source": "rejected_model",
                },
                "label": {"scores": [{"chosen": "chosen_avg_rating", "rejected": "rejected_avg_rating"}]},
                "carry": ["source"],
            },
            optional=frozenset({"columns.chosen_source", "columns.rejected_source"}),
        ),
        Variant(
            needs={
                "instruction": "text",
                "chosen_response": "text",
                "rejected_response": "text",
                "chosen_rating": "number",
                "rejected_rating": "number",
            },
            adapter={
                "shape": "pair",
                "columns": {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
                "label": {"scores": [{"chosen": "chosen_rating", "rejected": "rejected_rating"}]},
                "ignore": ["metadata", "difference"],
            },
        ),
        Variant(
            needs={"chosen": "messages", "rejected": "messages", "rating_chosen": "number", "rating_rejected": "number"},
            adapter={
                "shape": "pair",
                "columns": {"chosen_source": "chosen_model", "rejected_source": "rejected_model"},
                "label": {"scores": [{"chosen": "rating_chosen", "rejected": "rating_rejected"}]},
                "carry": ["source"],
                "ignore": ["conversation", "original_response", "generation_prompt", "raw_generation_responses", "new_generations"],
            },
            optional=frozenset({"columns.chosen_source", "columns.rejected_source"}),
        ),
        Variant(
            needs={"chosen": "messages", "rejected": "messages", "chosen_rating": "number", "rejected_rating": "number"},
            adapter={
                "shape": "pair",
                "columns": {"chosen_source": "chosen_model", "rejected_source": "rejected_model"},
                "label": {"scores": [{"chosen": "chosen_rating", "rejected": "rejected_rating"}]},
                "carry": ["dataset", "source"],
            },
            optional=frozenset({"columns.chosen_source", "columns.rejected_source"}),
        ),
    )


@register_preset
class OrpoMix(Preset):
    """mlabonne/orpo-dpo-mix-40k: `source` is the data set of the pair, `question` repeats the prompt."""

    name = "orpo_mix"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"source": "text", "prompt": "text", "question": "text", "chosen": "messages", "rejected": "messages"},
            adapter={"shape": "pair", "carry": ["source"], "ignore": ["question"]},
        ),
    )


@register_preset
class UltraInteract(Preset):
    """openbmb/UltraInteract_pair: the turns so far in `trajectory`; ids of a tree, which repeat, are carried."""

    name = "ultrainteract"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"trajectory": "messages", "chosen": "text", "rejected": "text"},
            adapter={"shape": "pair", "columns": {"id": False, "prompt": "trajectory"}, "carry": ["id", "parent_id", "dataset"]},
        ),
    )


@register_preset
class Helpsteer3Edits(Preset):
    """nvidia/HelpSteer3 (edit_quality): a good and a bad edit of a response."""

    name = "helpsteer3_edits"
    variants = (
        Variant(
            needs={"context": "messages", "good_edited_response": "text", "bad_edited_response": "text"},
            adapter={
                "shape": "pair",
                "columns": {
                    "prompt": "context",
                    "chosen": "good_edited_response",
                    "rejected": "bad_edited_response",
                    "task": "domain",
                },
                "carry": ["language"],
                "ignore": ["original_response", "feedback"],
            },
            optional=frozenset({"columns.task"}),
        ),
    )


@register_preset
class Skywork(Preset):
    """Skywork/Skywork-Reward-Preference-80K: whole conversations; `source` is the subset, used as the source of both responses."""

    name = "skywork"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"chosen": "messages", "rejected": "messages", "source": "text"},
            without=frozenset({"prompt", "prompts", "question", "instruction"}),
            adapter={"shape": "pair", "columns": {"chosen_source": "source", "rejected_source": "source"}},
        ),
    )


@register_preset
class Simpo(Preset):
    """princeton-nlp/llama3-ultrafeedback: all sampled responses with a reward model's scores; chosen and rejected are the best and the
    worst."""

    name = "simpo"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"all_generated_responses": "responses", "all_rm_scores": "list"},
            adapter={
                "shape": "list",
                "columns": {"responses": "all_generated_responses", "rewards": "all_rm_scores"},
                "carry": ["prompt_id"],
                "ignore": ["chosen", "rejected"],
            },
        ),
    )


@register_preset
class MsSwift(Preset):
    """ModelScope ms-swift's RLHF format: a whole conversation in `messages`, the other response as `rejected_response`."""

    name = "ms_swift"
    variants = (
        Variant(
            needs={"messages": "messages", "rejected_response": "response"},
            adapter={"shape": "pair", "columns": {"chosen": "messages", "rejected": "rejected_response"}},
        ),
    )


@register_preset
class Axolotl(Preset):
    """Axolotl's chat_template.default (`messages`, one message each) and chatml.icr (`system`, `input`) preference formats."""

    name = "axolotl"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"messages": "messages", "chosen": "message", "rejected": "message"},
            adapter={"shape": "pair", "columns": {"prompt": "messages"}, "context": {"system": "system"}},
            optional=frozenset({"context.system"}),
        ),
        Variant(
            needs={"conversation": "messages", "chosen": "message", "rejected": "message"},
            adapter={"shape": "pair", "columns": {"prompt": "conversation"}, "context": {"system": "system"}},
            optional=frozenset({"context.system"}),
        ),
        Variant(
            needs={"system": "any", "input": "text", "chosen": "text", "rejected": "text"},
            without=frozenset({"instruction", "prompt", "question"}),
            adapter={"shape": "pair", "columns": {"prompt": "input"}, "context": {"system": "system"}},
        ),
    )


@register_preset
class RewardBench(Preset):
    """allenai/reward-bench: pairs with the models that wrote them; `subset` becomes the task.
    allenai/reward-bench-2: lists of preferred and rejected responses; `models` names their authors in that order, and is carried."""

    name = "reward_bench"
    refines = ("trl",)
    variants = (
        Variant(
            needs={
                "prompt": "any",
                "chosen": "response",
                "rejected": "response",
                "chosen_model": "text",
                "rejected_model": "text",
                "subset": "text",
            },
            adapter={
                "shape": "pair",
                "columns": {"chosen_source": "chosen_model", "rejected_source": "rejected_model", "task": "subset"},
            },
        ),
        Variant(
            needs={"prompt": "any", "chosen": "texts", "rejected": "texts", "num_correct": "number", "subset": "text"},
            adapter={
                "shape": "pair",
                "columns": {"chosen": "chosen[]", "rejected": "rejected[]", "task": "subset"},
                "carry": ["models", "num_correct"],
                "ignore": ["num_incorrect", "num_rejected", "total_completions", "additional_metadata"],
            },
        ),
    )


@register_preset
class StackExchange(Preset):
    """lvwerra/stack-exchange-paired: `response_j` was voted above `response_k`; `qid` repeats over the pairs of a question.
    HuggingFaceH4/stack-exchange-preferences: all answers with `pm_score`, the logarithm of their votes."""

    name = "stack_exchange"
    variants = (
        Variant(
            needs={"question": "text", "response_j": "text", "response_k": "text"},
            adapter={
                "shape": "pair",
                "columns": {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
                "carry": ["qid", "date"],
                "ignore": ["metadata"],
            },
        ),
        Variant(
            needs={"qid": "scalar", "question": "text", "answers": "structs", "answers[].text": "any", "answers[].pm_score": "any"},
            adapter={
                "shape": "list",
                "columns": {"prompt": "question", "responses": "answers[].text", "rewards": "answers[].pm_score"},
                "carry": ["qid", "date"],
                "ignore": ["metadata"],
            },
        ),
    )
