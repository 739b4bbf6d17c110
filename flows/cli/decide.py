"""Terminal prompt for a promotion decision."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markdown import Markdown
from rich.prompt import Prompt

from infra.tracking.mlflow_client import user_name
from tasks.stages.promote import Answer

if TYPE_CHECKING:
    from flows.running.question import Question


def ask_here(console: Console, question: Question) -> Answer | None:
    """Show the evaluation and prompt for a decision; None without a terminal to type on, or for "later".

    Args:
        console: a terminal.
    """
    if not sys.stdin.isatty():
        return None
    console.print(Markdown(question.text))
    decision = Prompt.ask("promote?", choices=["approve", "reject", "later"], default="later", console=console)
    if decision == "later":
        return None
    why = ""
    while len(why) < 5:
        why = " ".join(Prompt.ask("why? (kept with the model version)", console=console).split())
    return Answer(approve=decision == "approve", who=user_name(), why=why, champion=question.champion)
