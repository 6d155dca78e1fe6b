"""The HTML page of examples: whole in one file, escaped, filterable."""

import json
import re
from html import unescape

from PIL import Image

from llama_adapter.gallery import Card, write_gallery

HOSTILE = "<script>alert('x')</script> & \"quotes\" </article>"


def test_everything_is_in_the_file_and_escaped(tmp_path):
    for name, size in (("small.png", (8, 8)), ("large.jpg", (300, 200))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    cards = [
        Card(HOSTILE, [("adapted", HOSTILE), (HOSTILE, "B")], True, tmp_path / "small.png", ["natural", HOSTILE]),
        Card("Zürich?\nTwo lines.", [("adapted", "C")], False, tmp_path / "large.jpg", ["social"]),
        Card("No verdict.", []),
    ]
    write_gallery(tmp_path / "page.html", cards, title=HOSTILE, summary=HOSTILE)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("</article>") == page.count("<article") == 3
    assert page.count("<script>") == 1
    assert re.findall(r'<article class="(\w*)"', page) == ["right", "wrong", ""]
    tags = [json.loads(unescape(text)) for text in re.findall(r'data-tags="([^"]*)"', page)]
    assert tags == [["right", "natural", HOSTILE], ["wrong", "social"], []]
    buttons = [unescape(text) for text in re.findall(r'<button data-tag="([^"]*)"', page)]
    assert buttons == ["", "right", "wrong", *sorted(["natural", HOSTILE, "social"])]
    assert "data:image/png;base64," in page and "data:image/jpeg;base64," in page
    assert re.findall(r'<img alt="" class="(\w*)"', page) == ["small", ""]
    assert not re.search(r'(src|href)="?(http|/|file)', page)
    assert not list(tmp_path.glob("*.part"))


def test_a_page_without_cards(tmp_path):
    write_gallery(tmp_path / "page.html", [], title="Nothing")
    assert "<article" not in (tmp_path / "page.html").read_text(encoding="utf-8")
