"""A version of a model with what is known of it: figures, the proof that it is applied, the name to call it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from lora_worker.database.measured import Measured, read_measured
from lora_worker.database.version_rows import VersionRow


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of a version over held-out conversations. Losses and gains are in nats per token."""

    score: int | None = None
    """1 to 5, as the application shows it."""
    base_loss: float | None = None
    tuned_loss: float | None = None
    gain: float | None = None
    """By how much the tuned model is better than its base: a mean over conversations."""
    gain_low: float | None = None
    gain_high: float | None = None
    """The gain's 95 % interval; None where it was measured over one conversation, or not at all."""
    base_token_accuracy: float | None = None
    tuned_token_accuracy: float | None = None
    general_change_percent: float | None = None
    """By how much the loss on general text rose."""

    @property
    def relative_gain(self) -> float | None:
        """The gain as a share of the base's loss; None where one of both is not known."""
        if self.gain is None or not self.base_loss:
            return None
        return self.gain / self.base_loss


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model. `measured` is what its trainer's manifest told when its files were verified."""

    row: VersionRow
    figures: Figures
    measured: Measured

    @property
    def id(self) -> UUID:
        """The id of the version: that of the run that made it."""
        return self.row["id"]

    @property
    def dataset_sha256(self) -> str | None:
        """The content that it was trained on, whatever its dataset is called."""
        return self.measured.dataset_sha256

    @property
    def is_applied(self) -> bool:
        """Whether a fresh process proved that the published adapter is applied."""
        return self.measured.application is not None

    @property
    def guard_passed(self) -> bool | None:
        """Whether the loss on general text is within what is allowed; None where that is not known."""
        return self.measured.evaluation.guard_passed if self.measured.evaluation else None

    @property
    def serving_name(self) -> str | None:
        """The name under which it lies on the endpoint's volume; None where it was not put there, or was removed."""
        return self.measured.serving_name

    @property
    def label(self) -> str:
        """How sentences name it: its version number where it has one, and the beginning of its job's id."""
        job = str(self.row["job_id"])[:8]
        return f"{self.row['version']} ({job})" if self.row["version"] else job


def version_of(row: VersionRow) -> Version:
    """Read a version's row."""
    return Version(row, _figures_of(row), read_measured(row["measured"]))


def _figures_of(row: VersionRow) -> Figures:
    found = row["figures"]
    score = found.get("overall_score")
    return Figures(
        score=None if score is None else round(score),
        base_loss=found.get("base_validation_loss"),
        tuned_loss=found.get("tuned_validation_loss"),
        gain=found.get("held_out_gain"),
        gain_low=found.get("held_out_gain_low"),
        gain_high=found.get("held_out_gain_high"),
        base_token_accuracy=found.get("base_token_accuracy"),
        tuned_token_accuracy=found.get("tuned_token_accuracy"),
        general_change_percent=found.get("general_loss_change_percent"),
    )
