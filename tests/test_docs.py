"""The pages of docs/: commands parse, the API reference is whole, links lead somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from vit_clt.cli.commands import COMMANDS, parse

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REFERENCE = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
DIRECTIVES = re.findall(r"^::: (vit_clt(?:\.\w+)*)\.(\w+)$", REFERENCE, re.M)
"""Package or module, and name, of every object of the API reference."""
_spec = importlib.util.spec_from_file_location("docs_links", ROOT / "scripts" / "docs_links.py")
docs_links = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docs_links)


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def commands(page: Path) -> list[str]:
    """Command lines of `vit-clt` in the indented blocks of a page."""
    return re.findall(r"^    (vit-clt .+)$", page.read_text(), re.M)


@pytest.mark.parametrize("line", commands(DOCS / "start.md"))
def test_a_command_of_the_first_page_parses(line: str):
    assert parse(shlex.split(line)[1:]) is not None


def test_the_first_page_uses_what_it_made():
    """Every folder that a command reads was written by a command or by Python before it."""
    text, made = (DOCS / "start.md").read_text(), {"out/my_images"}
    assert "out/my_images/train" in text
    for line in commands(DOCS / "start.md"):
        words = shlex.split(line)
        read = [word.partition(":")[2] or word for word in words[2:] if "out/" in word]
        written = words[words.index("--out") + 1]
        for place in read:
            if place != written:
                assert place in made, line
        made |= {written, f"{written}/clt"} if words[1] == "demo" else {written}


def test_commands_named_in_the_text_exist():
    for page in PAGES:
        for command in re.findall(r"`vit-clt ([a-z][a-z-]*)", page.read_text()):
            assert command in COMMANDS, page


def _public() -> set[tuple[str, str]]:
    packages = ("vit_clt", "vit_clt.hooks", "vit_clt.analysis")
    return {(each, public) for each in packages for public in importlib.import_module(each).__all__}


def test_every_public_name_is_in_the_reference_once():
    assert len(DIRECTIVES) == len(set(DIRECTIVES))
    assert _public() <= set(DIRECTIVES)


@pytest.mark.parametrize(("module", "public"), DIRECTIVES)
def test_the_reference_names_what_exists(module: str, public: str):
    assert hasattr(importlib.import_module(module), public)


def _nav() -> list[str]:
    text = (ROOT / "mkdocs.yml").read_text()
    return re.findall(r"([\w/]+\.md)$", text[text.index("\nnav:") :], re.M)


def test_every_page_is_reached_once():
    assert sorted(_nav()) == [name(page) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files(page: Path):
    for address in re.findall(r"\]\(([^)\s#]+)", page.read_text()):
        if not address.startswith(("http:", "https:")):
            assert (page.parent / address).exists(), address


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lists_and_tables_stand_apart(page: Path):
    """GitHub reads a list right after a paragraph; the site's Markdown needs a blank line."""
    before, fence = "", False
    for line in page.read_text().splitlines():
        fence ^= line.startswith("```")
        if not fence and before.strip():
            if re.match(r"[-*] ", line):
                assert re.match(r"[-*] |  |#", before), line
            if line.startswith("|"):
                assert before.startswith("|"), line
        before = line


def test_formulas_are_text():
    """The site opens without a network, so nothing may need a renderer of formulas."""
    for page in PAGES:
        assert not re.search(r"\$\$|\\\(|(?<![`\w])\$[^$`\n]+\$", page.read_text()), page


def test_links_that_leave_the_site_become_paths():
    text = (
        "[the notebook](../../notebooks/06.ipynb), [terms](../glossary.md), ![x](../images/x.png)"
    )
    expected = "the notebook (`notebooks/06.ipynb`), [terms](../glossary.md), ![x](../images/x.png)"
    assert docs_links.without_outer_links(text, "results/adding.md") == expected
    assert (
        docs_links.without_outer_links("[SECURITY.md](../SECURITY.md)", "a.md") == "`SECURITY.md`"
    )


def test_the_site_names_no_script_or_font_of_others():
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text
    assert not re.findall(r"https?://", text)
    (script,) = re.findall(r"polyfills: \[(\S+)\]", text)  # the offline plugin's own is on the web
    assert (DOCS / script).exists()
