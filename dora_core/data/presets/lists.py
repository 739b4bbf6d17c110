"""Presets of the shape list: several responses of a prompt in one row."""

from __future__ import annotations

from dora_core.data.presets.base import Preset, Variant, register_preset


@register_preset
class Ultrafeedback(Preset):
    """openbmb/UltraFeedback: four completions with an overall score each. `source` is the origin of the prompt; `models` repeats the
    completions. Each completion had a system prompt of its own, which is carried: the record's one prompt cannot hold four."""

    name = "ultrafeedback"
    variants = (
        Variant(
            needs={
                "instruction": "text",
                "completions": "structs",
                "completions[].response": "any",
                "completions[].overall_score": "any",
            },
            adapter={
                "shape": "list",
                "columns": {
                    "prompt": "instruction",
                    "responses": "completions[].response",
                    "rewards": "completions[].overall_score",
                    "sources": "completions[].model",
                },
                "carry": ["source", "completions[].custom_system_prompt"],
                "ignore": ["models", "correct_answers", "incorrect_answers"],
            },
        ),
    )


@register_preset
class Nectar(Preset):
    """berkeley-nest/Nectar: seven answers with ranks from 1; the prompt is a transcript."""

    name = "nectar"
    variants = (
        Variant(
            needs={"prompt": "text", "answers": "structs", "answers[].answer": "any", "answers[].rank": "any"},
            adapter={
                "shape": "list",
                "columns": {"responses": "answers[].answer", "sources": "answers[].model"},
                "label": {"ranks": "answers[].rank", "base": 1},
                "carry": ["source", "turns", "good_natured"],
                "ignore": ["num_responses"],
            },
        ),
    )


@register_preset
class Distilabel(Preset):
    """distilabel's UltraFeedback task: `generations` with `ratings` (numbers, or text such as "N/A") and the models that wrote them."""

    name = "distilabel"
    variants = (
        Variant(
            needs={"instruction": "text", "generations": "responses", "ratings": "list"},
            adapter={
                "shape": "list",
                "columns": {
                    "prompt": "instruction",
                    "responses": "generations",
                    "rewards": "ratings",
                    "sources": "generation_models|generation_model|model_names",
                },
                "context": {"system": "system_prompt"},
                "ignore": [
                    "rationales",
                    "types",
                    "rationales-for-ratings",
                    "model_name",
                    "distilabel_metadata",
                    "distilabel_meta",
                    "raw_generation_responses",
                ],
            },
            optional=frozenset({"columns.sources", "context.system"}),
        ),
    )


@register_preset
class Rlhflow(Preset):
    """RLHFlow online iterations (`responses`, `rewards`), and its and OpenRLHF's pair data sets (`chosen_score`, `rejected_score`)."""

    name = "rlhflow"
    refines = ("trl", "skywork")
    variants = (
        Variant(
            needs={"prompt": "any", "responses": "responses", "rewards": "list"},
            without=frozenset({"sources", "chosen", "rejected"}),
            adapter={"shape": "list"},
        ),
        Variant(
            needs={"chosen": "messages", "rejected": "messages", "chosen_score": "number", "rejected_score": "number"},
            adapter={
                "shape": "pair",
                "label": {"scores": [{"chosen": "chosen_score", "rejected": "rejected_score"}]},
                "carry": ["source"],
            },
        ),
    )
