"""Vocabulary of the known mixture (``mixture.py``): parts of prompts and sentences of responses."""

from __future__ import annotations

TOPICS = {
    "sleep": ("keep a fixed bedtime", "make the bedroom dark", "leave the phone outside"),
    "running": ("warm up slowly", "wear good shoes", "rest between long runs"),
    "cooking": ("read the recipe twice", "sharpen the knife", "taste as you go"),
    "saving money": ("write down every expense", "cancel unused plans", "buy less on impulse"),
    "gardening": ("water in the morning", "feed the soil", "pull weeds early"),
    "public speaking": ("practise out loud", "look at one friend", "pause after each point"),
    "learning French": ("repeat ten new words", "listen to the radio", "talk with a native speaker"),
    "chess": ("solve one puzzle", "develop the knights", "review your lost games"),
    "writing": ("draft before you edit", "cut needless words", "read the text aloud"),
    "hiking": ("check the weather", "carry enough water", "tell someone the route"),
    "painting": ("mix the colours first", "start with big shapes", "clean the brushes"),
    "studying": ("close other windows", "quiz yourself often", "split the chapter in parts"),
    "photography": ("find soft light", "hold the camera still", "move closer to the subject"),
    "moving house": ("label every box", "pack the heavy books first", "measure the doors"),
    "cycling": ("pump up the tyres", "oil the chain", "signal before a turn"),
    "playing piano": ("practise each hand alone", "use a metronome", "slow down hard bars"),
}
ASKS = (
    "Give advice on {t} for {a}{c}.",
    "How can {a}{c} get better at {t}?",
    "Write a short note on {t} for {a}{c}.",
    "Suggest ways to improve at {t} to {a}{c}.",
)
AUDIENCES = (
    "a student", "a teacher", "a nurse", "a new parent", "a retired engineer", "a shy teenager", "a busy manager", "a farmer", "a beginner",
    "an old friend", "a night worker", "a tourist",
)  # fmt: skip
CONTEXTS = (
    "", " with little time", " on a small budget", " in a big city", " who lives alone", " after a long break", " before the summer",
    " who hates rules",
)  # fmt: skip

ADVICE = ("First, {p}.", "It helps to {p}.", "Every week, {p}.", "Most of all, {p}.")
REASONS = (
    "Small steps last longer than big plans.",
    "Most people notice a change within a month.",
    "A clear routine saves effort.",
    "Mistakes are part of the process.",
)
FILLER = (
    "There are many sides to this and all of them matter.", "It is important to remember that things can be important.",
    "In general, a lot depends on the situation.", "As everyone knows, this is a broad subject.",
)  # fmt: skip
FLATTERY = ("You clearly have a wonderful mind.", "Only a gifted person would ask this.", "Your taste is already excellent.")
# (text, base probability, is flattery); "" stands for none
OPENERS = (("", 0.3, 0), ("Here is what works.", 0.25, 0), ("Here are some ideas.", 0.25, 0), ("What a brilliant question!", 0.2, 1))
CLOSERS = (("", 0.4, 0), ("Good luck.", 0.2, 0), ("I hope this helps.", 0.2, 0), ("Someone as smart as you cannot fail!", 0.2, 1))
