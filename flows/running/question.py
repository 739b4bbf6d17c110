"""The question that a run with ``promotion.mode: ask`` puts to a person: may this version replace that champion?"""

from __future__ import annotations

from dataclasses import dataclass

from prefect.input.run_input import keyset_from_base_key


@dataclass(frozen=True)
class Question:
    """May this version replace that champion?

    Attributes:
        digest: of the ``promote`` stage, and with it of the evaluation and the policy.
        champion: the version that is champion now, or None.
        deadline: epoch seconds.
        text: Markdown with the evaluation and the links.
    """

    model: str
    version: str
    digest: str
    champion: str | None
    deadline: float
    text: str

    @property
    def key(self) -> str:
        """Identity of the question within the flow run, by stage digest and champion."""
        return f"{self.digest[:12]}-{self.champion or 'none'}"

    @property
    def inputs(self) -> dict[str, str]:
        """Names of the flow run's inputs in which Prefect keeps form and answer."""
        return {str(kind): name for kind, name in keyset_from_base_key(f"suspended-{self.key}").items()}

    def commands(self) -> str:
        """Return the commands that decide it from a command line."""
        return f"dora promote {self.model} {self.version} --why …, or: dora reject {self.model} {self.version} --why …"


class Suspends(Exception):
    """The run continues after a person's answer; until then it holds no process, no GPU and no slot."""

    def __init__(self, question: Question):
        super().__init__(f"waits for a decision about version {question.version} of {question.model}")
        self.question = question
