"""Sentences and pieces: a table of hard cases, and properties that hold for any text."""

# ruff: noqa: RUF001 - punctuation of other scripts is the subject here
# ruff: noqa: SIM905 - lists of words read best as words

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest

from vox_serve.text import Sentences, pieces, speakable

LETTERS = [*"aZ é5", "e\u0301", "好", "👍🏽", "\u200d"]
PARTS = [
    *LETTERS,
    *". ! ? … ... , ; : — ( ) [ ] { } \" ' “ ” « » 「 」 。 ！ ？ 、 ， ： * - 1. 2) •".split(),
    *["Mr.", "U.S.", "No.", "etc.", "e.g.", "J.", "3.14", "example.com", "...", "***", "and"],
    *[" ", " ", " ", " ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2029"],
    *["word ", "Word ", "Longer words ", "end. ", "x" * 30],
]


def sentences(text, bits=None, **limits):
    reader = Sentences(**limits)
    done = [sentence for bit in bits or [text] for sentence in reader.feed(bit)]
    return done + reader.flush()


def squeezed(text):
    return "".join(text.split())


def random_text(rng, most=60):
    return "".join(rng.choices(PARTS, k=rng.randint(0, most)))


def random_bits(rng, text):
    cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 8)))
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize(
    "marked",
    [  # | is a border
        "Hello there.| How are you?| Fine!| Yes",
        "What?!| No.| Hm…| Well",
        "Mr. Smith met Mrs. Jones and Dr. No on Baker St. in London.| They spoke.",
        "MR. SMITH CAME.| DR. JONES LEFT.",
        "We saw cats, e.g. Tom, i.e. two cats vs. Jerry.| Yes",
        "We had pears, plums, etc. and ate.| We had pears, etc.| Then we left.",
        "It opens at 5 p.m. every day.| It shuts at 9 p.m.| Come early.",
        "J. R. R. Tolkien wrote it.| George W. Bush read it.",
        "The U.S. Army came.| A Ph.D. is long.",
        "It was No. 5 of them.| No.| I say no.| Go.",
        "On Jan. 5 it began.| It ended in Jan.| Then all was quiet.",
        "Gen. Grant gave, and so did he.| I love the gen.| Then sleep.",
        "He sat by the fig.| See Fig. 3 there.",
        "Pi is 3.14, not 3.| It is v1.2.3.| Nor 5.| A dozen",
        "It cost 3. 50 more came.",
        "Born in 1999.| He lives.",
        "Go to example.com/a?b=c.d!e or write to a.b@c.de now.| Open main.py.| Done",
        "wait... what?| Wait...| What",
        "Wait… what?| Wait…| What",
        '"Stop!" he said.| "Go." She went.'.replace('." ', '."| '),
        "She said “Go.”| “No!” he said.| (Really.)| [So.]| Yes",
        "hello there. how are you.".replace(". ", ".| "),
        "It was approx. five and min. six.| Yes",
        "Stop!| he said.",
        "So he came. , and went.",
        "Done.)| Then.| Yes",
        "« Bonjour ! » dit-il.| « Non\u00a0!\u00a0» Il part.".replace("» Il", "»| Il"),
        "Hallo!| »Ja.«| Er ging.| „Nein.“| Sie blieb.",
        "Hallo.| « Oui » dit-il.",
        'He said " Go. " Then he left.'.replace('" Then', '"| Then'),
        "**Note.**| _Then._| `Xy.`| So",
        "你好。|我是谁？|真的！|好",
        "「行くよ。」と彼は言った。|「あ。」|「い。」| う",
        "你好，我。“好。”| 好".replace("。“", "。|“"),
        "هل؟| نعم۔| है।| हाँ",
        "Title\n\n|Text\ngoes on.\n|And\nends",
        "Mr.\nSmith came.\n|then he went. \n| on",
        "a\r\nb\r\n\r\n|c",
        "a\u2029|b\u2028c",
        "Steps:\n|1. Buy milk.\n|2) Go\n|- home\n|• now\n|# End",
        "1. Buy milk.| When?| 1999.| Then",
        "100. Sell it.| Yes",
        "So (Mr. Smith) and “Dr. Jones” came.| Yes",
        "a. First thing.| b. Second thing.",
        "... So?| *** Hm.| ... ...",
        "Hi\n\n|***\n\nyou",
        "***\n\n1. one\n|2. two",
        "So .| Then",
        "Ends. (and more) here.| Ends.| (And more) here.",
        "the end. (and more)| yes.".replace(". (", ".| (").replace(")|", ")"),
        "See etc. (5 of them) now.| 5 etc.| “So” it is.",
        "$5.| 5 of",
    ],
)
def test_sentences_end_at_their_borders(marked):
    wanted = [" ".join(part.split()) for part in marked.split("|")]
    assert sentences(marked.replace("|", "")) == [part for part in wanted if part]


@pytest.mark.parametrize("text", ["", " \n\n\t"])
def test_a_text_without_characters_has_no_sentences(text):
    assert sentences(text) == pieces(text) == pieces(text, 5, 5) == []


@pytest.mark.parametrize(
    ("held", "bit", "given"),
    [
        ("Hi!", " ", ["Hi!"]),
        ("Hi?\n", "", []),
        ("Hi.", " ", []),
        ("Hi. ", "Y", ["Hi."]),
        ("Hi. ", '"', []),
        ('Hi. "', "Y", ["Hi."]),
        ("Hi.", "\n", ["Hi."]),
        ("Hi.)", "\n", []),
        ("Hi...", "\n", []),
        ("Hi... ", "Y", ["Hi..."]),
        ('"Hi!"', " ", []),
        ('"Hi!" ', "Y", ['"Hi!"']),
        ("Mr.", "\n", []),
        ("Mr.\n", "\n", ["Mr."]),
        ("It is 3", ".", []),
        ("It is 3.", "14", []),
        ("« Oui !", " ", []),
        ("Oui !", "\u00a0", []),
        ("Oui !\u00a0", "A", ["Oui !"]),
        ("好", "。", []),
        ("好。", "好", ["好。"]),
        ("好。”", "好", []),
        ("好。”", " ", []),
        ("Hi\n", "-", []),
        ("Hi\n-", " ", ["Hi"]),
        ("Hi\n-", "5 ", []),
        ("*** ", "\n\n", []),
    ],
)
def test_a_sentence_is_given_out_as_early_as_is_safe(held, bit, given):
    reader = Sentences()
    reader.feed(held)
    assert reader.feed(bit) == given


def test_flush_leaves_nothing_behind():
    reader = Sentences()
    for text in ("hello. (", "« A ! b", "Title\n\n***", "好。”", 'x. "', "a\n-", "ab" * 300):
        assert reader.feed(text) + reader.flush() == sentences(text)
        assert reader.flush() == []


def test_sentences_do_not_depend_on_how_the_text_was_split():
    rng = random.Random(1)
    for _ in range(1000):
        text = random_text(rng)
        for limit in (400, rng.randint(1, 40), None):
            whole = sentences(text, max_characters=limit)
            assert sentences(text, list(text), max_characters=limit) == whole
            assert sentences(text, random_bits(rng, text), max_characters=limit) == whole


def test_sentences_lose_nothing_and_respect_their_limit():
    rng = random.Random(2)
    for _ in range(1000):
        text = random_text(rng)
        limit = rng.randint(1, 40)
        for found in (sentences(text), sentences(text, max_characters=limit)):
            assert squeezed("".join(found)) == squeezed(text)
            assert all(sentence in " ".join(text.split()) for sentence in found)
            assert all(sentence == " ".join(sentence.split()) != "" for sentence in found)
        assert max(map(len, found), default=0) <= limit


def test_a_sentence_without_a_border_is_speakable():
    rng = random.Random(3)
    for _ in range(1000):
        found = sentences(random_text(rng), max_characters=None)
        assert all(map(speakable, found[:-1]))


def test_a_long_sentence_is_not_held_back():
    reader = Sentences(max_characters=40)
    text = "one two, three four five; six seven eight nine ten eleven twelve"
    assert reader.feed(text[:40]) == []
    assert reader.feed(text[40:]) == ["one two, three four five;"]
    assert reader.flush() == ["six seven eight nine ten eleven twelve"]
    assert sentences("ab cd", max_characters=5) == ["ab cd"]
    assert sentences("ab cde", max_characters=5) == ["ab", "cde"]
    assert sentences("aaaaaaa b", max_characters=3) == ["aaa", "aaa", "a b"]


def test_a_cut_does_not_forget_the_beginning_of_the_sentence():
    text = "They ate about four or five of them, approx. five. And on. they went"
    assert sentences(text, max_characters=44) == [
        "They ate about four or five of them,",
        "approx. five.",
        "And on. they went",
    ]
    assert sentences("aa *** *** ***\n\n***\n\nbb", max_characters=12) == [
        "aa *** ***",
        "*** *** bb",
    ]


@pytest.mark.parametrize(
    "text", ["a", "a ", "a, ", "Aa. ", "« ! ", '" ', "。", "! ", "e\u0301", "\n"]
)
@pytest.mark.parametrize("limit", [400, None])
def test_work_grows_no_faster_than_the_text(text, limit):
    """It counts executed lines, not seconds."""
    short, long = (work(text * (size // len(text)), limit) for size in (1_000, 8_000))
    assert long < 10 * short


def work(text, limit):
    """The number of lines of vox_serve.text that run, including generators, bit by bit."""
    lines = 0

    def count(frame, event, _):
        nonlocal lines
        if not frame.f_globals["__name__"].startswith("vox_serve.text."):
            return None
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        sentences(text, list(text), max_characters=limit)
        pieces(text, limit, limit)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize(
    ("text", "characters", "words", "wanted"),
    [
        ("One.  Two.\n\nThree.", None, None, ["One. Two. Three."]),
        ("One. Two. Three.", 9, None, ["One. Two.", "Three."]),
        ("One. Two. Three.", 8, None, ["One.", "Two.", "Three."]),
        ("One. Two. Three.", None, 2, ["One. Two.", "Three."]),
        ("One. Two. Three.", None, 1, ["One.", "Two.", "Three."]),
        ("a bb ccc dddd", 7, None, ["a bb", "ccc", "dddd"]),
        # halves, not 95 % and 5 %
        ("aaaa bbbb cccc dddd eeee ffff", 24, None, ["aaaa bbbb cccc", "dddd eeee ffff"]),
        ("a b c d e f", None, 5, ["a b c", "d e f"]),
        ("aaaa, bbbb cccc dddd", 12, None, ["aaaa, bbbb", "cccc dddd"]),  # 2, not 3
        # a pause near the middle is better than the middle, a strong one better than a weak one
        ("aaaa bbbb, cccc dddd eeee ffff", 24, None, ["aaaa bbbb,", "cccc dddd eeee ffff"]),
        ("aaaa, bbbb cccc: dddd, eeee ffff", 24, None, ["aaaa, bbbb cccc:", "dddd, eeee ffff"]),
        ("aaaa bbbb, cccc; dddd eeee ffff", 24, None, ["aaaa bbbb, cccc;", "dddd eeee ffff"]),
        ("aaaa bbbb; cccc, dddd eee", 21, None, ["aaaa bbbb;", "cccc, dddd eee"]),
        ("aaaa bbbb — cccc dddd eeee ffff", 24, None, ["aaaa bbbb —", "cccc dddd eeee ffff"]),
        ("a, bbbb cccc dddd eeee ffff", 24, None, ["a, bbbb cccc", "dddd eeee ffff"]),
        ("(aaaa bbbb,) cccc dddd eeee", 24, None, ["(aaaa bbbb,)", "cccc dddd eeee"]),
        ("aa bbb wait... cc dd ee ff g", 24, None, ["aa bbb wait...", "cc dd ee ff g"]),
        ("aaa bb Mr. Cccc dddd", 18, None, ["aaa bb", "Mr. Cccc dddd"]),
        # a long sentence begins a piece, and its end may share one
        ("One. Aaaa bbbb cccc. Two.", 13, None, ["One.", "Aaaa bbbb", "cccc. Two."]),
        # words too long
        ("a" * 9, 8, None, ["aaaaa", "aaaa"]),
        ("b " + "a" * 9 + " c", 8, None, ["b aaaaa", "aaaa c"]),
        ("ae\u0301e\u0301", 2, None, ["a", "e\u0301", "e\u0301"]),
        ("aaa👍🏽bbb", 4, None, ["aaa", "👍🏽b", "bb"]),
        ("a" + "\u0301" * 5, 3, None, ["a" + "\u0301" * 2, "\u0301" * 3]),
        ("a\u0301\u0301bcd", 5, None, ["a\u0301\u0301", "bcd"]),
        ("a\u0301\u0301\u0301bc", 5, None, ["a\u0301\u0301\u0301", "bc"]),
        ("aa🏻🏿b", 4, None, ["a", "a🏻🏿b"]),
        ("ab\u200dcd", 3, None, ["a", "b\u200dc", "d"]),
        # scripts without spaces
        ("你好。我是谁？真的！", 7, None, ["你好。我是谁？", "真的！"]),
        ("我我我我，你你你你你你", 10, None, ["我我我我，", "你你你你你你"]),
        ("我我我我，你你你。 好", None, 1, ["我我我我，你你你。", "好"]),
        # nothing to speak
        ("One. ***", 8, None, ["One. ***"]),
        ("One two. ***", 9, None, ["One", "two. ***"]),
        ("One. ***", 5, None, ["One.", "***"]),
        ("*** One. Two.", 9, None, ["*** One.", "Two."]),
        ("One two\n\n***\n\nThree four", 11, None, ["One two", "*** Three", "four"]),
        ("One two three, four — —", 16, None, ["One two three,", "four — —"]),
        ("aaa bbb ccc — —", 14, None, ["aaa bbb", "ccc — —"]),
        ("...", 2, None, ["..", "."]),
        ("Aa — — — — —\n\nGo onward", 9, None, ["Aa — —", "— — — Go", "onward"]),
    ],
)
def test_a_text_is_cut_into_pieces(text, characters, words, wanted):
    assert pieces(text, characters, words) == wanted


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_below_one_are_refused(limit):
    for make in (
        lambda: pieces("a", max_characters=limit),
        lambda: pieces("a", max_words=limit),
        lambda: Sentences(max_characters=limit),
    ):
        with pytest.raises(ValueError, match="1 or more"):
            make()


def test_pieces_respect_limits_and_lose_nothing():
    rng = random.Random(4)
    for _ in range(1500):
        text = random_text(rng)
        characters = rng.choice([None, rng.randint(1, 60), rng.randint(1, 200)])
        words = rng.choice([None, rng.randint(1, 20)])
        cut = pieces(text, characters, words)
        assert all(piece == " ".join(piece.split()) != "" for piece in cut)
        assert max(map(len, cut), default=0) <= (characters or len(text))
        assert max((len(piece.split()) for piece in cut), default=0) <= (words or len(text))
        assert squeezed("".join(cut)) == squeezed(text)
        assert all(piece in " ".join(text.split()) for piece in cut)


def test_words_stay_whole():
    rng = random.Random(5)
    parts = [part for part in PARTS if not set(part) & set("。！？、，：好")]
    for _ in range(1000):
        text = "".join(rng.choices(parts, k=60))
        longest = max(map(len, text.split()), default=1)
        cut = pieces(text, longest + rng.randint(0, 50), rng.randint(1, 20))
        assert [word for piece in cut for word in piece.split()] == text.split()


def test_silent_pieces_are_joined_to_their_neighbours():
    rng = random.Random(6)
    for _ in range(1000):
        text = ""
        for _ in range(10):
            text += rng.choice(["One two.", "Go on!", "A bc def, ghi jk lm nopq rs tuv wx."])
            text += rng.choice([" ", "\n\n", "\n\n*** ", " ...\n\n", "\n\n***\n\n--\n\n"])
        assert all(map(speakable, pieces(text, rng.randint(20, 60))))


def test_a_long_text_is_cut_into_even_pieces():
    rng = random.Random(7)
    words = "it was the best of times, the worst; age wisdom — foolishness Mr. Dickens 3.14".split()
    text = ""
    while len(text) < 5000:
        text += " ".join(rng.choices(words, k=rng.randint(1, 70))).capitalize() + rng.choice(".!?")
        text += rng.choice([" ", " ", "\n\n"])
    cut = pieces(text, max_characters=160, max_words=25)
    assert [word for piece in cut for word in piece.split()] == text.split()
    assert all(len(piece) <= 160 and len(piece.split()) <= 25 for piece in cut)
    assert len(cut) < 2 * max(len(text) / 160, len(text.split()) / 25)
    assert all(speakable(piece) for piece in cut)
    assert sum(len(piece) < 40 for piece in cut) < len(cut) / 5
