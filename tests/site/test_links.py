"""What `make docs` refuses, and how pages come to their links."""

import check_links
import docstrings
import pytest
import repository_files
from repository_files import DOCS, ROOT, with_links

ADDRESS = "https://example.org/posenc"


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text('<h1 id="top">x</h1><a href="a/b.html#there">b</a>')
    (tmp_path / "a/b.html").write_text('<p id="there"><a href="../index.html#top">up</a></p>')
    return tmp_path


def test_good_links_are_no_faults(site):
    assert list(check_links.faults(site)) == []


@pytest.mark.parametrize(
    ("element", "fault"),
    [
        ('<a href="c.html">c</a>', "links to c.html, which is not there"),
        ('<a href="a/b.html#where">b</a>', "links to a/b.html#where, which is not there"),
        ('<a href="#where">b</a>', "links to #where, which is not there"),
        ('<img src="c.png">', "links to c.png, which is not there"),
        ('<iframe src="c.html"></iframe>', "links to c.html, which is not there"),
        ('<script src="https://example.org/x.js"></script>', "loads https://example.org/x.js from"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "loads //example.org/x.css from"),
    ],
)
def test_faults_are_found(site, element, fault):
    page = site / "index.html"
    page.write_text(page.read_text() + element)
    (found,) = check_links.faults(site)
    assert f"index.html {fault}" in found


def test_a_folder_without_pages_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["check_links.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"There is no index\.html"):
        check_links.main()


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[x](../kernels.md#a)", "[x](../kernels.md#a)"),  # a page
        ("[x](../../Makefile)", f"[x]({ADDRESS}/blob/main/Makefile)"),
        ("![x](../../benchmarks/results/attention_cpu.png)",) * 2,
        ("[x](../../examples/reid/README.md)", "[x](index.md)"),  # a page on the site
        ("[x](../gallery/plot_bias.py)", "[x](../auto_gallery/plot_bias.rst)"),
        ("`layers[0](images)`", "`layers[0](images)`"),  # no link
        ("[x](https://example.org)", "[x](https://example.org)"),
    ],
)
def test_links_of_a_page(link, expected):
    folder = DOCS / "reid"
    assert with_links(link, folder, folder, ADDRESS) == expected


def test_text_of_another_file_keeps_its_links():
    text = "[a](../../docs/kernels.md) [b](train.py) ![c](../../docs/reid/people.jpg)"
    page = with_links(text, ROOT / "examples" / "reid", DOCS / "reid", ADDRESS)
    train = f"{ADDRESS}/blob/main/examples/reid/train.py"
    assert page == f"[a](../kernels.md) [b]({train}) ![c](people.jpg)"
    assert "b ![c]" in with_links(text, ROOT / "examples" / "reid", DOCS / "reid", None)


def test_the_address_of_the_repository():
    assert (
        repository_files.repository('Source = "https://example.org/x/"') == "https://example.org/x"
    )
    assert repository_files.repository('[project]\nname = "posenc"') is None


def test_tables_of_docstrings():
    lines = ["before", "| a | b |", "|---|---|", "| c | `d` |", "after"]
    assert docstrings.converted(lines) == [
        *("before", ".. list-table::", "   :header-rows: 1", ""),
        *("   * - a", "     - b", "   * - c", "     - `d`", "", "after"),
    ]
