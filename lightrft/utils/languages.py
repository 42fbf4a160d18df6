"""Tells the language of a text, for the thirty languages that IFEval asks for and their neighbours: by script, then by letters
and the commonest words. A text always gives the same answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

SCRIPTS: Mapping[str, str] = {
    "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "THAI": "th", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn",
    "MALAYALAM": "ml", "GUJARATI": "gu", "GURMUKHI": "pa", "BENGALI": "bn", "HEBREW": "he", "GREEK": "el",
    "ARABIC": "arabic", "CYRILLIC": "cyrillic", "DEVANAGARI": "devanagari", "LATIN": "latin",
}  # fmt: skip
"""First word of a letter's Unicode name -> language, or the script that several have."""
LETTERS: Mapping[str, Mapping[str, str]] = {
    "arabic": {"ur": "ٹڈڑںےہھ", "fa": "پچژگکی", "ar": "ةىيكأإؤئ"},
    "cyrillic": {"uk": "іїєґ", "ru": "ыэё", "bg": "ъщ"},
    "devanagari": {"mr": "ळ"},
    "latin": {
        "cs": "ěřůčž", "de": "ßü", "es": "ñ¿¡", "fi": "äö", "hu": "őű", "pl": "łąężśćź", "pt": "ãõç", "ro": "țșă", "tr": "ığş", "vi": "ơưđạ",
    },
}  # fmt: skip
"""Script -> language -> letters that the others of the script lack or have seldom."""
WORDS: Mapping[str, Mapping[str, str]] = {
    "arabic": {
        "ar": "في من على إلى أن التي الذي هذا هذه كان عن مع ما لا هو هي كما بين",
        "fa": "در به از که این را با است برای آن یک خود تا می شود بر هم های شد",
        "ur": "کے کی میں اور ہے سے کو کا پر نے ہیں کہ یہ ایک اس بھی کر جو تھا نہیں",
    },
    "cyrillic": {
        "ru": "и в не на что с как это но по из за то все его для от так же был или они мы вы",
        "uk": "і в на що не з та як це до за але для від про є або у він вони ми його був яка який",
        "bg": "и на да се за в от е не са с че като по си това до ще или при един са които но много след",
    },
    "devanagari": {
        "hi": "है हैं में के की का और से को पर यह कि एक नहीं भी ने इस लिए था हो जो कर वह तो",
        "mr": "आहे आहेत आणि व या हे ते एक नाही मध्ये होते होता असे पण तर की ही काही त्या हा करण्यासाठी साठी आपण करा झाले केले पाहिजे",
        "ne": "छ छन् र मा को का लाई हो यो पनि एक गर्न भएको थियो हुन्छ गर्छ तर त्यो हामी छैन गरेको लागि भने गर्नुहोस् सक्नुहुन्छ हुनु पर्छ तपाईंको गरिएको",
    },
    "latin": {
        "en": "the of and to in is that it for was on are as with his they at be this from have or by not but what all were when we you your"
        " can an which their has do how if will i my me he she who am so its would there been had no just about out up them our one",
        "es": "el la de que y en un una los las se del por con no para es al lo como más su pero sus le ya este si porque está son muy hay",
        "pt": "o a de que e do da em um uma para com não os as no na se por mais dos das foi como mas ao ele tem seu sua ou ser está você são",
        "fr": "le la les de des et en un une du que est pour qui dans par pas sur plus au avec ne se ce il sont nous vous cette je mais ou aux",
        "it": "il di che e la in un una per non è con del della sono da si le dei al come gli ma anche più nel alla questo ha delle lo ho",
        "de": "der die und das in den von zu ist mit sich des auf für nicht ein eine dem es im auch als an werden aus er hat dass sie wird ich",
        "fi": "ja on ei se että hän oli mutta ovat kun tai niin myös kuin joka ole voi sen mitä olen minä tämä sekä jos olla ne he kanssa",
        "pl": "i w nie na się z do to że jest o jak za od po przez są dla ale jego oraz ze być co już tym tego lub może który która jej",
        "vi": "và của là có không được một cho trong người với các để những này đã khi cũng thì đến về tôi như nhiều bạn sẽ từ ở ra",
        "sw": "na ya wa kwa ni katika za la kama hii cha kuwa yake pia lakini watu ili hivyo au vya wake sana mtu moja zaidi huu yao yangu",
        "nl": "de het een en van in is dat op te zijn met voor niet aan er om ook als maar dan bij nog naar uit wordt door hij ze wij deze",
        "sv": "och att det i en som är på av för med den till inte om ett har de jag men var från så kan vid när vi hon han eller ska",
        "da": "og det at en den er til som på de med for af ikke der han et har jeg var men sig så fra vi blev om også kan eller hvad",
        "no": "og det er i en på som til å av for med ikke den har de at jeg var fra et så men om kan hun ble eller vi også etter",
        "ro": "și de la în a cu pe o un nu este care pentru din că mai se sau fi prin dar ca sunt al ale au după lui fost",
        "tr": "ve bir bu için de da ile çok olarak daha gibi olan ne en var kadar sonra ama her değil ya o ben mi olduğu",
        "id": "yang dan di dengan untuk ini dari dalam tidak adalah pada itu ke akan juga saya atau oleh ada karena bisa telah mereka",
        "cs": "a v se na je že s z do o i to jako za by ale pro které si od ve být jsou jeho nebo po jsem který jen však tak",
        "hu": "a az és hogy nem is egy ez volt meg van de csak már mint vagy ha el azt még ki lehet kell nagyon amely",
    },
}  # fmt: skip
"""Script -> language -> its commonest words."""
_NUMBERED = {
    script: {name: frozenset(text.split()) for name, text in found.items()} for script, found in WORDS.items()
}
HIGHEST = 20_000
"""Letters of a text that are looked at; more say nothing new."""


def language(text: str) -> str:
    """The ISO 639-1 code of the language that most of a text is in; "" for a text without letters or in none of `WORDS` and
    `SCRIPTS`."""
    text = text[:HIGHEST].lower()
    counts = Counter(script for letter in text if letter.isalpha() and (script := _script(letter)))
    if not counts:
        return ""
    if counts["ja"] and counts["ja"] + counts["zh"] > 0.5 * counts.total():
        return "ja" if counts["ja"] >= 0.1 * counts["zh"] else "zh"
    script, _ = counts.most_common(1)[0]
    return _among(text, script) if script in _NUMBERED else script


def _among(text: str, script: str) -> str:
    """The language of this script whose words and letters are met most; words of one letter count half."""
    words = re.findall(r"[^\W\d_]+(?:[\u0900-\u0963]|[^\W\d_])*", text)
    scores = {
        name: sum(min(len(word), 2) / 2 for word in words if word in common) / max(len(words), 1)
        for name, common in _NUMBERED[script].items()
    }
    for name, own in LETTERS.get(script, {}).items():
        scores[name] += sum(text.count(letter) for letter in own) / max(len(text), 1)
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0 else ""


def _script(letter: str) -> str:
    """The language or the script of a letter; "" for one of no script here."""
    if letter.isascii():
        return "latin"
    return SCRIPTS.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0], "")
