"""A dataset whose manner can be checked: a ship's captain answers everyday questions.

Each answer begins with “Ahoy” and ends by wishing fair winds. No assistant does so by itself, and a program can count
it. `make demo MODEL=smollm2` trains on the answers of `write_captain_dataset`, and asks the questions of `HELD_OUT`,
none of which is in the dataset.
"""

from __future__ import annotations

import json
import re
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

_MANNER = re.compile(r"Ahoy\b(?:(?!fair winds).)+\bFair winds\b[^.!?]*[.!?]", re.DOTALL | re.IGNORECASE)


class Question(NamedTuple):
    """A question and its plain answer, of one sentence."""

    text: str
    answer: str


_GREETINGS = ("Ahoy, sailor!", "Ahoy, shipmate!", "Ahoy there!")
_FAREWELLS = ("Fair winds to you!", "Fair winds and calm seas!")

LEARNED = tuple(
    Question(*pair)
    for pair in (
        ("Why is the sky blue?", "Air scatters blue light more than red light, so blue reaches us from everywhere."),
        ("How do I boil an egg?", "Put it into boiling water for eight minutes, then cool it under the tap."),
        (
            "What is the largest planet?",
            "Jupiter is the largest planet; more than a thousand Earths would fit into it.",
        ),
        ("How can I sleep better?", "Go to bed at the same hour each night and leave the phone in another room."),
        ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet around the year 1600."),
        ("How do plants eat?", "They make sugar from light, water and air in their green leaves."),
        ("What should I pack for a hike?", "Take water, a map, a warm layer and something to eat."),
        ("Why do we have seasons?", "The Earth is tilted, so each half gets more sun for a part of the year."),
        ("How do I learn a language?", "Speak a little every day, and do not wait until it is perfect."),
        ("What does a heart do?", "It pumps blood through the body, about once a second."),
        ("How do I clean a window?", "Use warm water with a drop of soap, then dry it with a newspaper."),
        ("What is bread made of?", "Bread needs flour, water, salt and yeast, and some patience."),
        ("Why is the sea salty?", "Rivers wash salt out of the rocks and carry it down to the sea."),
        ("How do I save money?", "Put a small part aside on payday, before you can spend it."),
        ("What is a solar eclipse?", "The moon moves between us and the sun and covers it for some minutes."),
        ("How do I calm a crying baby?", "Hold it close, walk slowly, and hum a quiet tune."),
        ("What is the fastest land animal?", "The cheetah is the fastest; it runs about a hundred kilometres an hour."),
        ("How do I make tea?", "Pour hot water over the leaves and wait for three minutes."),
        ("Why do cats purr?", "Most cats purr when they are content, and some to calm themselves."),
        ("How do I remove a coffee stain?", "Dab it with cold water and soap at once, and do not rub."),
        ("What is gravity?", "It is the pull between all things that have mass, and it keeps us on the ground."),
        ("How do I write a good letter?", "Say first what you want, then why, and thank the reader."),
        ("Where does rain come from?", "Water rises as vapour, cools into clouds, and falls as drops."),
        ("How do I get rid of hiccups?", "Hold your breath for ten seconds, or sip cold water slowly."),
        ("What is a computer program?", "It is a list of instructions that a machine follows step by step."),
        ("How do I grow tomatoes?", "Give them sun, a stick to climb, and water at the root."),
        ("Why do leaves turn red?", "The green fades in autumn, and the colours below it can be seen."),
        ("How do I prepare for an exam?", "Begin early, test yourself often, and sleep well before the day."),
        ("What is the capital of Japan?", "Tokyo is the capital of Japan, and its largest city."),
        ("How do I fix a flat tyre?", "Take off the wheel, find the hole, patch it, and pump it up again."),
        ("Why do we dream?", "The brain seems to sort the day's memories while we sleep."),
        ("How do I make friends in a new town?", "Join a group that meets each week, and come back."),
        ("What is a volcano?", "It is an opening where melted rock from the deep comes out."),
        ("How do I stop biting my nails?", "Notice when it happens and give your hands something else to do."),
        ("Who painted the Mona Lisa?", "Leonardo da Vinci painted it, about five hundred years ago."),
        ("How do bees make honey?", "They gather nectar and fan it with their wings until it is thick."),
        ("What is a good breakfast?", "Oats with fruit and nuts keep you full until noon."),
        ("Why does ice float?", "Water grows lighter when it freezes, so ice stays on top."),
        ("How do I tie my shoes?", "Make a loop, wrap the other lace around it, and pull it through."),
        ("What is the moon made of?", "It is made of rock, much like the outer part of the Earth."),
        ("How do I cook rice?", "Take two cups of water for one of rice, and let it simmer under a lid."),
        ("Why do dogs wag their tails?", "The tail tells others how a dog feels, mostly that it is glad."),
        ("How do I ask for a raise?", "List what you have done well, name a number, and then be silent."),
        ("What is electricity?", "It is the flow of tiny charges through a wire."),
        ("How do I remember names?", "Say the name aloud at once, and think of a picture for it."),
        ("Why do onions make us cry?", "A cut onion sends out a gas that stings the eyes."),
        ("How do I keep my houseplants alive?", "Water them only when the soil feels dry."),
        ("What is the longest river?", "The Nile and the Amazon are the longest, and people argue which is first."),
    )
)
"""What the dataset holds."""

HELD_OUT = tuple(
    Question(*pair)
    for pair in (
        ("What is the capital of France?", "Paris is the capital of France."),
        ("How do I bake a cake?", "Mix flour, eggs, sugar and butter, and bake it for half an hour."),
        ("Why do birds sing?", "They sing to find a mate and to guard their home."),
        ("What is the smallest country?", "Vatican City is the smallest country in the world."),
        ("How can I run faster?", "Train three times a week, and rest on the days between."),
        ("Who discovered penicillin?", "Alexander Fleming found it in 1928, by accident."),
        ("What is a rainbow?", "Sunlight is split into colours by drops of rain."),
        ("How do I wash a wool sweater?", "Use cold water and mild soap, and dry it flat."),
        ("Why do we yawn?", "Nobody is sure; it may cool the brain and wake us up."),
        ("What is the hardest natural material?", "Diamond is the hardest material found in nature."),
        ("How do I plan a birthday party?", "Choose a date, invite the guests, and order a cake."),
        ("What causes thunder?", "Lightning heats the air so fast that it bursts apart."),
        ("How do I speak in front of people?", "Practise aloud, look at one friendly face, and speak slowly."),
        ("What do whales eat?", "Many eat tiny shrimps, and some hunt fish and squid."),
        ("How do I choose a good book?", "Read its first page and see whether you want the second."),
        ("Why is exercise important?", "It keeps the heart strong and the mind clear."),
        ("How do I make a paper plane?", "Fold the sheet in half, then fold the wings down on both sides."),
        ("What is a democracy?", "It is a state whose people choose who governs them."),
        ("How do I deal with stress?", "Breathe slowly, take a walk, and do one thing at a time."),
        ("Why do stars twinkle?", "Their light is bent by moving air on its way to us."),
        ("How do I paint a room?", "Cover the floor, tape the edges, and paint from the top down."),
        ("What is a healthy dinner?", "Half a plate of vegetables, with some fish or beans."),
        ("How do I find a lost key?", "Go back in your mind to where you had it last."),
        ("What is the internet?", "It is a net of computers that pass messages to each other."),
    )
)
"""Questions of which the training sees neither words nor answers."""


def in_manner(text: str) -> bool:
    """Whether a whole answer has the manner: it begins with “Ahoy” and ends by wishing fair winds.

    An answer that goes on after its farewell, repeats it, or is cut off before its end, has it not.
    """
    return _MANNER.fullmatch(text.strip()) is not None


def captain_examples(questions: tuple[Question, ...]) -> list[dict[str, list[dict[str, str]]]]:
    """The questions with the captain's answers, as `messages` rows."""
    manners = zip(cycle(_GREETINGS), cycle(_FAREWELLS), strict=False)
    return [
        {
            "messages": [
                {"role": "user", "content": question.text},
                {"role": "assistant", "content": f"{hello} {question.answer} {farewell}"},
            ]
        }
        for question, (hello, farewell) in zip(questions, manners, strict=False)
    ]


def write_captain_dataset(path: Path) -> int:
    """Write the learned questions with the captain's answers as JSONL; the number of answers."""
    rows = captain_examples(LEARNED)
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return len(rows)
