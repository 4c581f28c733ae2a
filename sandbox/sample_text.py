"""Conversations made on the spot: plain ones to train the tiny base on, warm ones for its adapter to learn.

Both talk about the same everyday topics. They differ in manner, and the manner is what an adapter
trained on `write_sample_dataset` picks up: it names the feeling first, gives one small step, and ends
with a question.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN_SYSTEM = "You are a helpful assistant."
WARM_SYSTEM = "You are a kind money coach. Name the feeling first, then one small step, then ask one question."


@dataclass(frozen=True)
class Topic:
    """Something people ask about: questions, plain facts, and one small step."""

    name: str
    questions: tuple[str, ...]
    facts: tuple[str, ...]
    step: str


TOPICS = (
    Topic(
        "budget",
        (
            "How do I make a budget that I can keep?",
            "I spend more than I earn each month. What should I do?",
            "Where does all my money go?",
        ),
        (
            "A budget is a plan for the money that comes in and the money that goes out.",
            "Write down every payment for one month, then group the payments by kind.",
            "Rent, food and transport come first; wishes come after them.",
            "Many people find three or four small payments that they do not need.",
        ),
        "look at the last ten payments on your account and mark the two that surprised you",
    ),
    Topic(
        "debt",
        (
            "I have three credit cards and I cannot pay them all. Which one comes first?",
            "Should I pay off my loan early?",
            "My debt keeps growing and I am afraid to open the letters.",
        ),
        (
            "The card with the highest interest rate costs the most, so extra money should go there.",
            "Always pay the minimum on every account, because late fees are expensive.",
            "A lender would often rather lower the rate than lose the payment.",
            "Some families pay the smallest debt first, since a quick success keeps them going.",
        ),
        "open one letter today and write its amount on a sheet of paper",
    ),
    Topic(
        "savings",
        (
            "How much should I save for an emergency?",
            "I never manage to save anything. How can I start?",
            "Is it better to save or to invest?",
        ),
        (
            "Three months of expenses are a good first goal for an emergency fund.",
            "Money that moves on payday is saved before it can be spent.",
            "A savings account is safe, while investments can lose value in a bad year.",
            "Even a small amount each week grows into a habit.",
        ),
        "move five dollars to another account this evening, only to see how it feels",
    ),
    Topic(
        "mortgage",
        (
            "Can I afford to buy a house?",
            "Should we use our bonus to pay down the mortgage?",
            "What is the difference between a fixed and a variable rate?",
        ),
        (
            "With a fixed rate the payment stays the same; with a variable rate it can rise or fall.",
            "Banks look at income, other debt and the size of the down payment.",
            "Paying extra shortens the loan, but keep enough cash for repairs.",
            "Closing costs, insurance and taxes belong in the calculation, too.",
        ),
        "write down the monthly payment that would still let you sleep well",
    ),
    Topic(
        "retirement",
        (
            "Am I too late to save for retirement?",
            "How does my pension at work function?",
            "When can I stop working?",
        ),
        (
            "Time helps, because the returns of one year earn returns in the next.",
            "If the employer adds money to yours, take all of it.",
            "A simple fund that follows the whole market has low fees.",
            "The date depends on what you spend, more than on what you earn.",
        ),
        "find the last statement of your pension and read only its first page",
    ),
    Topic(
        "family",
        (
            "My partner and I argue about money every weekend. How can we stop?",
            "How do I teach my children about money?",
            "My mother asks me for help, but I have little myself.",
        ),
        (
            "Agree on an amount that each of you may spend without asking.",
            "Children learn from small choices that are really their own.",
            "Talk about money at a quiet hour, not in the middle of a problem.",
            "You may say no to a gift and yes to helping in another way.",
        ),
        "choose a calm half hour this week and tell each other one good memory about money",
    ),
    Topic(
        "work",
        (
            "I lost my job. What should I do first?",
            "How do I ask for a higher salary?",
            "My income changes every month. How can I plan?",
        ),
        (
            "Apply for support right away, since it often starts on the day of the application.",
            "Collect three results that your team is proud of before you talk about pay.",
            "Plan with the lowest month of the last year and save the rest.",
            "Tell the bank early; it can change a date more easily than a missed payment.",
        ),
        "list the bills of the next fourteen days and nothing that comes later",
    ),
    Topic(
        "taxes",
        (
            "Which papers do I need for my tax return?",
            "I forgot to pay my taxes last year. What happens now?",
            "Do I have to pay tax on the shares from my company?",
        ),
        (
            "Keep the yearly statement of your employer, your bank and your insurance.",
            "A late return is better than none, and a payment plan can be agreed.",
            "Shares are taxed like wages when you receive them.",
            "An adviser pays for himself when something unusual happened in the year.",
        ),
        "put every tax letter into one box, unopened ones as well",
    ),
    Topic(
        "health",
        (
            "A hospital bill arrived that I cannot pay. Help!",
            "Do I need more insurance?",
            "How can I plan for the costs of my treatment?",
        ),
        (
            "Ask for an itemized bill, because mistakes in it are common.",
            "Hospitals have programs for patients with a low income.",
            "Insurance is for losses that you could not carry alone.",
            "Call before the due date, while everything is still open.",
        ),
        "call the number on the bill and ask one question only: which programs are there",
    ),
)

_FEELINGS = ("worried", "ashamed", "overwhelmed", "tired of it", "confused", "alone with this")
_THANKS = (
    "Thank you for telling me this.",
    "It takes courage to say that out loud.",
    "I am glad that you asked.",
)
_NORMAL = (
    "Many people sit exactly where you sit, and you did nothing wrong.",
    "Feeling that way makes sense, and it says how much you care.",
    "That is a heavy thing to carry, and you do not have to carry it alone.",
)
_CLOSING = (
    "Would that feel possible for you this week?",
    "How does that sound to you?",
    "What would make this step a little easier?",
)
_FOLLOW_UP = (
    "I tried that. What comes next?",
    "That sounds good, but I am not sure that I can do it.",
    "Can you explain that again in simple words?",
)


def plain_conversation(chance: random.Random) -> list[dict[str, str]]:
    """Questions with matter-of-fact answers."""
    topic = chance.choice(TOPICS)
    messages = [{"role": "system", "content": PLAIN_SYSTEM}] if chance.random() < 0.5 else []
    for question in chance.sample(topic.questions, k=chance.randint(1, 3)):
        answer = " ".join(chance.sample(topic.facts, k=chance.randint(2, 4)))
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _warm_answer(topic: Topic, chance: random.Random) -> str:
    feeling = chance.choice(_FEELINGS)
    return (
        f"{chance.choice(_THANKS)} It sounds as if you are {feeling}. {chance.choice(_NORMAL)} "
        f"{chance.choice(topic.facts)} One small step: {topic.step}. {chance.choice(_CLOSING)}"
    )


def warm_pairs(conversation: int, chance: random.Random) -> list[dict[str, Any]]:
    """One conversation as the application writes it: a pair for each answer, each with its history.

    The history of a pair ends with the user's turn that `current_user_input` repeats, as in the
    application's own files.
    """
    topic = chance.choice(TOPICS)
    user_turns = [chance.choice(topic.questions), *chance.sample(_FOLLOW_UP, k=chance.randint(0, 2))]
    history: list[dict[str, Any]] = []
    pairs = []
    for number, user in enumerate(user_turns):
        history.append({"turn": 2 * number + 1, "role": "user", "content": user})
        answer = _warm_answer(topic, chance)
        pairs.append(
            {
                "id": f"sample_{conversation}_turn{2 * number + 2}",
                "conversation_id": f"sample-{conversation}",
                "turn_number": 2 * number + 2,
                "system_prompt": WARM_SYSTEM,
                "conversation_history": list(history),
                "current_user_input": user,
                "target_response": answer,
            }
        )
        history.append({"turn": 2 * number + 2, "role": "assistant", "content": answer})
    return pairs


def write_sample_dataset(path: Path, *, conversations: int = 48, seed: int = 7) -> int:
    """Write warm conversations in the application's own JSONL format; the number of pairs."""
    chance = random.Random(seed)  # noqa: S311 sample text, not a secret
    pairs = [pair for number in range(conversations) for pair in warm_pairs(number, chance)]
    header = {"_meta": {"file_name": "sample", "total_pairs": len(pairs), "version": "4.0.0"}}
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in [header, *pairs]))
    return len(pairs)
