"""Sentence number n of the training text: prose, our own grammar, lists of names and letters.

Half is existing prose (`prose`), if its packages are installed.  A small grammar over the words of
`words` generates the rest.  If Debian's `wamerican-small` is installed (SCOWL, free for any
purpose), one slot in three has a word of that list whose ending shows its part of speech, and its
names are listed, too.  The n-th sentence depends only on n, the seed and the packages.  It has at
most 32 words and 190 characters before numbers are written out: more than the voice speaks at once,
so that its longest texts are not at the edge of the training data.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from plugins.demo_voice.training import words as w
from plugins.demo_voice.training.prose import MOST_CHARACTERS, MOST_WORDS, prose

WORD_LIST = Path("/usr/share/dict/american-english-small")
_ENDINGS = {
    "noun": ("ness", "ment", "tion", "ity", "ance", "ence", "ship", "hood", "ism", "er", "or"),
    "adjective": ("ful", "ous", "able", "ible", "ic", "ive", "less", "ish", "al"),
    "adverb": ("ly",),
    "past": ("ed",),
    "gerund": ("ing",),
}


def sentence(number: int, seed: int) -> str:
    """The sentence with this number, in ordinary spelling."""
    rng = random.Random(f"{seed}:{number}")
    while True:
        text = _Grammar(rng).text()
        if len(text) <= MOST_CHARACTERS and len(text.split()) <= MOST_WORDS:
            return text


def held_out(text: str, one_in: int) -> bool:
    """Is this sentence held out?  Depends only on its letters."""
    letters = "".join(c for c in text.lower() if c.isalnum())
    return int.from_bytes(hashlib.sha256(letters.encode()).digest()[:8]) % one_in == 0


@cache
def rare_words() -> dict[str, tuple[str, ...]]:
    """Words of the list by part of speech; `any` has all except names, `name` only names."""
    listed = WORD_LIST.read_text(encoding="utf-8").split() if WORD_LIST.is_file() else []
    plain = [x for x in listed if x.isascii() and x.isalpha() and x.islower() and 3 <= len(x) <= 12]
    by_part = {
        part: tuple(x for x in plain if x.endswith(ends) and len(x) > 5)
        for part, ends in _ENDINGS.items()
    }
    names = [x for x in listed if x.isascii() and x.isalpha() and x.istitle() and 3 <= len(x) <= 12]
    return by_part | {"any": tuple(plain), "name": tuple(names)}


class _Grammar:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def text(self) -> str:
        kinds: dict[Callable[[], str], float] = {
            self.short: 0.03,
            self.letters: 0.06,
            self.spelled: 0.05,
            self.names: 0.04,
            self.two: 0.03,
            self.question: 0.09,
            self.asked: 0.03,
            self.exclamation: 0.05,
            self.with_number: 0.07,
            self.statement: 0.13,
        }
        if prose():
            kinds |= {self.written: 0.38, self.two_written: 0.06}
        return self.rng.choices(list(kinds), list(kinds.values()))[0]()

    def written(self) -> str:
        """Prose; sometimes with another mark at its end, because prose has few questions."""
        found = self.pick(prose())
        mark = self.rng.choices((found[-1], "?", "!"), (0.86, 0.09, 0.05))[0]
        return found[:-1] + mark

    def two_written(self) -> str:
        return f"{self.written()} {self.written()}"

    def short(self) -> str:
        return self.pick(w.SHORT)

    def two(self) -> str:
        return f"{self.capital(self.clause())}. {self.capital(self.clause())}."

    def statement(self) -> str:
        body = self.clause()
        if self.rng.random() < 0.45:
            comma = "," if self.rng.random() < 0.6 else ""
            body = f"{body}{comma} {self.pick(w.JOINERS)} {self.clause()}"
            if self.rng.random() < 0.4:
                body = f"{body}, {self.pick(w.JOINERS)} {self.clause()}"
        if self.rng.random() < 0.15:
            body = f"{self.pick(w.TIMES)}, {body}"
        return f"{self.capital(body)}{self.pick(('.', '.', '.', '.', '!', ';'))}"

    def pick(self, of: Sequence[str]) -> str:
        return self.rng.choice(of)

    def capital(self, text: str) -> str:
        return text[0].upper() + text[1:]

    def rare(self, part: str, common: Sequence[str]) -> str:
        found = rare_words().get(part, ())
        return self.pick(found) if found and self.rng.random() < 0.33 else self.pick(common)

    def adjective(self) -> str:
        return self.rare("adjective", w.ADJECTIVES)

    def noun(self) -> str:
        return self.rare("noun", self.rng.choice((w.PEOPLE, w.ANIMALS, w.THINGS, w.THINGS)))

    def noun_phrase(self) -> str:
        kind = self.rng.random()
        if kind < 0.16:
            return self.pick(w.NAMES)
        if kind < 0.22:
            return f"{self.pick(w.NAMES)} and {self.pick(w.NAMES)}"
        if kind < 0.28:
            return f"{self.pick(w.NAMES)}'s {self.noun()}"
        if kind < 0.34:
            return f"the {self.pick(w.STUFF)}"
        head = f"{self.adjective()} {self.noun()}" if self.rng.random() < 0.5 else self.noun()
        owner = self.pick(w.words("the the the this that my your his her our their every a"))
        return f"an {head}" if owner == "a" and head[0] in "aeiou" else f"{owner} {head}"

    def place(self) -> str:
        if self.rng.random() < 0.25:
            return f"{self.pick(['in', 'from', 'to', 'near'])} {self.pick(w.PLACES)}"
        return f"{self.pick(w.PREPOSITIONS)} {self.noun_phrase()}"

    def ending(self) -> str:
        kind = self.rng.random()
        if kind < 0.35:
            return ""
        if kind < 0.6:
            return f" {self.place()}"
        if kind < 0.8:
            return f" {self.rare('adverb', w.ADVERBS)}"
        return f" {self.pick(w.TIMES)}"

    def verb(self, verbs: str, form: int) -> str:
        return self.pick(verbs.split("|")).split()[form]

    def predicate(self) -> str:
        kind = self.rng.random()
        if kind < 0.2:
            state = self.pick(["is", "was", "seems", "looks", "will be", "isn't", "wasn't"])
            return f"{state} {self.pick(['', 'very ', 'too ', 'not '])}{self.adjective()}"
        form = self.rng.choice((1, 2, 2))
        if kind < 0.3 and rare_words()["past"]:
            return f"{self.pick(rare_words()['past'])} {self.noun_phrase()}"
        if kind < 0.36 and rare_words()["gerund"]:
            return f"was {self.pick(rare_words()['gerund'])} {self.noun_phrase()}"
        if kind < 0.5:
            modal = self.pick(w.words("can could must will would should didn't won't cannot"))
            return f"{modal} {self.verb(w.TRANSITIVE, 0)} {self.noun_phrase()}"
        if kind < 0.8:
            return f"{self.verb(w.TRANSITIVE, form)} {self.noun_phrase()}"
        return self.verb(w.INTRANSITIVE, form)

    def clause(self) -> str:
        if self.rng.random() < 0.12:
            return f"{self.pick(w.WONDERS)} that {self.clause()}"
        if self.rng.random() < 0.25:
            subject = self.pick(w.words("I you we they"))
            verb = self.verb(w.TRANSITIVE, self.rng.choice((0, 2)))
            return f"{subject} {verb} {self.noun_phrase()}{self.ending()}"
        if self.rng.random() < 0.1:
            return f"there {self.pick(['is', 'was'])} {self.noun_phrase()}{self.ending()}"
        subject = self.pick(w.words("he she it")) if self.rng.random() < 0.2 else self.noun_phrase()
        return f"{subject} {self.predicate()}{self.ending()}"

    def question(self) -> str:
        kind = self.rng.randrange(5)
        verb, phrase = self.verb(w.TRANSITIVE, 0), self.noun_phrase()
        if kind == 0:
            asked = self.pick(w.words("Why When Where How"))
            aux = self.pick(w.words("did does will would can"))
            return f"{asked} {aux} {phrase} {self.verb(w.INTRANSITIVE, 0)}{self.ending()}?"
        if kind == 1:
            return f"{self.pick(w.words('Do Did Can Will Would Could'))} you {verb} {phrase}?"
        if kind == 2:
            return f"Is {phrase} {self.adjective()}{self.ending()}?"
        if kind == 3:
            return f"Who {self.verb(w.TRANSITIVE, 2)} {phrase}{self.ending()}?"
        asked = self.pick(["What is the price of", "Have you seen", "What do you think of"])
        return f"{asked} {phrase}?"

    def asked(self) -> str:
        return f"{self.capital(self.clause())}?"

    def exclamation(self) -> str:
        if self.rng.random() < 0.4:
            adjective = self.adjective()
            return f"What {'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {self.noun()}!"
        ask = f"{self.verb(w.TRANSITIVE, 0)} {self.noun_phrase()}{self.ending()}"
        return self.capital(
            self.pick(["", "please ", "don't ", f"{self.pick(w.NAMES)}, "]) + ask
        ) + (self.pick(["!", "!", "."]))

    def number(self) -> str:
        return str(self.rng.randrange(10 ** self.rng.randint(1, 4)))

    def with_number(self) -> str:
        count = f"{self.number()} {self.pick(w.PLURAL_UNITS)}"
        kind = self.rng.randrange(5)
        if kind == 0:
            return f"{self.capital(self.noun_phrase())} has {count}{self.ending()}."
        if kind == 1:
            return f"There are {count} {self.place()}."
        if kind == 2:
            hour, minute = self.rng.randint(1, 12), self.rng.randint(0, 59)
            return f"{self.capital(self.clause())} at {hour}:{minute:02d}."
        if kind == 3:
            return f"It costs ${self.number()}{self.pick(['', ' or less', ' today'])}."
        return f"Between {self.number()} and {self.number()}, {self.clause()}."

    def letters(self) -> str:
        """Rare words in a row, which teach spelling without help from grammar."""
        listed = rare_words()["any"] or w.THINGS
        chosen = [self.pick(listed) for _ in range(self.rng.randint(2, 7))]
        marks = [self.pick(("", "", ",")) for _ in chosen[:-1]] + [self.pick(("", ".", "?", "!"))]
        return self.capital(" ".join(x + mark for x, mark in zip(chosen, marks, strict=True)))

    def spelled(self) -> str:
        """Single letters among words and digits."""
        alone = self.rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=self.rng.randint(2, 6))
        if self.rng.random() < 0.4:
            alone.insert(self.rng.randrange(len(alone) + 1), str(self.rng.randrange(100)))
        said = self.pick(("", ", ")).join(alone)
        kind = self.rng.randrange(4)
        if kind == 0:
            return f"The {said} {self.verb(w.TRANSITIVE, 2)} {self.noun_phrase()}."
        if kind == 1:
            return f"{self.capital(self.noun_phrase())} is called {said}."
        if kind == 2:
            return f"The code is {said}, {self.clause()}."
        return f"Is {said} {self.place()}?"

    def names(self) -> str:
        listed = rare_words()["name"] or w.NAMES
        chosen = [self.pick(listed) for _ in range(self.rng.randint(1, 4))]
        said = " and ".join([", ".join(chosen[:-1]), chosen[-1]] if len(chosen) > 1 else chosen)
        kind = self.rng.randrange(3)
        if kind == 0:
            return f"{said} {self.verb(w.TRANSITIVE, 2)} {self.noun_phrase()}{self.ending()}."
        if kind == 1:
            return f"{self.capital(self.clause())} with {said}."
        return f"From {said} to {self.pick(listed)}{self.pick(('.', '.', '?'))}"
