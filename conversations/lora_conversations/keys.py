"""Which keys of rows, turns and parts the reader uses, by format; all others are named in a note."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_conversations.examples import ASSISTANT, SYSTEM, TOOL
from lora_conversations.formats import ADDITIONS, ANSWERS, QUESTIONS, SYSTEM_KEYS, Format
from lora_conversations.thoughts import REASONING
from lora_conversations.tools import CALL_LISTS, TOOL_LISTS
from lora_conversations.turns import CALL_IDS, FLAGS
from lora_conversations.verdicts import EDITS, ORIGINALS, THUMBS

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

ANY_ROW = frozenset({"id", "conversation_id", "metadata", *SYSTEM_KEYS, *FLAGS, *TOOL_LISTS})
"""Keys that a row of any format may have. Of `metadata`, only `conversation_id` is used."""
# What the application writes about its own pairs. None of it is for training, so it is no reason for a note.
BRIGHTRUN = frozenset({"turn_number", "conversation_metadata", "emotional_context", "training_metadata"})
ROW_KEYS: dict[Format, frozenset[str]] = {
    "brightrun": frozenset(
        {"conversation_history", "current_user_input", "target_response", *BRIGHTRUN, *ANY_ROW, *REASONING}
    ),
    "brightrun_v3": frozenset({"training_pairs", "conversation_metadata", *ANY_ROW}),
    "openai_messages": frozenset({"messages", *ANY_ROW}),
    "turns": frozenset({"turns", *ANY_ROW}),
    "sharegpt": frozenset({"conversations", *ANY_ROW}),
    "gemini": frozenset({"contents", "systemInstruction", "system_instruction", *ANY_ROW}),
    "alpaca": frozenset({"instruction", "output", "history", *ADDITIONS, *ANY_ROW, *REASONING}),
    "prompt_completion": frozenset({"prompt", "completion", *ANY_ROW, *REASONING}),
    "question_answer": frozenset({"history", *QUESTIONS, *ANSWERS, *ADDITIONS, *ANY_ROW, *REASONING}),
    "preference": ANY_ROW,
}
"""Those of a preference are completed by its own prompt and sides (`lora_conversations.pairs`)."""
LEARNED_LISTS: dict[Format, tuple[str, ...]] = {
    "openai_messages": ("messages",),
    "turns": ("turns",),
    "sharegpt": ("conversations",),
    "gemini": ("contents",),
    "prompt_completion": ("completion",),
    "preference": ("chosen", "rejected", "preferred_output", "non_preferred_output"),
}
"""Keys of a row with turns of which the answers are learned."""
CONTEXT_LISTS: dict[Format, tuple[str, ...]] = {
    "brightrun": ("conversation_history",),
    "prompt_completion": ("prompt",),
    "preference": ("messages", "conversations", "turns", "prompt", "input"),
}
"""Keys of a row with turns of which none is learned."""
TURN_KEYS: dict[Format, frozenset[str]] = {"brightrun": frozenset({"turn", "emotional_state"})}
"""Keys that the turns of a format may have beside role, content and flags."""
ROLE_KEYS: dict[str, frozenset[str]] = {
    ASSISTANT: frozenset({*CALL_LISTS, *REASONING}),
    TOOL: frozenset({"name", *CALL_IDS}),
    SYSTEM: frozenset(TOOL_LISTS),
}
"""Keys that only turns of one role may have; of a system turn, only the first one's tools are used."""
CONTENTS = frozenset({*SYSTEM_KEYS, *QUESTIONS, *ANSWERS, *ADDITIONS, "current_user_input", "target_response"})
"""Keys of a row whose value may be a list of content parts, such as `[{"type": "text", "text": "…"}]`."""
V3_PAIR_KEYS = frozenset(
    {
        "turn_number",
        "turn_id",
        "user_input",
        "internal_deliberation",
        "synthesized_output",
        "training_metadata",
        *FLAGS,
    }
)
V3_PAIR_PREFIX = "purpose_state_"
OUTER_KEYS = frozenset({"training_file_metadata", "dataset_metadata", "consultant_profile", "conversation_metadata"})
"""Keys that the application writes beside the list of conversations in a complete file."""


VERDICT_KEYS: dict[Method, frozenset[str]] = {
    "sft": frozenset(EDITS),
    "dpo": frozenset({*EDITS, *ORIGINALS}),
    "kto": frozenset({*THUMBS, *ORIGINALS}),
}
"""Keys of thumbs and edits, of a row or an answer, that a method uses."""
AROUND_PAIRS = OUTER_KEYS | {"training_pairs", "conversation_id", "id", *FLAGS}
"""Keys of an object that holds the pairs of one conversation. Its system prompt would stand in each pair."""
