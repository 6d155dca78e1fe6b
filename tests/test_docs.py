"""Every Python example of the documentation runs as it stands there.

The blocks of one file run one after the other, as in a notebook. A block under `<!-- skip: reason -->` is left out.
"""

import re

import pytest
import torch

from tests.conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^(<!-- skip: (?P<reason>.+?) -->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#)(?P<path>[^)#\s]+)(#[^)\s]*)?\)")


def examples(text: str) -> list[tuple[int, str]]:
    """Line number and code of every block that is to run."""
    blocks = (match for match in BLOCK.finditer(text) if not match["reason"])
    return [(text.count("\n", 0, match.start("code")), match["code"]) for match in blocks]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_run(document, tmp_path, monkeypatch):
    blocks = examples(document.read_text(encoding="utf-8"))
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)  # what an example writes stays out of the repository
    (tmp_path / "miniature").symlink_to(ROOT / "miniature")
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "example"}
    for line, code in blocks:
        exec(compile("\n" * line + code, str(document), "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_into_the_repository_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    broken = [m["path"] for m in LINK.finditer(text) if not (document.parent / m["path"]).exists()]
    assert broken == []


def test_blocks_are_found_with_their_lines_and_skipped_on_request():
    skipped = "<!-- skip: needs a GPU -->\n```python\n1 / 0\n```\n"
    text = f"a\n```python\nx = 1\n```\n{skipped}```bash\nls\n```\n```python\ny = x\n```\n"
    assert examples(text) == [(2, "x = 1\n"), (12, "y = x\n")]


def test_there_is_something_to_run():
    assert examples((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
