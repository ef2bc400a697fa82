"""Build the list of common English words that features are named with: `make common-words`.

    python scripts/common_words.py WORDNET SCOWL > vit_clt/data/common_words.txt

WORDNET holds WordNet 3.0's files (index.noun, data.noun, ..., cntlist.rev), SCOWL the lists
english-words.10 and so on; Debian has them as wordnet-base and scowl. The list is the words that
SCOWL counts among the common ones (sizes 10 to 35 for nouns, 10 and 20 for adjectives) and that
WordNet knows, as text without inflected forms:

- nouns whose first sense is an animal, artifact, part of a body, food, natural object, phenomenon,
  plant, shape or substance, and which are tagged as nouns at least as often as as anything else;
- adjectives tagged as such five times or more, and as often as anything else, that are no
  participles;
- of the nouns for persons only those in `PERSONS`: most others say what cannot be seen, and many
  of them hurt.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

NOUN_FILES = {5, 6, 8, 13, 17, 19, 20, 25, 27}
"""WordNet's numbers of the lexicographer files named above."""
PERSONS = ["baby", "boy", "child", "crowd", "girl", "man", "person", "player", "rider", "woman"]
LEAST_ADJECTIVE = 5
_HEADER = """\
# Common English nouns of things that can be seen, and adjectives; one a line.
# The words of SCOWL (Copyright 2000-2011 Kevin Atkinson) of sizes 10 to 35 that WordNet 3.0
# (Copyright 2006 Princeton University) has as such; scripts/common_words.py says by which rule.
# Both licences stand in common_words_licences.txt.
"""


def common(scowl: Path, sizes: tuple[int, ...]) -> set[str]:
    """The words of these sizes, of the lists for all and for American English."""
    names = [f"{english}-words.{size}" for size in sizes for english in ("english", "american")]
    lines = [line for name in names for line in (scowl / name).read_text("latin-1").splitlines()]
    return {line.strip() for line in lines}


def index(wordnet: Path, part: str) -> dict[str, str]:
    """By lemma, the offset of its first sense."""
    found = {}
    for line in (wordnet / f"index.{part}").read_text().splitlines():
        if not line.startswith("  "):
            fields = line.split()
            found[fields[0]] = fields[6 + int(fields[3])]
    return found


def main() -> None:
    """Print the list."""
    wordnet, scowl = map(Path, sys.argv[1:])
    tagged: dict[str, Counter[str]] = {}
    for line in (wordnet / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        lemma, rest = key.split("%")
        part = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}[rest[0]]
        tagged.setdefault(lemma, Counter())[part] += int(count)
    data = (wordnet / "data.noun").read_text().splitlines()
    files = {line[:8]: int(line[9:11]) for line in data if not line.startswith("  ")}
    inflected = {
        line.split()[0]
        for part in ("noun", "verb", "adj")
        for line in (wordnet / f"{part}.exc").read_text().splitlines()
    }
    nouns, adjectives, verbs = (index(wordnet, part) for part in ("noun", "adj", "verb"))

    def plural(word: str) -> bool:
        return word in inflected or (word.endswith("s") and word[:-1] in nouns)

    def most(word: str, part: str) -> bool:
        counts = tagged.get(word, Counter())
        return counts[part] == max(counts.values(), default=0)

    def participle(word: str) -> bool:
        stems = {word[:-2], word[:-1], word[:-3], f"{word[:-3]}e"}
        return word.endswith(("ed", "ing")) and bool(stems & set(verbs))

    words = {
        word
        for word in common(scowl, (10, 20, 35)) & set(nouns)
        if len(word) > 2
        and files[nouns[word]] in NOUN_FILES
        and most(word, "noun")
        and not plural(word)
    }
    words |= {
        word
        for word in common(scowl, (10, 20)) & set(adjectives)
        if tagged.get(word, Counter())["adj"] >= LEAST_ADJECTIVE
        and most(word, "adj")
        and len(word) > 2
        and not participle(word)
    }
    sys.stdout.write(_HEADER + "\n".join(sorted(words | set(PERSONS))) + "\n")


if __name__ == "__main__":
    main()
