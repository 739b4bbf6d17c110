"""Goals in prompts: text that tells the policy how good a response to write, or how to weigh several rewards."""

from __future__ import annotations

import string

from pydantic import Field, model_validator

from dora_core.config.path_syntax import PathText
from dora_core.strict_model import StrictModel


def placeholders(text: str) -> list[str]:
    """Names in braces in a text.

    Raises:
        ValueError: a brace is not closed, or one of them is empty.
    """
    names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    if not all(name.isidentifier() for name in names):
        raise ValueError(f"{text!r} has braces without a name; write {{{{ and }}}} for braces themselves")
    return names


class Goal(StrictModel):
    """Reward-conditioned prompts (reward-augmented data, arXiv 2410.08067).

    A training record with rewards r_1 … r_N becomes one record for each distinct r: its prompt asks for a response of reward g = r, and its
    rewards are −(r_i − g)². So the response with the reward that is asked for is the preferred one, also where it is the lower one: the
    policy learns how good each is, and no good response is only "rejected". Prompts of evaluation, of samples and of trusted responses
    ask for ``best``, and so must those in use. The paper states the goal in the system prompt, here it precedes the first user message.
    """

    best: float = Field(description="Goal of the prompts of evaluation and of trusted responses: the top of the scale of the rewards.")
    text: str = Field(
        "Give an answer of quality {goal}.", min_length=1, max_length=1000, description="Text in front of the prompt, with {goal}."
    )
    digits: int = Field(1, ge=0, le=6, description="Decimals of goals; rewards that are equal to so many digits share a goal.")

    @model_validator(mode="after")
    def _check(self) -> Goal:
        if placeholders(self.text) != ["goal"]:
            raise ValueError("`text` needs {goal} once and no other braces")
        return self

    def said(self, reward: float) -> str:
        """The text for a goal."""
        return self.text.format(goal=f"{reward:.{self.digits}f}")


class WeightColumn(StrictModel):
    """Weights of several scores from the row: `weights: {column: preference}`."""

    column: PathText = Field(description="Where the row's weights are: a list of numbers, one per score.")


class SampledWeights(StrictModel):
    """Weights of several scores drawn for each prompt: `weights: {sampled: 1}`."""

    sampled: float = Field(gt=0, le=1000, description="Concentration of the Dirichlet distribution: 1 is uniform, larger is more even.")
    seed: int = Field(0, ge=0, description="Seed; the weights of a prompt depend on it and on the prompt alone.")
