"""An icon's name as words: what is drawn, apart from the style it is drawn in, its size and its skin tone."""

import re
from collections.abc import Collection
from typing import NamedTuple

WORDS = 8  # a longer name is a list of search words, not a name
LETTERS = 60  # of a name, at most
# words that say nothing of what is drawn, wherever they end a name
STYLES = {
    "outline", "outlined", "fill", "filled", "solid", "duotone", "twotone", "rounded", "stroke", "stroked", "rtl", "ltr",
    "alt", "16px", "24px",
}  # fmt: skip
PREFIXES = {  # words before the name, in the sets that have them
    "ic": ("baseline", "outline", "round", "sharp", "twotone"),
    "bx": ("bx", "bxs", "bxl"),
    "ion": ("ios", "md", "logo"),
}
SAID = {"fill": "filled", "linear": "line", "outlined": "outline", "24px": "", "alt": "", "rtl": "", "ltr": "", "stroke": ""}
TONE = re.compile(r"\b(?:(medium light|medium dark|light|medium|dark) skin tones?)\b")
BARE_TONE = re.compile(r" (medium light|medium dark|light|medium|dark)$")  # Fluent Emoji names tones without "skin tone"
UNSIZED = 10_000


class Name(NamedTuple):
    """What a name says."""

    concept: str  # readable words: what is drawn
    style: str  # such as "outline rounded"; empty: the set's only one
    tone: str  # of the skin, such as "medium dark"
    number: str  # tells designs of one concept apart: home-2
    size: int  # pixels it is meant for; UNSIZED: any


def read_name(name: str, set_name: str, suffixes: Collection[str] = (), among: Collection[str] = ()) -> Name | None:
    """What an icon's name says; None if it is no words. `suffixes` are those that the set declares as styles: an ambiguous
    one (traffic-light) counts where the set, whose names are `among`, has the rest of the name in another style, too."""
    rest, style = _without_suffix(name.lower().replace("_", "-"), suffixes, among)
    words = rest.split("-")
    if len(words) > 1 and words[0] in PREFIXES.get(set_name, ()):
        style = f"{words[0]} {style}" if words[0] not in ("bx", "ios", "md", "logo") else style
        words = words[1:]
    style_words = style.replace("-", " ").split()
    sizes = [int(word.removesuffix("px")) for word in style_words if word.removesuffix("px").isdigit()]
    numbers: list[str] = []
    while len(words) > 1 and (words[-1] in STYLES or words[-1].isdigit()):
        last = words.pop()
        (numbers if last.isdigit() else style_words).append(last)
    if numbers and not sizes and int(numbers[-1][:5]) in (11, 12, 15, 16, 20, 24, 28, 32, 48):
        sizes = [int(numbers.pop())]
    concept, tone = _without_tone(" ".join(word for word in words if word), set_name)
    readable = re.search(r"[a-z]{2}", concept) and len(concept) <= LETTERS and len(concept.split()) <= WORDS
    if not readable or not re.fullmatch(r"[a-z0-9 ]+", concept):
        return None
    said = [SAID.get(word, word) for word in style_words if not word[0].isdigit()]
    return Name(concept, " ".join(word for word in said if word), tone, "-".join(numbers), max(sizes, default=UNSIZED))


def _without_suffix(name: str, suffixes: Collection[str], among: Collection[str]) -> tuple[str, str]:
    for suffix in sorted(filter(None, suffixes), key=len, reverse=True):
        base = name.removesuffix(f"-{suffix}")
        if base == name or not base:
            continue
        others = (f"{base}-{other}" if other else base for other in suffixes if other != suffix)
        if suffix in STYLES or suffix[0].isdigit() or any(other in among for other in others):
            return base, suffix
    return name, ""


def _without_tone(words: str, set_name: str) -> tuple[str, str]:
    found = TONE.search(words)
    left = " ".join(TONE.sub(" ", words).split()) if found else words
    if found is None and set_name.startswith("fluent-emoji"):
        found = BARE_TONE.search(words)
        left = BARE_TONE.sub("", words) if found else words
    return (left, found[1]) if found and left else (words, "")


STARTS = (
    "{c}", "{c}", "{c}", "an icon of {c}", "{c} icon", "a picture of {c}", "a drawing of {c}", "an image showing {c}",
    "{c} symbol", "this is {c}", "the sign for {c}", "somebody drew {c}", "a small picture of {c}",
)  # fmt: skip
TEMPLATES = (
    "{c}", "an icon of {c}", "{c} icon", "a picture of {c}", "a drawing of {c}", "an image showing {c}", "{c} symbol",
    "this is {c}",
)  # fmt: skip
