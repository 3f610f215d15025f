"""Easy data augmentation of captions (EDA; Wei & Zou 2019, arXiv 1901.11196): one of synonym replacement, random insertion,
random swap, random deletion, each touching `rate` of the words."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data.augmentation.augment import Augment
from data.refusal import Missing
from data.seeding import generator

APOSTROPHES = "'\u2019"
TRIES = 10  # words that an insertion looks for synonyms of
_FUNCTION_WORDS = """
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves who whom whose what which this that these those
    am is are was were be been being have has had having do does did doing will would shall should can could may might must
    a an the and but or nor if because as until while than so though
    of at by for with about against between into through during before after above below to from up down in out on off over
    under again further then once here there when where why how
    all any both each few more most other another some such no not only own same too very just now ever never
    dont doesnt didnt cant couldnt wont wouldnt isnt arent wasnt werent havent hasnt hadnt shouldnt mustnt im ive youre hes
    shes theyre weve s t d ll m o re ve y don
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())  # never replaced; as captions come, without apostrophes
FOLDERS = ("/usr/share/wordnet",)  # Debian's wordnet-base
READ = frozenset(  # of WordNet's files, those that decide synonyms
    name.format(pos) for pos in ("noun", "verb", "adj", "adv") for name in ("data.{}", "index.{}", "{}.exc")
)


def augmented_caption(section: Augment, text: str, seed: int, key: str, epoch: int, *view: int) -> str:
    """The augmented caption, drawn from the names alone: lower case, letters and spaces only, as EDA leaves it (apostrophes
    go, all else that is no letter becomes a space); a caption without letters stays as it is."""
    words = "".join(c if c.isalpha() else " " for c in text.lower() if c not in APOSTROPHES).split()
    if section.text == "none" or not words:
        return text
    draw = generator("eda", seed, key, 0 if section.frozen else epoch, *view)
    count = max(1, int(section.rate * len(words)))
    moves = (_swap, _delete, _insert, _replace) if section.synonyms == "wordnet" else (_swap, _delete, _insert)
    out = moves[int(draw.integers(len(moves)))](words, count, section, draw)
    return " ".join(out) or text


def _swap(words: list[str], count: int, section: Augment, draw: np.random.Generator) -> list[str]:
    words = list(words)
    for _ in range(count if len(words) > 1 else 0):
        a, b = draw.choice(len(words), size=2, replace=False)
        words[a], words[b] = words[b], words[a]
    return words


def _delete(words: list[str], count: int, section: Augment, draw: np.random.Generator) -> list[str]:
    kept = [word for word in words if draw.random() > section.rate]
    return kept or [words[int(draw.integers(len(words)))]]


def _insert(words: list[str], count: int, section: Augment, draw: np.random.Generator) -> list[str]:
    """A synonym of some word at some place, without WordNet a word of the caption's own; up to ten words are tried."""
    out = list(words)
    for _ in range(count):
        tried = [words[place] for place in draw.integers(len(words), size=TRIES)]
        others: Sequence[str] = tried[:1]
        if section.synonyms == "wordnet":
            others = next((others for word in tried if (others := _synonyms(word, section.wordnet))), ())
        if others:
            out.insert(int(draw.integers(len(out) + 1)), others[int(draw.integers(len(others)))])
    return out


def _replace(words: list[str], count: int, section: Augment, draw: np.random.Generator) -> list[str]:
    """Up to `count` different words, wherever they stand, by a synonym each; never a stop word."""
    out, known = list(words), [word for word in dict.fromkeys(words) if word not in STOP_WORDS]
    for place in draw.permutation(len(known)):
        if count and (others := _synonyms(known[place], section.wordnet)):
            other = others[int(draw.integers(len(others)))]
            out = [other if word == known[place] else word for word in out]
            count -= 1
    return out


@cache
def _synonyms(word: str, folder: str | None) -> tuple[str, ...]:
    """WordNet's other lemmas of all senses of a word, sorted; empty for words it does not know."""
    senses = _wordnet(folder).synsets(word)
    names = {lemma.name().replace("_", " ").replace("-", " ").lower() for sense in senses for lemma in sense.lemmas()}
    return tuple(sorted(name for name in names if name != word and name.replace(" ", "").isalpha()))


def _nltk_folders() -> list[str]:
    """Where NLTK looks for its data."""
    homes = [*os.environ.get("NLTK_DATA", "").split(os.pathsep), "~/nltk_data"]
    roots = [f"{sys.prefix}{part}" for part in ("", "/share", "/lib")]
    roots += [f"/usr{part}" for part in ("/share", "/local/share", "/lib", "/local/lib")]
    return [os.path.expanduser(home) for home in homes if home] + [f"{root}/nltk_data" for root in roots]


@cache
def _wordnet(folder: str | None) -> Any:
    """NLTK's reader of WordNet; LookupError if its files are nowhere."""
    if folder is None and "nltk" not in sys.modules and not any(map(os.path.isdir, (*_nltk_folders(), *FOLDERS))):
        raise LookupError("no folder of NLTK's or Debian's")  # NLTK takes a second to say so
    import nltk
    from nltk.corpus import wordnet
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    if folder is None:
        try:
            wordnet.ensure_loaded()
            return wordnet
        except LookupError:
            folder = next((path for path in FOLDERS if os.path.isfile(f"{path}/data.noun")), None)
            if folder is None:
                raise
    if not os.path.isfile(f"{folder}/data.noun"):
        raise LookupError(f"{folder} holds no WordNet")
    nltk.data.path.append(folder)  # NLTK opens files below its own paths alone

    class WithoutTopics(WordNetCorpusReader):  # type: ignore[misc]
        """Debian leaves out the list of topics, which NLTK reads first; that and the map between versions we never use."""

        def open(self, file: str) -> Any:
            here = file != "lexnames" or os.path.isfile(f"{folder}/lexnames")
            return super().open(file) if here else io.StringIO("".join(f"{n:02d}\ttopic.{n}\t1\n" for n in range(45)))

        def map_wn(self, version: str = "wordnet") -> None:
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other languages are missing
        return WithoutTopics(folder, None)


def wordnet_files(section: Augment) -> list[Path]:
    """The files that the section's synonyms come from, a zip of NLTK's as one; none where it asks for none, or they are
    missing."""
    if section.text != "eda" or section.synonyms != "wordnet":
        return []
    try:
        root = _wordnet(section.wordnet).root
    except LookupError:
        return []
    packed = getattr(root, "zipfile", None)
    if packed is not None:
        return [Path(packed.filename)]
    return [path for name in sorted(READ) if (path := Path(root) / name).is_file()]


def reopen_wordnet() -> None:
    """In a forked process: files of WordNet that are open are shared with the parent, their places in them too."""
    if _wordnet.cache_info().currsize:
        _wordnet.cache_clear()
        import nltk.corpus

        vars(nltk.corpus.wordnet).get("_data_file_map", {}).clear()


def settle_synonyms(section: Augment) -> tuple[Augment, str]:
    """(the section with `synonyms: auto` replaced by what this machine has, words to say of it, if any)."""
    if section.text != "eda" or section.synonyms != "auto":
        return section, ""
    try:
        _synonyms("picture", section.wordnet)
    except LookupError:
        words = f"{_absent(section)}: captions are varied by swap, deletion and insertion alone; for synonyms {REMEDY}"
        return section.model_copy(update={"synonyms": "none"}), words
    return section.model_copy(update={"synonyms": "wordnet"}), ""


REMEDY = "run 'apt install wordnet-base' or 'python -m nltk.downloader wordnet', or name a folder in data.augment.wordnet"


def _absent(section: Augment) -> str:
    where = f"in {section.wordnet}" if section.wordnet else "as NLTK's corpus or Debian's wordnet-base"
    return f"WordNet is not {where}"


def check_synonyms(section: Augment) -> None:
    """UserError if the section asks for words that are not on this machine."""
    if section.text == "eda" and section.synonyms == "wordnet":
        try:
            _synonyms("picture", section.wordnet)
        except LookupError:
            raise Missing(
                f"data.augment.synonyms is 'wordnet', but {_absent(section)}; {REMEDY}, or set "
                "data.augment.synonyms=none for the other three operations"
            ) from None
