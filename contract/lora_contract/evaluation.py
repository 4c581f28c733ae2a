"""How good an adapter is: what the base and the tuned model find of text that the training has not seen.

The trainer measures both, in one process and over the same rows. `Evaluation` has figures only and travels with the
manifest. `EvaluationFile` is the artifact's `evaluation.json`: it has the sample answers, too, which are text of the
dataset and stay among the user's own files. This module imports nothing heavier than pydantic.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lora_contract.application import Application
from lora_contract.bounds import NoneIfInvalid, text

EVALUATION_NAME = "evaluation.json"
MAX_SAMPLES = 10
"""The most prompts that base and tuned model answer side by side."""
MAX_SAMPLE_CHARACTERS = 8_000
"""A message or an answer of a sample is cut after so many characters; `evaluation.json` stays below 10 MB so."""
MAX_SAMPLE_MESSAGES = 100
_MOST_TOKENS = 2**53
_HIGHEST_LOSS = 1e6
"""In nats per token. A vocabulary of 2⁶⁴ tokens has 44 where all are alike; a broken model may find more."""
_HIGHEST_PERCENT = 1e9
_ROUNDING = 1e-3
"""In nats per token: figures that differ by less agree."""


class _Figures(BaseModel):
    # Unknown keys are ignored, so that worker and trainer can be updated one after the other. NaN and infinity can't be
    # stored in JSON or in a column, so they are refused.
    model_config = ConfigDict(extra="ignore", protected_namespaces=(), allow_inf_nan=False)


Loss = Annotated[float, Field(ge=0, le=_HIGHEST_LOSS)]
Difference = Annotated[float, Field(ge=-_HIGHEST_LOSS, le=_HIGHEST_LOSS)]


class Measure(_Figures):
    """How well one model predicts a set of text. Every token counts the same."""

    loss: Loss
    """Mean negative log-probability of the tokens, in nats per token."""
    token_accuracy: float = Field(ge=0, le=1)
    """The share of the tokens that the model finds the most probable of all."""
    tokens: int = Field(ge=1, le=_MOST_TOKENS)
    """Over how many tokens it was measured."""


class Comparison(_Figures):
    """Base and tuned model over the same set of text.

    The gain is a mean over conversations (every conversation counts the same), because conversations are what is
    independent of each other: the tokens of one are not. So it may differ from `base.loss - tuned.loss`, in which long
    conversations count for more.
    """

    base: Measure
    """The model before the training, with the adapter off."""
    tuned: Measure
    conversations: int = Field(ge=1, le=_MOST_TOKENS)
    gain: Difference
    """Mean of the base's loss less the tuned model's, in nats per token; above 0, the tuned model is better."""
    gain_low: Difference | None = None
    """Lower end of the gain's 95 % confidence interval; None for fewer than two conversations."""
    gain_high: Difference | None = None

    @model_validator(mode="after")
    def _check_agreement(self) -> Comparison:
        """Refuse figures that can't all be true: nobody's container should get a score for them."""
        low, high = self.gain_low, self.gain_high
        if (low is None) != (high is None):
            raise ValueError("an interval has two ends")
        if low is not None and high is not None and not low - _ROUNDING <= self.gain <= high + _ROUNDING:
            raise ValueError("the gain is not within its interval")
        if self.base.tokens != self.tuned.tokens or self.conversations > self.base.tokens:
            raise ValueError("both models are measured over the same tokens, and each conversation has one")
        # A conversation has at least one of the tokens, so its loss weighs so much in the loss over all tokens.
        most = self.base.tokens / self.conversations
        if not -most * self.tuned.loss - _ROUNDING <= self.gain <= most * self.base.loss + _ROUNDING:
            raise ValueError("no conversations with these losses have such a gain")
        return self


class Evaluation(_Figures):
    """All figures of one training. A part that was not measured is None."""

    held_out: Comparison | None = None
    """Of the dataset's held-out conversations; None where the job held none out."""
    general: Comparison | None = None
    """Of a fixed set of general text and chat, which no dataset has anything to do with."""
    general_change_percent: float | None = Field(default=None, ge=-_HIGHEST_PERCENT, le=_HIGHEST_PERCENT)
    """By how much the loss on the general set rose, in percent of the base's; below 0, it fell."""
    guard_passed: bool | None = None
    """Whether that rise is within what is allowed; None where it was not measured."""


class SampleMessage(_Figures):
    """One message of a sample's prompt."""

    role: Annotated[str, text(50)]
    content: Annotated[str, text(MAX_SAMPLE_CHARACTERS)]


Answer = Annotated[str, text(MAX_SAMPLE_CHARACTERS)]


class Sample(_Figures):
    """One prompt, answered by base and tuned model greedily. Text of the dataset: never log it."""

    prompt: list[SampleMessage] = Field(max_length=MAX_SAMPLE_MESSAGES, repr=False)
    reference: Answer | None = Field(default=None, repr=False)
    """The dataset's answer, where there is one."""
    base: Answer = Field(repr=False)
    tuned: Answer = Field(repr=False)
    held_out: bool
    """Whether the prompt is of the dataset's held-out conversations; if not, it is of the general set."""


class EvaluationFile(_Figures):
    """The content of `evaluation.json`."""

    version: Literal[1] = 1
    evaluation: Evaluation = Field(default_factory=Evaluation)
    application: Annotated[Application | None, NoneIfInvalid] = None
    """How a fresh process found the published files applied: the manifest's `application`."""
    samples: list[Sample] = Field(default_factory=list, max_length=MAX_SAMPLES)
