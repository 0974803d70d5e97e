"""Physical categories of a prompt by rules: no network, no model, the same answer every time.

Each rule is a pattern, a category and how strongly the pattern speaks for it. Evidence for a category
combines as independent hints: 1 - product of (1 - strength). A category counts from 0.55 on and from half of
the strongest, three at most. The rules know English words. A prompt in which nothing physical stands out gets
no label: a wrong label is worse than none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

R, E, F, C = "Rigid Body", "Elastic", "Fluid", "Compressible Flow"
K, P, T, O = "Collision", "Phase Change", "Thermal", "Optical"

LEAST = 0.55
LEAST_SHARE = 0.5
MOST_LABELS = 3

_GAS = r"(?:smoke|steam|fog|mist|dust|fumes?|gas|clouds?|ash|vapou?r|air|light|sunlight|flames?)"
_BODY = (
    r"ball|marble|block|brick|coin|wheel|crate|box|boulder|rock|stone|book|hammer|barrel|puck|pins?|"
    r"dice|dominoe?s?|gyroscope|top|"
    r"pendulum|satellite|windmill|blades?|fan|frisbee|sled|skateboard|car|truck|"
    r"bottle|vase|glass|cup|plate|log|apple|can|disc|"
    r"cube|cylinder|chair|pebble|gear|bat|arrow|dart|cart|wagon|sphere|tire|key|phone|toy"
)

RULES: tuple[tuple[str, float, str], ...] = (
    # Rigid Body: a motion verb alone is weak, a solid alone is weak, together they count.
    (R, 0.40, rf"\b(?:{_BODY})(?:e?s)?\b"),
    (
        R,
        0.40,
        r"\b(?:roll|slid|spin|spun|tumbl|rotat|toppl|glid|swing|"
        r"swung|revolv|pivot|whirl)(?:l?ing|e?s|ed|e|n)?\b",
    ),
    (
        R,
        0.35,
        r"\b(?:falls?|fell|falling|drops?|dropped|dropping|turns?|"
        r"turning|flies|flying|thrown|tossed|skids?|hops?)\b",
    ),
    (R, 0.35, r"\b(?:bounc|scatter|knock)\w*|\bslams? (?:into|shut)\b"),
    (
        R,
        0.70,
        r"\b(?:gyroscope|spinning top|pendulum|dominoe?s|billiards?|"
        r"bowling|newton's cradle|boulders?|windmill|see-?saw)\b",
    ),
    # Elastic
    (
        E,
        0.60,
        r"\b(?:stretch|elastic|bend|bends|bent|flex|vibrat|oscillat|"
        r"wobbl|squash|squeez|squish|deform|springy|recoil)\w*",
    ),
    (
        E,
        0.65,
        r"\b(?:trampoline|rubber|jelly|bungee|slinky|gummy|tuning fork|"
        r"diving board|gelatin|rubber band|mattress|cushion)\b",
    ),
    (
        E,
        0.60,
        r"\bsprings? (?:back|up)\b|\b(?:a|the|coil|metal|on|of|"
        r"steel) springs?\b(?! (?:sun|day|morning|rain|breeze|afternoon))",
    ),
    (
        E,
        0.55,
        r"\b(?:regain|recover|return|snap)\w* (?:slowly |quickly |"
        r"to )*(?:its|their|the|back|original|from)\b|\brebounds?\b",
    ),
    (
        E,
        0.45,
        r"\b(?:pluck\w*|string|sags?|foam|yoga ball|bow is drawn|"
        r"straighten\w*|sway\w*|pressed flat|balloon)\b",
    ),
    # Fluid
    (F, 0.80, r"\b(?:splash|waterfall|fountain|ooze|pouring|drip|gush|trickl|vortex|whirlpool)\w*"),
    (
        F,
        0.60,
        r"(?<!smoke )(?<!steam )\bpour(?:s|ed)?\b|\bliquids?\b|"
        r"\bswirl\w*|\bstir(?:s|red|ring)?\b|\bspill\w*|\bfaucet\b",
    ),
    (
        F,
        0.50,
        r"\b(?:water|flow(?:s|ing|ed)?|honey|syrup|ink|dye|river|"
        r"stream|ocean|waves?|swim\w*|milk|viscous|dives?|leak\w*)\b",
    ),
    (
        F,
        0.35,
        r"\b(?:sea|lake|pond|pool|puddle|rain|raindrop|coffee|cocoa|wine|"
        r"juice|oil|paint|mud|cream|soup|foam|hose|sprays?|beach)\b",
    ),
    (
        F,
        0.30,
        r"\b(?:drops? of|spreads?|sink|beer|lemonade|whiskey|sauce|surface|basin|bubbles?|ship|boat)\b",
    ),
    # Compressible Flow
    (
        C,
        0.70,
        r"\b(?:smoke|plumes?|explo\w+|detonat\w+|fireball|shock ?wave|"
        r"fumes|billow\w*|dust storm|gas|thunderhead|airbag)\b",
    ),
    (
        C,
        0.60,
        r"\b(?:steam|fog|exhaust|blast|jets?|rocket|aerosol|"
        r"inflat\w+|mist|white vapou?r|spray can|geyser|bomb)\b",
    ),
    (
        C,
        0.40,
        r"\b(?:clouds?|dust|puff|hiss\w*|pressure|bursts?|wind|"
        r"air|pops?|vent|vapou?r|fire extinguisher|ash)\b",
    ),
    # Collision
    (K, 0.85, r"\b(?:collid|collision|crash|smash|slam|shatter|impact|head-on)\w*|newton's cradle"),
    (
        K,
        0.65,
        r"\b(?:hits?|hitting|strikes?|striking|struck|knock\w*|"
        r"bounc\w+|tackl\w+|kick\w*|clink\w*|toppl\w+|collaps\w+)\b",
    ),
    (
        K,
        0.60,
        r"\b(?:stack\w*|grasp\w*|grabs?|grips?|domino\w*|billiard|bowling|"
        r"punch\w*|butt heads|drives? a nail|catch\w*|plunge\w*)\b",
    ),
    (
        K,
        0.55,
        r"\b(?:thrown into|drops? (?:onto|into)|falls? (?:onto|into)|"
        r"break shot|breaks? apart|rams?|rebounds?|dives? into)\b",
    ),
    # Phase Change
    (P, 0.90, r"\b(?:melt|evaporat|sublim|solidif|liquef|liquif|thaw|condens|crystalli|vapori[sz])\w*"),
    (P, 0.85, r"\b(?:freez\w+|froze|boil\w*|simmer\w*|into (?:liquid|vapou?r|ice|steam))\b"),
    (P, 0.70, r"\b(?:frost|molten|hardens?|harden(?:ing|ed)|caramel\w*|icicles?)\b"),
    (P, 0.40, r"\b(?:ice|snow|wax|steam|kettle|dew|lava)\b"),
    # Thermal
    (
        T,
        0.75,
        r"\b(?:thermal|infrared|red-hot|white-hot|embers?|glow\w*|"
        r"heat(?:s|ed|ing|er)?|warms|warming|warmth|incandesc\w+)\b",
    ),
    (
        T,
        0.55,
        r"\b(?:cools|cooling|forge|toaster|radiator|furnace|quench\w*|"
        r"campfire|scorch\w*|sizzl\w*|stove|burns?|burning|flames?)\b",
    ),
    (
        T,
        0.40,
        r"\b(?:hot|warm|fire|coals?|barbecue|candle|lava|oven|pan|saucepan|"
        r"temperature|turns (?:red|orange)|fireball|detonat\w+)\b",
    ),
    # Optical
    (
        O,
        0.85,
        r"\b(?:refract\w*|rainbows?|prism|caustics?|kaleidoscope|"
        r"iridescen\w+|reflect\w*|interference|hologram|magnifying glass)\b",
    ),
    (
        O,
        0.70,
        r"\b(?:mirror\w*|lens|laser|shadows?|spectrum|disco ball|lamp|glitter\w*|glint\w*|soap film|glare)\b",
    ),
    (
        O,
        0.45,
        r"\b(?:sunlight|light|lights|beam|shimmer\w*|headlights|"
        r"sparkl\w+|bends? as|shines?|bright|colou?rs)\b",
    ),
    (
        O,
        0.50,
        r"\b(?:bright light|(?:ring|pulse|ray|beam)s? of (?:\w+ )?light|light (?:waves?|rays?|beams?))\b",
    ),
)
_COMPILED = tuple(
    (category, strength, re.compile(pattern, re.IGNORECASE)) for category, strength, pattern in RULES
)
_BOILING = re.compile(r"\b(?:boil|simmer)\w*", re.IGNORECASE)
_LIQUID = re.compile(r"\b(?:water|soup|pot|kettle|liquid|pan|milk|tea)\b", re.IGNORECASE)
_GAS_MOVES = re.compile(
    rf"\b{_GAS}\b(?: \w+){{0,2}} (?:rolls?|pours?|flows?|drifts?|spreads?|swirls?|turns?|drops?)\b",
    re.IGNORECASE,
)
_WAVES_ROLL = re.compile(
    r"\b(?:waves?|water|river|stream|ocean|sea)\b(?: \w+){0,2} (?:rolls?|turns?|drops?|falls?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PromptLabels:
    """Result of a parser on a prompt."""

    description: str
    """The prompt, rewritten where the parser rewrites."""
    labels: dict[str, float] = field(default_factory=dict)
    """Category -> confidence in 0..1, strongest first; empty where nothing physical dominates."""
    source: str = "offline rules"
    """Parser that produced the labels."""
    note: str = ""
    """Why another way was not used, in one sentence; empty where nothing went wrong."""


_ENGLISH = (
    "a the an and of in on at is are with into from to by as it its over under while through their that then"
)
_FOREIGN = """der das den dem und ein eine einen einem mit auf ist sich im vom zum zur von wird le la les un une des du et dans
sur avec qui est el los las una y con por en del al se il lo gli uno di che nel della sul os um uma com em na het een op zijn och
att det som ett pe si este jest"""
_SMALL_WORDS = {"English": frozenset(_ENGLISH.split()), "another": frozenset(_FOREIGN.split())}


def is_english(prompt: str) -> bool:
    """Whether the rules can read a prompt: most of its letters are Latin, and its small words are no other
    language's.

    A few words without small ones, such as tags, count as English unless they have letters that English has
    not.
    """
    letters = [letter for letter in prompt if letter.isalpha()]
    if not letters:
        return True
    plain = sum(letter.isascii() for letter in letters)
    if plain < 0.7 * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", prompt.lower())
    english, foreign = (sum(word in small for word in words) for small in _SMALL_WORDS.values())
    return english >= foreign if english or foreign else plain >= 0.9 * len(letters)


def evidence(prompt: str) -> dict[str, float]:
    """Strength of the rules for each category, 0..1."""
    doubt: dict[str, float] = {}
    for category, strength, pattern in _COMPILED:
        if pattern.search(prompt):
            doubt[category] = doubt.get(category, 1.0) * (1.0 - strength)
    found = {category: 1.0 - value for category, value in doubt.items()}
    if _BOILING.search(prompt) and _LIQUID.search(prompt):  # boiling stirs the liquid and needs heat
        found[F] = max(found.get(F, 0.0), 0.7)
        found[T] = max(found.get(T, 0.0), 0.65)
    if _GAS_MOVES.search(prompt) or _WAVES_ROLL.search(prompt):  # what rolls or pours here is no solid
        found.pop(R, None)
    return found


def rule_labels(prompt: str) -> dict[str, float]:
    """The categories of a prompt, strongest first, each with a confidence in 0..1; empty where nothing
    physical dominates.
    """
    found = sorted(evidence(prompt).items(), key=lambda item: -item[1])
    if not found:
        return {}
    least = max(LEAST, LEAST_SHARE * found[0][1])
    return {category: round(value, 3) for category, value in found[:MOST_LABELS] if value >= least}


def parse_by_rules(prompt: str, note: str = "") -> PromptLabels:
    """The offline parser: the prompt unchanged, labels by rule."""
    return PromptLabels(description=prompt, labels=rule_labels(prompt), note=note)
