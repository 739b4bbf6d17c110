"""Presets of the shape ab: two responses and a label that names the better one."""

from __future__ import annotations

from dora_core.data.presets.base import Preset, Variant, register_preset


@register_preset
class Shp(Preset):
    """stanfordnlp/SHP: Reddit comments; `labels` is 1 where A has more votes. The votes are checked against it, not used as rewards."""

    name = "shp"
    variants = (
        Variant(
            needs={"history": "text", "human_ref_A": "text", "human_ref_B": "text", "labels": "scalar"},
            adapter={
                "shape": "ab",
                "columns": {"prompt": "history", "a": "human_ref_A", "b": "human_ref_B"},
                "label": {"column": "labels", "a": [1], "b": [0], "check": [{"a": "score_A", "b": "score_B"}]},
                "carry": ["post_id", "domain", "score_ratio"],
                "ignore": ["upvote_ratio", "c_root_id_A", "c_root_id_B", "created_at_utc_A", "created_at_utc_B", "seconds_difference"],
            },
        ),
    )


@register_preset
class Helpsteer3(Preset):
    """nvidia/HelpSteer3 (preference): `overall_preference` from -3 (response1 is much better) to 3 (response2 is much better)."""

    name = "helpsteer3"
    variants = (
        Variant(
            needs={"context": "messages", "response1": "text", "response2": "text", "overall_preference": "number"},
            adapter={
                "shape": "ab",
                "columns": {"prompt": "context", "a": "response1", "b": "response2", "task": "domain"},
                "label": {"column": "overall_preference", "positive": "b"},
                "carry": ["language"],
                "ignore": ["individual_preference"],
            },
            optional=frozenset({"columns.task"}),
        ),
    )


@register_preset
class Helpsteer2Preference(Preset):
    """nvidia/HelpSteer2 (preference): `preference_strength` from -3 (response_1 is much better) to 3 (response_2 is much better)."""

    name = "helpsteer2_preference"
    variants = (
        Variant(
            needs={"prompt": "text", "response_1": "text", "response_2": "text", "preference_strength": "number"},
            adapter={
                "shape": "ab",
                "columns": {"a": "response_1", "b": "response_2"},
                "messages": {"templated": "parse"},
                "label": {"column": "preference_strength", "positive": "b"},
                "carry": ["preference_statement"],
                "ignore": ["preference_elaboration", "three_most_similar_preferences", "all_preferences_unprocessed"],
            },
        ),
    )


@register_preset
class PkuSafeRlhf(Preset):
    """PKU-Alignment/PKU-SafeRLHF: `better_response_id` is the more helpful response. For harmlessness map `safer_response_id` as the
    label."""

    name = "pku_saferlhf"
    variants = (
        Variant(
            needs={"prompt": "text", "response_0": "text", "response_1": "text", "better_response_id": "scalar"},
            adapter={
                "shape": "ab",
                "columns": {"a": "response_0", "b": "response_1", "a_source": "response_0_source", "b_source": "response_1_source"},
                "label": {"column": "better_response_id", "index_base": 0},
                "carry": [
                    "safer_response_id",
                    "is_response_0_safe",
                    "is_response_1_safe",
                    "prompt_source",
                    "response_0_severity_level",
                    "response_1_severity_level",
                ],
                "ignore": ["response_0_harm_category", "response_1_harm_category", "response_0_sha256", "response_1_sha256"],
            },
            optional=frozenset({"columns.a_source", "columns.b_source"}),
        ),
    )


@register_preset
class Webgpt(Preset):
    """openai/webgpt_comparisons: two answers with scores in [-1, 1] that sum to 0."""

    name = "webgpt"
    variants = (
        Variant(
            needs={"question.full_text": "text", "answer_0": "text", "answer_1": "text", "score_0": "number", "score_1": "number"},
            adapter={
                "shape": "ab",
                "columns": {"prompt": "question.full_text", "a": "answer_0", "b": "answer_1"},
                "label": {"scores": [{"a": "score_0", "b": "score_1"}]},
                "carry": ["question.dataset", "question.id"],
                "ignore": ["quotes_0", "quotes_1", "tokens_0", "tokens_1"],
            },
        ),
    )


@register_preset
class Arena(Preset):
    """lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments, lmarena-ai/arena-human-preference-140k (ids repeat in some:
    carried), lmarena-ai/PPE-Human-Preference-V1 (`response_1`, `response_2`), and lmsys/lmsys-arena-human-preference-55k: prompts and
    responses are lists of one text per turn, 1 in the winner's column."""

    name = "arena"
    variants = (
        Variant(
            needs={"model_a": "text", "model_b": "text", "winner": "text", "conversation_a": "messages", "conversation_b": "messages"},
            adapter={
                "shape": "ab",
                "columns": {
                    "id": False,
                    "a": "conversation_a",
                    "b": "conversation_b",
                    "a_source": "model_a",
                    "b_source": "model_b",
                    "task": "language",
                },
                "label": {
                    "column": "winner",
                    "a": ["model_a"],
                    "b": ["model_b"],
                    "tie": ["tie", "tie (bothbad)", "tie (both bad)", "both_bad", "bothbad"],
                },
                "carry": ["question_id", "id", "judge", "turn", "tstamp", "timestamp", "is_code"],
                "ignore": [
                    "anony",
                    "openai_moderation",
                    "toxic_chat_tag",
                    "evaluation_session_id",
                    "evaluation_order",
                    "full_conversation",
                    "conv_metadata",
                    "category_tag",
                ],
            },
            optional=frozenset({"columns.task"}),
        ),
        Variant(
            needs={
                "model_a": "text",
                "model_b": "text",
                "winner": "text",
                "prompt": "any",
                "response_1": "response",
                "response_2": "response",
            },
            adapter={
                "shape": "ab",
                "columns": {"a": "response_1", "b": "response_2", "a_source": "model_a", "b_source": "model_b", "task": "language"},
                "label": {
                    "column": "winner",
                    "a": ["model_a"],
                    "b": ["model_b"],
                    "tie": ["tie", "tie (bothbad)", "tie (both bad)", "both_bad", "bothbad"],
                },
                "carry": ["question_id"],
            },
            optional=frozenset({"columns.task"}),
        ),
        Variant(
            needs={
                "model_a": "text",
                "model_b": "text",
                "prompt": "any",
                "response_a": "any",
                "response_b": "any",
                "winner_model_a": "scalar",
                "winner_model_b": "scalar",
            },
            adapter={
                "shape": "ab",
                "columns": {"a": "response_a", "b": "response_b", "a_source": "model_a", "b_source": "model_b"},
                "label": {"scores": [{"a": "winner_model_a", "b": "winner_model_b"}]},
                "carry": ["winner_tie"],
            },
        ),
    )


@register_preset
class Prometheus(Preset):
    """prometheus-eval/Preference-Collection: two graded responses to an instruction; the texts of the judge's task are not read."""

    name = "prometheus"
    variants = (
        Variant(
            needs={"orig_instruction": "text", "orig_response_A": "text", "orig_response_B": "text", "orig_preference": "text"},
            adapter={
                "shape": "ab",
                "columns": {"prompt": "orig_instruction", "a": "orig_response_A", "b": "orig_response_B"},
                "label": {
                    "column": "orig_preference",
                    "a": ["A"],
                    "b": ["B"],
                    "check": [{"a": "orig_score_A", "b": "orig_score_B"}],
                },
                "carry": ["orig_criteria"],
                "ignore": [
                    "orig_feedback_A",
                    "orig_feedback_B",
                    "orig_reference_answer",
                    "orig_feedback",
                    "instruction",
                    "input",
                    "output",
                    "messages",
                ],
            },
        ),
    )


@register_preset
class AlpacaPreference(Preset):
    """tatsu-lab/alpaca_farm (`output_1`, `output_2`, `preference` 1 or 2), and LLaMA-Factory's alpaca preference format."""

    name = "alpaca_pref"
    refines = ("trl",)
    variants = (
        Variant(
            needs={"instruction": "text", "output_1": "text", "output_2": "text", "preference": "scalar"},
            adapter={
                "shape": "ab",
                "columns": {
                    "prompt": "instruction",
                    "a": "output_1",
                    "b": "output_2",
                    "a_source": "generator_1",
                    "b_source": "generator_2",
                },
                "label": {"column": "preference", "a": [1], "b": [2], "tie": [0, 1.5]},
                "context": {"input": "input"},
                "carry": ["dataset", "datasplit", "annotator"],
                "ignore": ["raw_preference", "prompt", "sample_mode"],
            },
            optional=frozenset({"context.input", "columns.a_source", "columns.b_source"}),
        ),
        Variant(
            needs={"instruction": "text", "chosen": "text", "rejected": "text"},
            adapter={
                "shape": "pair",
                "columns": {"prompt": "instruction"},
                "context": {"system": "system", "history": "history", "input": "input"},
            },
            without=frozenset({"prompt", "output_1"}),
            optional=frozenset({"context.system", "context.history", "context.input"}),
        ),
    )


@register_preset
class LabelStudio(Preset):
    """Label Studio's export of the template "Human preference collection for RLHF": annotators who disagree make the row a problem."""

    name = "label_studio"
    variants = (
        Variant(
            needs={"data.prompt": "any", "data.answer1": "any", "data.answer2": "any", "annotations": "structs"},
            adapter={
                "shape": "ab",
                "columns": {"prompt": "data.prompt", "a": "data.answer1", "b": "data.answer2"},
                "label": {"column": "annotations[].result[].value.selected", "a": ["left"], "b": ["right"]},
                "carry": ["annotations[].completed_by"],
                "ignore": [
                    "meta",
                    "project",
                    "created_at",
                    "updated_at",
                    "predictions",
                    "drafts",
                    "inner_id",
                    "file_upload",
                    "total_annotations",
                    "cancelled_annotations",
                    "total_predictions",
                    "comment_count",
                    "unresolved_comment_count",
                    "last_comment_updated_at",
                    "updated_by",
                    "comment_authors",
                ],
            },
        ),
    )


@register_preset
class Halos(Preset):
    """ContextualAI/HALOs feedback files: pairwise (`output_A`, `output_B`, label 1 where A is better) and binary (`output`, label 1 or
    0)."""

    name = "halos"
    refines = ("kto",)
    variants = (
        Variant(
            needs={"prompt": "any", "output_A": "response", "output_B": "response", "label": "scalar"},
            adapter={
                "shape": "ab",
                "columns": {"a": "output_A", "b": "output_B"},
                "label": {"column": "label", "a": [1], "b": [0], "check": [{"a": "reward_A", "b": "reward_B"}]},
                "carry": ["prompt_id"],
                "ignore": ["type"],
            },
        ),
        Variant(
            needs={"prompt": "any", "output": "response", "label": "scalar", "type": "text"},
            adapter={
                "shape": "unpaired",
                "columns": {"response": "output"},
                "label": {"column": "label", "true": [1], "false": [0]},
                "carry": ["prompt_id"],
                "ignore": ["reward", "type"],
            },
        ),
    )


@register_preset
class UnifiedFeedback(Preset):
    """llm-blender/Unified-Feedback: two conversations with ratings; `source` is the data set, used as the source of both responses."""

    name = "unified_feedback"
    variants = (
        Variant(
            needs={"conv_A": "messages", "conv_B": "messages", "conv_A_rating": "number", "conv_B_rating": "number"},
            adapter={
                "shape": "ab",
                "columns": {"a": "conv_A", "b": "conv_B", "a_source": "source", "b_source": "source"},
                "label": {"scores": [{"a": "conv_A_rating", "b": "conv_B_rating"}]},
                "ignore": ["num_turns"],
            },
            optional=frozenset({"columns.a_source", "columns.b_source"}),
        ),
    )


@register_preset
class Summarize(Preset):
    """openai/summarize_from_feedback (comparisons): posts (Reddit) or articles (CNN/DM), two summaries, the index of the better one."""

    name = "summarize"
    variants = (
        Variant(
            needs={"info": "struct", "summaries": "structs", "choice": "number"},
            adapter={
                "shape": "list",
                "columns": {
                    "prompt": "info.post|info.article",
                    "responses": "summaries[].text",
                    "sources": "summaries[].policy",
                    "split": "split",
                },
                "label": {"column": "choice", "index_base": 0},
                "carry": ["info.id", "info.title", "info.subreddit", "worker", "batch", "extra.confidence"],
            },
            optional=frozenset({"columns.split"}),
        ),
    )
