"""Presets of the shape tree."""

from __future__ import annotations

from dora_core.data.presets.base import Preset, Variant, register_preset


@register_preset
class Oasst(Preset):
    """OpenAssistant/oasst1 and oasst2: one message per row, or whole trees (`*.trees.jsonl`). Rank 0 is the best answer."""

    name = "oasst"
    variants = (
        Variant(
            needs={"message_id": "text", "parent_id": "any", "text": "text", "role": "text", "rank": "any"},
            adapter={
                "shape": "tree",
                "columns": {"task": False},
                "tree": {"id": "message_id", "parent": "parent_id", "role": "role", "text": "text", "rank": "rank", "rank_base": 0},
                "carry": ["lang", "message_tree_id"],
                "ignore": [
                    "user_id",
                    "created_date",
                    "review_count",
                    "review_result",
                    "deleted",
                    "synthetic",
                    "model_name",
                    "detoxify",
                    "tree_state",
                    "emojis",
                    "labels",
                ],
            },
        ),
        Variant(
            needs={"message_tree_id": "text", "prompt": "struct", "prompt.replies": "list"},
            adapter={
                "shape": "tree",
                "columns": {"prompt": False},
                "tree": {"root": "prompt", "replies": "replies", "rank_base": 0},
                "carry": ["message_tree_id"],
                "ignore": ["tree_state"],
            },
        ),
    )
