"""Links between the documents lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for path in (ROOT / "docs").rglob("*.md")),
    *ROOT.glob("*/README.md"),
    *ROOT.glob("*/*/README.md"),
    *(ROOT / "models" / "zoo").glob("*/CARD.md"),
]
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for found in LINK.findall(CODE.sub("", document.read_text())):
        link = found[0] or found[1]
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{link}: nothing is there"
        if anchor:
            assert anchor in anchors(path), f"{link}: {path.name} has no such heading"


def test_every_document_is_led_to():
    """From the README, in however many steps."""
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        document = ahead.pop()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        for found in LINK.findall(CODE.sub("", document.read_text())):
            target = (found[0] or found[1]).partition("#")[0]
            if target and (path := (document.parent / target).resolve()).is_file():
                ahead.append(path)
            elif target and path.is_dir():
                ahead += sorted(path.glob("*.md"))
    documents = set((ROOT / "docs").rglob("*.md"))
    assert documents <= reached, f"nothing leads to {sorted(map(str, documents - reached))}"
