"""Tools: what is declared, the questions that call for them, the calls, and the answers that repeat a result.

Names, descriptions and parameters come in several wordings, so that a call is read from the declaration; cities, people and
expressions are mostly made up, so that an argument is copied from the question. All JSON is written as the chat template
writes it: compact, and no character escaped that needs none.
"""

import json
from dataclasses import dataclass

from chat import held_out


@dataclass(frozen=True)
class Kind:
    """A kind of tool: each declaration draws one name, description and parameter; each question one wording."""
    names: tuple
    descriptions: tuple
    parameters: tuple  # (name, description) of the one argument.
    wordings: tuple
    several: tuple     # Wordings that ask for two arguments at once, or none.


_PLACE = (("city", "The city"), ("city", "Name of the city"), ("location", "The city"), ("location", "The city, for example Paris"))

KINDS = {
    "weather": Kind(
        ("get_weather", "get_weather", "get_current_weather", "weather"),
        ("Get the weather in a city", "The current weather", "Get the current weather in a given location", "Weather of a city"),
        _PLACE,
        ("What is the weather in {a}?", "What's the weather in {a}?", "How is the weather in {a}?", "Is it raining in {a}?",
         "What is the weather like in {a}?", "What's the weather like in {a} today?", "Tell me the weather in {a}.",
         "Is it cold in {a}?", "Weather in {a}", "Do I need an umbrella in {a}?", "What is the temperature in {a}?"),
        ("What is the weather in {a} and {b}?", "What's the weather in {a} and in {b}?", "Compare the weather in {a} and {b}.")),
    "time": Kind(
        ("get_time", "get_time", "get_local_time", "current_time"),
        ("Get the time in a city", "The current time", "Get the local time of a location", "Time in a city"),
        _PLACE,
        ("What time is it in {a}?", "What is the time in {a}?", "What's the time in {a}?", "Tell me the time in {a}.", "Time in {a}",
         "How late is it in {a}?", "What time is it now in {a}?"),
        ("What time is it in {a} and {b}?", "Tell me the time in {a} and in {b}.")),
    "population": Kind(
        ("get_population", "population"),
        ("Get the population of a city", "Number of people in a city"),
        _PLACE,
        ("How many people live in {a}?", "What is the population of {a}?", "How large is the population of {a}?", "Population of {a}"),
        ("How many people live in {a} and {b}?",)),
    "phone": Kind(
        ("get_phone_number", "find_phone_number"),
        ("Find the phone number of a person", "Get a phone number"),
        (("name", "Name of the person"), ("person", "The person")),
        ("What is the phone number of {a}?", "Find the phone number of {a}.", "How do I call {a}?", "Give me the phone number of {a}."),
        ("Find the phone numbers of {a} and {b}.",)),
    "search": Kind(
        ("search", "web_search", "search_web"),
        ("Search the web", "Search the internet", "Look something up"),
        (("query", "What to search for"), ("query", "The query")),
        ("Search for {a}.", "Search the web for {a}.", "Look up {a}.", "Find something about {a}.", "Please search for {a}."),
        ("Search for {a} and for {b}.",)),
    "calculate": Kind(
        ("calculate", "calculate", "calculator"),
        ("Evaluate an expression", "Calculate the value of an expression", "Do arithmetic"),
        (("expression", "The expression"), ("expression", "For example 3 + 4")),
        ("What is {a}?", "Calculate {a}.", "Compute {a}.", "How much is {a}?", "{a}", "{a} = ?", "Use the calculator: {a}"),
        ()),
}

_CITIES = """Paris, London, Berlin, Tokyo, Rome, Madrid, Vienna, Oslo, Cairo, Delhi, Lima, Seoul, Boston, Chicago, New York, San Francisco,
Beijing, Shanghai, Moscow, Dublin, Lisbon, Athens, Prague, Warsaw, Sydney, Toronto, Mumbai, Nairobi, Zurich, Hamburg, Munich, Leipzig,
Amsterdam, Brussels, Stockholm, Helsinki, Istanbul, Singapore, Bangkok, Los Angeles""".replace("\n", " ").split(", ")
# Tools of other kinds, which none of the questions calls for.
_VERBS = ["send", "open", "close", "make", "start", "stop", "play", "book", "add", "remove", "list", "read", "write", "set", "print", "order"]
_NOUNS = ["mail", "door", "light", "music", "table", "file", "note", "room", "car", "taxi", "page", "user", "list", "photo", "game", "shop"]


def _pick(rng, items):
    return items[rng.integers(len(items))]


def to_json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# ----------------------------------------------------------------------------------------------------- declarations


@dataclass(frozen=True)
class Tool:
    kind: str  # A key of KINDS, or "other".
    name: str
    parameter: str
    declared: dict


def draw_tool(rng, kind):
    if kind == "other":
        verb, noun = _pick(rng, _VERBS), _pick(rng, _NOUNS)
        name, description, parameter, about = f"{verb}_{noun}", f"{verb.capitalize()} the {noun}", _pick(rng, ["name", "number", "text"]), None
    else:
        of = KINDS[kind]
        name, description, (parameter, about) = _pick(rng, of.names), _pick(rng, of.descriptions), _pick(rng, of.parameters)
    return Tool(kind, name, parameter, _declaration(rng, name, description, parameter, about))


def _declaration(rng, name, description, parameter, about):
    """The same content in the orders and with the extras that clients send."""
    value = {"type": "string"}
    if about is not None and rng.random() < 0.4:
        value = {"type": "string", "description": about} if rng.random() < 0.7 else {"description": about, "type": "string"}
    schema = [("type", "object"), ("properties", {parameter: value})]
    if rng.random() < 0.8:
        schema.insert(int(rng.integers(1, 3)), ("required", [parameter]))
    if rng.random() < 0.25:
        schema.append(("additionalProperties", False))
    function = [("name", name), ("description", description), ("parameters", dict(schema))]
    if rng.random() < 0.1:
        function.pop(1)
    if rng.random() < 0.15:
        function.append(("strict", bool(rng.random() < 0.7)))
    whole = [("type", "function"), ("function", dict(function))]
    return dict(whole[::-1] if rng.random() < 0.1 else whole)


def draw_tools(rng):
    """One to three tools of different kinds in any order."""
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    kinds = [str(k) for k in rng.choice(list(KINDS), count, replace=False)]
    if rng.random() < 0.2:
        kinds[int(rng.integers(count))] = "other"
    return [draw_tool(rng, kind) for kind in kinds]


# ------------------------------------------------------------------------------------------------ questions and calls


def call_question(rng, tools, wanted=False):
    """A question that one of the tools answers and that is (wanted) or is not held out: (question, [(tool, arguments)]); None
    where no tool is of a kind that is asked for."""
    callable_tools = [t for t in tools if t.kind != "other"]
    if not callable_tools:
        return None
    while True:
        tool = _pick(rng, callable_tools)
        kind = KINDS[tool.kind]
        values = [_argument(rng, tool.kind)]
        wordings = kind.wordings
        if kind.several and rng.random() < 0.15:
            values, wordings = [*values, _argument(rng, tool.kind)], kind.several
        question = _pick(rng, wordings).format(a=values[0][0], b=values[-1][0])
        if values[0] == values[-1] and len(values) == 2 or held_out(question) != wanted:
            continue
        return question, [(tool, {tool.parameter: value}) for _, value in values]


def _argument(rng, kind):
    """How the question says it, and what the call says."""
    if kind == "calculate":
        return _expression(rng)
    if kind in ("phone", "search") or rng.random() < 0.6:
        name = made_up(rng)
        if kind in ("phone", "search") and rng.random() < 0.5:
            name += " " + made_up(rng)
    else:
        name = _pick(rng, _CITIES)
    return name, name


def _expression(rng):
    a, b = (int(rng.integers(0, int(_pick(rng, [10, 100, 1000, 10000])))) for _ in range(2))
    sign = _pick(rng, "+-*/")
    word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    said = f"{a} {word} {b}" if rng.random() < 0.3 else f"{a} {sign} {b}"
    return said, f"{a} {sign} {b}"


def made_up(rng):
    """A name that nobody has, so that it can only be copied."""
    return "".join(_pick(rng, "bcdfghklmnprstvwz") + _pick(rng, "aeiou") + _pick(rng, ["", "", "", "n", "r", "s", "l"])
                   for _ in range(rng.integers(1, 4))).capitalize()


def call_id(name, number):
    return f"functions.{name}:{number}"


# --------------------------------------------------------------------------------------------------------- results


def draw_result(rng, kind):
    """What a tool of this kind gives back."""
    number = int(rng.integers(0, 100))
    if rng.random() < 0.1:
        return made_up(rng) if rng.random() < 0.5 else str(number)
    if kind == "weather":
        sky = _pick(rng, ["sunny", "cloudy", "rainy", "windy", "snowy", "clear", "foggy", "Sunny", "Cloudy", "Rain", "Clear", "warm", "cold"])
        degrees = _pick(rng, [f"{number} degrees", f"{number} C", f"{number}°C"])
        return _pick(rng, [sky, f"{sky}, {degrees}", degrees, f"{degrees}, {sky}", f"{sky} and {_pick(rng, ['cold', 'warm', 'dry'])}",
                           to_json({"temperature": number, "sky": sky}), to_json({"temperature": number})])
    if kind == "time":
        hour, minute = int(rng.integers(24)), int(rng.integers(60))
        return _pick(rng, [f"{hour}:{minute:02}", f"{hour:02}:{minute:02}", f"{hour % 12 + 1} o'clock", to_json({"time": f"{hour:02}:{minute:02}"})])
    if kind == "phone":
        return _pick(rng, ["{a}-{b}", "{a} {b}", "+{a} {b}"]).format(a=int(rng.integers(100, 1000)), b=int(rng.integers(100, 1000)))
    if kind == "search":
        return _pick(rng, [f"{made_up(rng)} is a {_pick(rng, ['city', 'river', 'book', 'person', 'game'])}", f"{number} results", "nothing found"])
    return str(int(rng.integers(-1000, 100000))) if rng.random() < 0.8 else to_json({"result": number})


def answer_with(results):
    """The sentence that repeats what came back, in parts: the results stand alone, so that their tokens are the same as above."""
    between = '" and "'
    parts = [part for result in results for part in (between, result)]
    return ['The answer is "' if len(results) == 1 else 'The answers are "', *parts[1:], '".']
