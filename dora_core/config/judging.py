"""Settings of judging: who scores a response.

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
        description="golden: pairs whose responses are both of golden sources; all: every pair of the train split, and the bias of whoever "
        "labelled it; auto: golden where there are 200 such pairs, else all.",
    )
    optimization: OptimizationConfig = Field(
        default_factory=lambda: OptimizationConfig(epochs=4.0, batch_size=8),
        description="Optimisation. The defaults suit `tiny` and some hundred pairs; a pretrained model wants about 1e-5 and one epoch.",
    )


class JudgeConfig(StrictModel):
    """Base of the settings of every judge; ``kind`` is its name and that of its file in ``tasks/judges/``.

    Attributes:
        asks_server: its model is behind ``execution.judge.endpoint``.
    """

    asks_server: ClassVar[bool] = False


class GoldJudge(JudgeConfig):
    """The known mixture's own gold reward: only for its prompts."""

    kind: Literal["gold"] = Field("gold", description="gold: the testbed's reward.")
    testbed: TestbedConfig = Field(default_factory=TestbedConfig, description="The mixture whose prompts are judged.")


class RewardModelJudge(JudgeConfig):
    """A Hugging Face sequence-classification model with one output, given or trained here."""

    kind: Literal["reward_model"] = Field("reward_model", description="reward_model: a scalar for each (prompt, response).")
    model: ModelConfig = Field(
        default_factory=ModelConfig, description="A trained reward model; `tiny`: train one on the data, from the supervised start."
    )
    training: RewardTrainingConfig = Field(default_factory=RewardTrainingConfig, description="Only where the model is trained here.")


class ImplicitJudge(JudgeConfig):
    """The policy's own implicit reward β·(log π − log π_ref) (Rafailov et al. 2023, eq. 5), as in self-labelling methods."""

    kind: Literal["implicit"] = Field("implicit", description="implicit: the policy judges itself against its own start.")
    beta: float = Field(0.1, gt=0, le=100, description="Scale of the reward; the order of responses does not depend on it.")
    per_token: bool = Field(False, description="Divide by the number of response tokens, so that length is not rewarded.")


class LLMJudge(JudgeConfig):
    """A language model behind an endpoint compares responses of a prompt two by two, each pair in both orders."""

    asks_server: ClassVar[bool] = True

    kind: Literal["llm"] = Field("llm", description="llm: asks `execution.judge.endpoint`.")
    model: str = Field(min_length=1, description="Name of the model as the server knows it.")
    opponents: int = Field(3, ge=1, le=64, description="Other responses of its prompt that each response is compared with.")
    against: Literal["each_other", "given"] = Field(
        "each_other",
        description="each_other: responses meet those they are judged with, for lists; given: they meet the record's own responses, which "
        "makes scores of different policies comparable.",
    )
    criteria: str = Field(
        "Which response is more helpful, correct and honest?", min_length=1, max_length=4000, description="The question that is asked."
    )
    max_new_tokens: int = Field(16, ge=1, le=4096, description="Room for the verdict; more for models that think aloud.")
    seed: int = Field(0, ge=0, description="Sent with each request.")


Judge = Annotated[GoldJudge | RewardModelJudge | ImplicitJudge | LLMJudge, Field(discriminator="kind")]
