"""Settings of the judges, which score responses.

The same judges label self-training lists and compare policies on held-out prompts (``tasks/stages/judge.py``).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dora_core.config.method import ModelConfig, OptimizationConfig, TestbedConfig
from dora_core.strict_model import StrictModel


class RewardTrainingConfig(StrictModel):
    """A reward model trained on the data's own preferences (Bradley-Terry: Ouyang et al. 2022, eq. 1)."""

    data: Literal["auto", "golden", "all"] = Field(
        "auto",
        description="golden: pairs whose responses are both of golden sources; all: every pair of the train split, with the bias of its "
        "labellers; auto: golden if there are at least 200 such pairs, else all.",
    )
    optimization: OptimizationConfig = Field(
        default_factory=lambda: OptimizationConfig(epochs=4.0, batch_size=8),
        description="Optimisation. The defaults suit `tiny` and some hundred pairs; use about 1e-5 and one epoch for a pretrained model.",
    )


class JudgeConfig(StrictModel):
    """Base of the settings of every judge; ``kind`` is its name and that of its file in ``tasks/judges/``.

    Attributes:
        asks_server: its model is behind ``execution.judge.endpoint``.
    """

    asks_server: ClassVar[bool] = False


class GoldJudge(JudgeConfig):
    """Gold reward of the known mixture, defined for its prompts only."""

    kind: Literal["gold"] = Field("gold", description="gold: the testbed's reward.")
    testbed: TestbedConfig = Field(default_factory=TestbedConfig, description="The mixture whose prompts are judged.")


class RewardModelJudge(JudgeConfig):
    """Hugging Face sequence-classification model with one output, given or trained by the pipeline."""

    kind: Literal["reward_model"] = Field("reward_model", description="reward_model: a scalar for each (prompt, response).")
    model: ModelConfig = Field(
        default_factory=ModelConfig, description="A trained reward model; `tiny`: train one on the data, from the supervised start."
    )
    training: RewardTrainingConfig = Field(
        default_factory=RewardTrainingConfig, description="Only if the model is trained by the pipeline."
    )


class ImplicitJudge(JudgeConfig):
    """Implicit reward of the policy, β·(log π − log π_ref) (Rafailov et al. 2023, eq. 5), as in self-labelling methods."""

    kind: Literal["implicit"] = Field("implicit", description="implicit: the policy judges itself against its own start.")
    beta: float = Field(0.1, gt=0, le=100, description="Scale of the reward; the order of responses does not depend on it.")
    per_token: bool = Field(False, description="Divide by the number of response tokens, so that length is not rewarded.")


class LLMJudge(JudgeConfig):
    """Language model behind an endpoint that compares the responses of a prompt in pairs, each pair in both orders."""

    asks_server: ClassVar[bool] = True

    kind: Literal["llm"] = Field("llm", description="llm: requests to `execution.judge.endpoint`.")
    model: str = Field(min_length=1, description="Name of the model on the server.")
    opponents: int = Field(3, ge=1, le=64, description="Number of other responses to its prompt that each response is compared with.")
    against: Literal["each_other", "given"] = Field(
        "each_other",
        description="each_other: responses are compared among themselves, for lists; given: with the record's own responses, which "
        "makes scores of different policies comparable.",
    )
    criteria: str = Field(
        "Which response is more helpful, correct and honest?", min_length=1, max_length=4000, description="Question to the judge."
    )
    max_new_tokens: int = Field(
        16, ge=1, le=4096, description="Maximum length of the answer; more for models that reason before the verdict."
    )
    seed: int = Field(0, ge=0, description="Sent with each request.")


Judge = Annotated[GoldJudge | RewardModelJudge | ImplicitJudge | LLMJudge, Field(discriminator="kind")]
