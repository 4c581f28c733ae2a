"""What the stand-in of a training says that base and adapter find, and answer, of text that it has not seen.

Plain JSON, as `sandbox.standin` writes it: the handler and the worker check it with the real models.
"""

from __future__ import annotations

from typing import Any

ASKED_FOR = b"answers side by side"
"""A dataset with these words makes the stand-in leave `evaluation.json`, too: one file more for each training costs the
chaos suite minutes."""


def _measure(loss: float, share: float, tokens: int) -> dict[str, Any]:
    return {"loss": loss, "token_accuracy": share, "tokens": tokens}


FIGURES: dict[str, Any] = {
    "held_out": {
        "base": _measure(2.31, 0.48, 4_000),
        "tuned": _measure(1.62, 0.61, 4_000),
        "conversations": 34,
        "gain": 0.69,
        "gain_low": 0.55,
        "gain_high": 0.83,
    },
    "general": {
        "base": _measure(3.0, 0.4, 2_000),
        "tuned": _measure(3.03, 0.4, 2_000),
        "conversations": 24,
        "gain": -0.03,
        "gain_low": -0.05,
        "gain_high": -0.01,
    },
    "general_change_percent": 1.0,
    "guard_passed": True,
}
"""The JSON of `lora_contract.evaluation.Evaluation`: of a training that has learned and unlearned nothing."""


def evaluation_file() -> dict[str, Any]:
    """The JSON of `EvaluationFile`, with a sample whose text is a script: no page may run it."""
    script = "<script>document.title = 'taken over'</script>"
    sample = {
        "prompt": [{"role": "user", "content": f"What is a zebra? {script}"}],
        "reference": "A horse with stripes.",
        "base": f"A kind of tyre. {script}",
        "tuned": f"A horse with stripes. {script}",
        "held_out": True,
    }
    return {"version": 1, "evaluation": FIGURES, "samples": [sample]}
