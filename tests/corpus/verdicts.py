"""Files with weights and pairs, each read for the methods that they fit, and for others."""

from __future__ import annotations

from typing import Any

from tests.corpus.builders import chat, conversation, pair, turn
from tests.corpus.reading import Reading, learns, refuses, unused
from tests.corpus.tools import GET, LISTED, TOOL, call, calling

PAIR = "user: x + answer: y - answer: z"
GOOD = "user: x | *answer: y"
HOLDS_PAIR = "Holds 1 pair of a better and a worse answer: method dpo learns from both."
BETTER_ONLY = "Pairs of which only the better answer is learned: method dpo learns from both (1 ×)."
SAME = "Rows left out: both answers are the same, or nobody changed the answer (1 ×)."
ONCE = "Write the prompt once: in front of both sides, or under a key of its own."
ASK, YES, NO = turn("user", "x"), turn("assistant", "y"), turn("assistant", "z")


def openai(**more: Any) -> dict[str, Any]:
    return {"input": {"messages": [ASK]}, "preferred_output": [YES], "non_preferred_output": [NO], **more}


def trl(chosen: Any = "y", rejected: Any = "z", **more: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, **more}


def edited(**more: Any) -> dict[str, Any]:
    return {"question": "x", **more}


WEIGHTS: list[Reading] = [
    learns(
        "both spellings of a turn",
        {
            "conversations": [
                {"from": "human", "value": "x", "content": "w"},
                {"from": "gpt", "value": "y", "role": "user"},
            ]
        },
        GOOD,
        notes=(unused("conversations[].content", "conversations[].role"),),
    ),
    learns(
        "tools in the system message of a prompt",
        {"prompt": [{**turn("system", "s"), "tools": [TOOL]}, ASK], "completion": [YES]},
        "system: s | user: x | *answer: y",
        notes=(unused("prompt[].tools"),),
    ),
    learns(
        "weights between 0 and 1",
        {"messages": [ASK, {**YES, "weight": 0.5}, ASK, {**NO, "weight": "0.25"}, ASK, YES]},
        "user: x | *0.5 answer: y | user: x | *0.25 answer: z | user: x | *answer: y",
    ),
    learns("a row's weight", {**chat("x", "y"), "weight": 0.5}, "user: x | *0.5 answer: y"),
    learns(
        "a row's weight and one of its answers",
        {"messages": [ASK, {**YES, "weight": 0.5}], "weight": 0.5},
        "user: x | *0.25 answer: y",
    ),
    learns(
        "a weight of a pair",
        pair(2, target_response="y", weight=0.5, system_prompt=""),
        "user: turn 1 | *0.5 answer: y",
    ),
    learns("a weight of 1 as a text", {"messages": [ASK, {**YES, "weight": "1.0"}]}, GOOD),
    learns(
        "weights of the pairs of a conversation",
        conversation("a", pair(2, weight=0.5, system_prompt="")),
        "user: turn 1 | *0.5 answer: turn 2",
    ),
    learns("a developer's turn", {"messages": [turn("developer", "s"), ASK, YES]}, "system: s | user: x | *answer: y"),
    learns(
        "names of speakers",
        {"messages": [{**ASK, "name": "Ada"}, {**YES, "name": "Bob"}]},
        GOOD,
        notes=(unused("messages[].name (2 ×)"),),
    ),
    refuses(
        "a weight around a list of examples",
        {"data": [chat()], "weight": 0.5},
        "weight",
        "is a weight outside of the examples",
        "Write it into each example.",
    ),
    *(
        refuses(
            f"{what} among parts",
            {"messages": [turn("user", [part]), YES]},
            "messages[0].content",
            f"has {what} among its parts",
            "Only text can be trained: remove the others.",
        )
        for what, part in (
            ("a picture", {"type": "image_url", "image_url": {"url": "u"}}),
            ("sound", {"type": "input_audio", "input_audio": {"data": "d"}}),
            ("a video", {"type": "video", "video": "v"}),
            ("a file", {"type": "file", "file": {"file_id": "f"}}),
        )
    ),
    refuses(
        "a file of Gemini",
        {"contents": [{"role": "user", "parts": [{"inlineData": {"data": "d"}}]}]},
        "contents[0].parts",
        "has a file among its parts",
        "Only text can be trained: remove the others.",
    ),
]

PAIRS: list[Reading] = [
    refuses(
        "a blank original",
        {"question": "x", "answer": "y", "original_answer": " "},
        "original_answer",
        "is an empty answer",
        "Write the answer or remove the example.",
        method="dpo",
    ),
    learns("a pair of OpenAI", openai(), PAIR, method="dpo"),
    learns(
        "a pair of OpenAI with tools",
        openai(
            input={"messages": [ASK], "tools": [TOOL], "parallel_tool_calls": True}, preferred_output=[calling(call())]
        ),
        LISTED + 'user: x + answer:  → get{"a": "b"}#c1 - answer: z',
        notes=(unused("input.parallel_tool_calls"),),
        method="dpo",
    ),
    learns("a pair of OpenAI for sft", openai(), GOOD, notes=(BETTER_ONLY,)),
    learns("texts with a prompt", trl(prompt="x"), PAIR, method="dpo"),
    learns("texts with a prompt, without a method", trl(prompt="x"), PAIR, notes=(HOLDS_PAIR,), method=None),
    learns("texts with a prompt of turns", trl(prompt=[ASK]), PAIR, method="dpo"),
    learns("turns with a prompt of turns", trl([YES], [NO], prompt=[ASK]), PAIR, method="dpo"),
    learns("turns with a prompt that is a text", trl([YES], [NO], prompt="x"), PAIR, method="dpo"),
    learns("one turn a side", trl(YES, NO, prompt="x"), PAIR, method="dpo"),
    learns("whole conversations", trl([ASK, YES], [ASK, NO]), PAIR, method="dpo"),
    learns(
        "whole conversations with their prompt again",
        trl([ASK, YES], [ASK, NO], prompt="x", prompt_id="p", messages=[ASK, YES], score_chosen=9.0),
        PAIR,
        notes=(unused("prompt_id", "score_chosen"),),
        method="dpo",
    ),
    learns(
        "whole conversations of several turns",
        trl([turn("system", "s"), ASK, YES, ASK, YES], [turn("system", "s"), ASK, YES, ASK, NO]),
        "system: s | user: x | answer: y | user: x + answer: y - answer: z",
        method="dpo",
    ),
    learns("transcripts", trl("\n\nHuman: x\n\nAssistant: y", "\n\nHuman: x\n\nAssistant: z"), PAIR, method="dpo"),
    learns(
        "texts with a common beginning",
        trl("The sky is blue.", "The sky is green."),
        "user: The sky is + answer: blue. - answer: green.",
        method="dpo",
    ),
    learns(
        "sides of LLaMA-Factory",
        {
            "conversations": [{"from": "human", "value": "x"}],
            "chosen": {"from": "gpt", "value": "y"},
            "rejected": {"from": "gpt", "value": "z"},
        },
        PAIR,
        method="dpo",
    ),
    learns("an instruction with its sides", trl(instruction="x", input="i"), PAIR.replace("x", "x\n\ni"), method="dpo"),
    learns("a question with its sides", trl(question="x", system="s"), f"system: s | {PAIR}", method="dpo"),
    learns(
        "thoughts in both sides",
        trl("<think>t</think>y", "<think>u</think>z", prompt="x"),
        "user: x + answer: <t>y - answer: <u>z",
        method="dpo",
    ),
    learns("a weight that dpo ignores", trl(prompt="x", weight=0.5), PAIR, notes=(unused("weight"),), method="dpo"),
    learns("a pair of equal answers", [trl("y", "y", prompt="x"), trl(prompt="x")], PAIR, notes=(SAME,), method="dpo"),
    refuses(
        "a pair for kto",
        trl(prompt="x"),
        None,
        "is a pair of answers, not an answer with a thumb",
        "Train it with method dpo.",
        method="kto",
    ),
    refuses(
        "an answer for dpo",
        chat(),
        None,
        "has no second answer that is worse",
        "Write chosen and rejected, or an edited answer, or train it with method sft.",
        method="dpo",
    ),
    refuses(
        "a thumb for dpo",
        {"prompt": "x", "completion": "y", "label": True},
        None,
        "has no second answer that is worse",
        "Write chosen and rejected, or an edited answer, or train it with method kto.",
        method="dpo",
    ),
    refuses(
        "sides that differ too early",
        trl([ASK, YES, ASK, YES], [ASK, NO, ASK, NO]),
        None,
        "has sides that differ before their last answers",
        "Write the same turns before both answers, and one answer on each side.",
        method="dpo",
    ),
    refuses(
        "a prompt in one side only",
        trl([ASK, YES], [NO]),
        None,
        "has the prompt in only one of chosen and rejected",
        ONCE,
        method="dpo",
    ),
    refuses(
        "a prompt that is another one",
        trl([ASK, YES], [ASK, NO], prompt="w"),
        "prompt",
        "differs from the beginning of both sides",
        ONCE,
        method="dpo",
    ),
    refuses(
        "two prompts",
        trl([YES], [NO], prompt="x", messages=[ASK]),
        None,
        "has two prompts, messages and prompt",
        "Keep one of them.",
        method="dpo",
    ),
    refuses(
        "no prompt at all",
        trl("yes", "no"),
        None,
        "has no prompt: chosen and rejected begin differently",
        "Write the question under prompt, beside both answers.",
        method="dpo",
    ),
    refuses(
        "a side that is null",
        trl(rejected=None, prompt="x"),
        "rejected",
        "is null, not an answer",
        "Write the answer as a text or as turns, or remove the example.",
        method="dpo",
    ),
    refuses(
        "a side without an answer",
        trl([ASK], [ASK, NO]),
        "chosen",
        "holds no answer",
        "Each side needs an answer of the assistant.",
        method="dpo",
    ),
    refuses(
        "an empty side",
        trl(rejected=" ", prompt="x"),
        "rejected",
        "is an empty answer",
        "Write the answer or remove the example.",
        method="dpo",
    ),
    refuses(
        "a worse call of an unlisted tool",
        openai(input={"messages": [ASK], "tools": [GET]}, non_preferred_output=[calling(call(name="put"))]),
        "non_preferred_output[0]",
        "calls a tool that the row does not list",
        "Add the tool to the list, or remove the example.",
        method="dpo",
    ),
]
