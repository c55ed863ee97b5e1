from __future__ import annotations

from tools import markdown

PAGE = """\
# Title

## First {#first}
```bash no-run reason="long"
# not a heading
make test
```
- item

  ~~~python
  x = 1
  ~~~
## Second part { .wide #second-part }
````text
```bash
inner
```
````
### No id
"""


def test_headings_ignore_code_and_read_ids() -> None:
    found = [(h.level, h.text, h.id, h.line) for h in markdown.headings(PAGE)]
    assert found == [
        (1, "Title", None, 1),
        (2, "First", "first", 3),
        (2, "Second part", "second-part", 13),
        (3, "No id", None, 19),
    ]


def test_fences_keep_line_info_and_dedent() -> None:
    found = list(markdown.fences(PAGE))
    assert [(f.line, f.language, f.info) for f in found] == [
        (4, "bash", 'no-run reason="long"'),
        (10, "python", ""),
        (14, "text", ""),
    ]
    assert found[1].body == "x = 1\n"
    assert found[2].body == "```bash\ninner\n```\n"


def test_a_longer_fence_is_not_closed_by_a_shorter_one() -> None:
    codes = [line.text for line in markdown.lines(PAGE) if line.in_code]
    assert "inner" in codes
    assert "### No id" not in codes


def test_an_inline_triple_backtick_opens_no_fence() -> None:
    assert not any(line.in_code for line in markdown.lines("```x``` in a line\nnext"))


def test_outside_code_spans_changes_only_prose() -> None:
    changed = markdown.outside_code_spans("a `a` ``a ` a`` a", lambda text: text.replace("a", "b"))
    assert changed == "b `a` ``a ` a`` b"


def test_without_code_spans() -> None:
    assert markdown.without_code_spans("3 `4` 5") == "3  5"


def test_fenced_outgrows_the_fences_inside() -> None:
    block = markdown.fenced("a\n````\nb\n", "text")
    assert block == ["`````text", "a", "````", "b", "`````"]
