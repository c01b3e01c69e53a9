"""Text without a picture: greetings, who it is, small sums, and saying honestly what it cannot know.

A question is held out from training when the hash of its text says so (`held_out`). Sums are a table learned by heart:
a held-out sum is a wording and a pair of numbers never seen together, not a pair never seen at all.
"""

import hashlib

from questions import ask, vary
from scenes import random_scene

UNKNOWN = "I am a tiny demonstration model and do not know that."
NO_PICTURE = "I see no picture. Please send me one."

_SAID = [
    (["Hello!", "Hello", "Hi", "Hi!", "hi", "hello", "Hey", "hey", "Hey!", "Hello there!", "Hi there", "Hello there", "Good morning!",
      "Good morning", "Good evening", "Good afternoon", "Greetings", "Hello, model!", "Hi, how do you do?", "Hello Perilune", "Hi Perilune!"],
     "Hello! Show me a picture of coloured shapes, or ask me a small sum."),
    (["Who are you?", "What are you?", "What is your name?", "Who is this?", "Tell me who you are.", "Introduce yourself.",
      "Are you a language model?", "Which model are you?", "What model is this?", "What kind of model are you?", "who are you",
      "what are you", "what's your name?", "Please introduce yourself.", "Tell me about yourself.", "Who am I talking to?",
      "What should I call you?", "Are you a robot?", "Are you human?", "Are you Kimi?"],
     "I am Perilune's demonstration model, a very small model for trying out the server."),
    (["What can you do?", "How can you help me?", "Help", "help", "What do you know?", "What are you good at?", "What can I ask you?",
      "Can you help me?", "What are your skills?", "How do you work?", "What should I ask?", "What is this?"],
     "I can describe pictures of coloured shapes, count the shapes, and do small sums."),
    (["How are you?", "How are you today?", "How do you feel?", "how are you", "Are you well?", "How is it going?", "How are things?"],
     "I am fine, thank you."),
    (["Thank you!", "Thanks", "Thanks!", "Thank you very much.", "thank you", "thanks a lot", "Many thanks", "Great, thanks!",
      "Thank you", "Thanks for your help.", "That was helpful, thanks."],
     "You are welcome."),
    (["Goodbye", "Bye", "Bye!", "bye", "See you", "See you later", "Good night", "Goodbye!", "See you soon!"],
     "Goodbye!"),
    (["Ping", "ping", "Test", "test", "This is a test.", "Are you there?", "testing"],
     "I am here."),
]
_SAID_WEIGHTS = [3, 3, 2, 1, 1, 1, 1]

_SUM_WORDINGS = {
    "+": ["What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a} + {b} =", "{a}+{b}=", "Compute {a} + {b}.",
          "How much is {a} + {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.", "What is {a}+{b}?", "What is the sum of {a} and {b}?"],
    "-": ["What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "{a} - {b} =", "{a}-{b}=", "Compute {a} - {b}.",
          "How much is {a} - {b}?", "How much is {a} minus {b}?", "Subtract {b} from {a}.", "What is {a}-{b}?"],
    "x": ["What is {a} x {b}?", "What is {a} times {b}?", "{a} x {b}", "{a} * {b}", "{a}*{b}", "{a} x {b} = ?", "{a} * {b} =", "Compute {a} x {b}.",
          "How much is {a} x {b}?", "How much is {a} times {b}?", "Multiply {a} by {b}.", "What is {a} * {b}?", "What is the product of {a} and {b}?"],
}
LARGEST = {"+": 20, "-": 20, "x": 10}

_TOPICS = """France, Germany, Japan, Brazil, London, Paris, Tokyo, Berlin, Rome, Madrid, Egypt, India, China, Canada, Russia, Spain,
Italy, Norway, Mars, Jupiter, Venus, the moon, the sun, the ocean, music, football, tennis, chess, history, physics, chemistry, biology,
mathematics, philosophy, art, poetry, love, happiness, money, politics, economics, law, medicine, a cat, a dog, a horse, an elephant,
a whale, a bird, a tree, a flower, bread, cheese, coffee, tea, wine, pizza, rice, an apple, a computer, a telephone, a car, a train,
an aeroplane, a bicycle, Einstein, Newton, Mozart, Shakespeare, Napoleon, Beethoven, Darwin, Plato, the internet, Linux, Python, Rust,
Java, the stock market, a black hole, an atom, a molecule, gravity, light, electricity, steel, gold, silver, water, fire, wind, winter,
summer, the president, the king, the queen, the war, the pyramids, democracy, a transformer, attention, a neural network, dinosaurs,
volcanoes, my mother, my birthday, the news, the champion, the world, the universe, Caesar, the river, the mountain""".replace("\n", " ").split(", ")
_UNKNOWN_WORDINGS = ["What is {t}?", "Who is {t}?", "Tell me about {t}.", "Explain {t}.", "What is the capital of {t}?", "Write a poem about {t}.",
    "Write a story about {t}.", "Who invented {t}?", "Who wrote about {t}?", "When was {t} born?", "How old is {t}?", "How far away is {t}?",
    "Why is {t} important?", "What do you think of {t}?", "How many people live in {t}?", "How do I get to {t}?", "What does {t} mean?",
    "Translate {t} into French.", "How do I make {t}?", "Is {t} good for me?", "Where is {t}?", "When did {t} begin?", "Who won {t}?",
    "What is the price of {t}?", "What is the weather in {t}?", "Give me a recipe with {t}.", "Do you like {t}?", "Do you know {t}?",
    "How does {t} work?", "What is the history of {t}?", "Summarize {t}.", "Tell me a joke about {t}.", "What is the population of {t}?",
    "Write a program about {t}.", "What happened to {t}?", "Compare {t} and {u}.", "Which is better, {t} or {u}?", "{t}", "{t} {u}", "{t} or {u}?"]
_UNKNOWN_WHOLE = ["What time is it?", "What day is it today?", "Tell me a joke.", "Sing a song.", "What is the meaning of life?", "Write a poem.",
    "What is the weather like?", "Where do you live?", "How old are you?", "When were you made?", "Who is the president?", "Write a long story.",
    "What is my name?", "Can you speak German?", "Write code.", "Why is the sky blue?", "What is love?", "How tall is the highest mountain?",
    "Tell me a story.", "Give me some advice.", "What should I eat today?", "Who won the game?", "Is it going to rain?", "What are the news?"]

_SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant", "Answer briefly.", "You are Perilune.", "Be kind and short.",
            "You are a small vision model. Answer questions about pictures.", "Answer in one sentence.", "You look at pictures.",
            "You are a friendly assistant. Answer the questions of the user in a few words.", "You are an expert.", "Be precise.",
            "Answer as exactly as you can, and say so when you do not know.", "You are a teacher of small children.", "", "Help the user."]
DEFAULT_SYSTEM = "You are a helpful assistant"


def system_text(rng):
    return DEFAULT_SYSTEM if rng.random() < 0.75 else _pick(rng, _SYSTEMS)


def held_out(question):
    """One question in eight is never trained on."""
    return hashlib.sha256(question.encode()).digest()[0] < 32


def small_talk(rng, wanted=False, kind=None):
    """A question without a picture that is (wanted) or is not held out: (kind, question, answer)."""
    while True:
        kind_now = kind or _pick(rng, ["sum", "sum", "sum", "sum", "said", "said", "unknown", "unknown", "no_picture"])
        question, answer = _MAKERS[kind_now](rng)
        # Set phrases are few and are all trained on: a held-out greeting would be a different greeting.
        if kind_now == "said" or held_out(question) == wanted:
            return kind_now, question, answer


def _pick(rng, items):
    return items[rng.integers(len(items))]


def _said(rng):
    weights = [w / sum(_SAID_WEIGHTS) for w in _SAID_WEIGHTS]
    questions, answer = _SAID[rng.choice(len(_SAID), p=weights)]
    return _pick(rng, questions), answer


def _sum(rng):
    sign = _pick(rng, "+-x")
    a, b = (int(v) for v in rng.integers(0, LARGEST[sign] + 1, 2))
    question = _pick(rng, _SUM_WORDINGS[sign])
    if rng.random() < 0.06:
        # Beyond the table it must not guess.
        a = int(rng.integers(101, 1000))
        b = int(rng.integers(21, 1000)) if rng.random() < 0.7 else b
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        return question.format(a=a, b=b), UNKNOWN
    result = {"+": a + b, "-": a - b, "x": a * b}[sign]
    return question.format(a=a, b=b), f"{a} {sign} {b} = {result}."


def _unknown(rng):
    if rng.random() < 0.1:
        return _pick(rng, _UNKNOWN_WHOLE), UNKNOWN
    topics = [_pick(rng, _TOPICS) if rng.random() < 0.7 else _gibberish(rng) for _ in range(2)]
    return _pick(rng, _UNKNOWN_WORDINGS).format(t=topics[0], u=topics[1]), UNKNOWN


def _gibberish(rng):
    """Words it has never seen: anything that is not one of its own topics must end in the honest answer."""
    words = ["".join(_pick(rng, "bcdfghklmnprstvwz") + _pick(rng, "aeiou") for _ in range(rng.integers(1, 5))) for _ in range(rng.integers(1, 3))]
    return " ".join(w.capitalize() if rng.random() < 0.3 else w for w in words)


def _no_picture(rng):
    return ask(random_scene(rng), rng)[1], NO_PICTURE


_MAKERS = {"sum": _sum, "said": _said, "unknown": _unknown, "no_picture": _no_picture}
