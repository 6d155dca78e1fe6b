"""One self-contained HTML page of examples: image, question, the frozen and the adapted model's answer, right or wrong.

No file beside it and no network: pictures are inside as data, and every text is escaped.
"""

import base64
import json
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from llama_adapter.files import whole_file

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
nav { margin: 1rem 0; } nav button { margin: 0 .4rem .4rem 0; padding: .25rem .7rem; border: 1px solid #bbb;
  border-radius: 1rem; background: #fff; cursor: pointer; } nav button.on { background: #234; color: #fff; }
article { display: flex; gap: 1.2rem; border: 1px solid #ddd; border-left: .5rem solid #bbb; border-radius: .4rem;
  padding: 1rem; margin: 0 0 1rem; }
article.right { border-left-color: #2a7; } article.wrong { border-left-color: #c44; }
article img { width: 14rem; max-height: 14rem; object-fit: contain; align-self: flex-start; background: #f4f4f4; }
article .small { image-rendering: pixelated; } pre { white-space: pre-wrap; font: inherit; margin: 0 0 .6rem; }
dl { display: grid; grid-template-columns: 7rem 1fr; gap: .1rem .8rem; margin: 0; }
dt { color: #777; } dd { margin: 0; }
.tags { color: #777; font-size: .85rem; margin-top: .5rem; }
"""
SCRIPT = """
const buttons = document.querySelectorAll('nav button'), cards = document.querySelectorAll('article');
const count = document.getElementById('count');
function show(tag) {
  let shown = 0;
  cards.forEach(card => { card.hidden = tag !== '' && !JSON.parse(card.dataset.tags).includes(tag);
    card.style.display = card.hidden ? 'none' : ''; shown += !card.hidden; });
  buttons.forEach(button => button.classList.toggle('on', button.dataset.tag === tag));
  count.textContent = shown + ' of ' + cards.length;
}
buttons.forEach(button => button.addEventListener('click', () => show(button.dataset.tag)));
show('');
"""
SMALL = 128  # pixels; a smaller picture is enlarged without blurring it


@dataclass
class Card:
    """One example.

    Args:
        text: what was asked.
        facts: lines of a title and a text, as the answers and the reference.
        right: whether the adapted model was right; None where there is no right and wrong.
        image: a file, or None.
        tags: what the page can be filtered by.
    """

    text: str
    facts: Sequence[tuple[str, str]]
    right: bool | None = None
    image: Path | None = None
    tags: Sequence[str] = field(default_factory=tuple)


def write_gallery(path: Path, cards: Sequence[Card], *, title: str, summary: str = "") -> None:
    """Writes the page.

    Args:
        path: of the page.
        cards: in the order of the page.
        title: its heading.
        summary: a line below it.
    """
    verdicts = [verdict for verdict in ("right", "wrong") if any(verdict in _tags(card) for card in cards)]
    tags = list(dict.fromkeys([*verdicts, *sorted(tag for card in cards for tag in _tags(card))]))
    buttons = "".join(f'<button data-tag="{escape(tag)}">{escape(tag)}</button>' for tag in tags)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p>{escape(summary)}</p><nav><button data-tag="">all</button>{buttons}</nav>'
        f'<p id="count"></p>{"".join(map(_article, cards))}<script>{SCRIPT}</script></body></html>\n'
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _tags(card: Card) -> list[str]:
    verdict = [] if card.right is None else ["right" if card.right else "wrong"]
    return [*verdict, *card.tags]


def _article(card: Card) -> str:
    tags = _tags(card)
    kind = "" if card.right is None else "right" if card.right else "wrong"
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in card.facts)
    return (
        f'<article class="{kind}" data-tags="{escape(json.dumps(tags))}">{_image(card.image)}<div>'
        f"<pre>{escape(card.text)}</pre><dl>{facts}</dl>"
        f'<div class="tags">{escape(" · ".join(card.tags))}</div></div></article>'
    )


def _image(path: Path | None) -> str:
    if path is None:
        return ""
    from PIL import Image

    with Image.open(path) as opened:
        small = max(opened.size) < SMALL
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="" class="{"small" if small else ""}" src="data:{kind};base64,{data}">'
