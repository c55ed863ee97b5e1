"""Writing, grading and hinting: the way of a learner, and everything that can be refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from common.errors import ConfigError
from tools.docs_build.source import extract
from tools.drills import hints
from tools.drills.__main__ import main
from tools.drills.exercise import write_exercise
from tools.drills.grade import grade, report
from tools.drills.rewrite import blank, wrong_text
from tools.drills.run_tests import Outcomes
from tools.drills.spec import Drill, WrongAnswer, choose, find_package, read_drills
from tools.drills.tree import build_tree, copied_files

ROOT = Path(__file__).resolve().parents[2]
M3 = read_drills(ROOT, "m3_paged")
M6 = read_drills(ROOT, "m6_prefix")
POOL = tuple(d for d in M3 if d.path == "block_pool.py")


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def paste(copy: Path, drill: Drill) -> None:
    """Write the original function where the blank is, as somebody would who found it."""
    blanked, right = copy / drill.path, ROOT / drill.source
    theirs, ours = extract(blanked, drill.symbol), extract(right, drill.symbol)
    rows = blanked.read_text(encoding="utf-8").splitlines()
    original = right.read_text(encoding="utf-8").splitlines()
    rows[theirs.first_line - 1 : theirs.last_line] = original[ours.first_line - 1 : ours.last_line]
    blanked.write_text("\n".join(rows) + "\n", encoding="utf-8")


def drill_of(**changes: object) -> Drill:
    fields: dict[str, object] = {
        "id": "add", "package": "m3_paged", "path": "sums.py", "symbol": "Sums.add",
        "title": "Add", "teaches": "adding", "task": "Add two numbers.", "minutes": 5,
        "hints": ("Think.", "a + b."), "tests": (), "wrong": (),
    }  # fmt: skip
    return Drill(**fields | changes)  # type: ignore[arg-type]


SOURCE = '''\
import functools


class Sums:
    """Sums."""

    @functools.cache
    def add(self, a: int, b: int) -> int:
        """Add.

        Args:
            a: One.
        """
        total = a + b
        return total  # done

    def other(self) -> int:
        return 1
'''


class TestFromStartToEnd:
    def test_write_grade_paste_grade(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        where = ["--exercises", str(tmp_path)]
        copy = tmp_path / "m6_prefix"
        assert main(["exercise", "m6", *where]) == 0
        assert f"{copy}, functions to write: {len(M6)}" in capsys.readouterr().out
        before = hashes(copy)
        assert main(["grade", "m6", *where]) == 0
        said = capsys.readouterr().out
        assert f"m6_prefix: 0 of {len(M6)} drills pass" in said
        assert "not written yet: block_hash.py, BlockHashes.extend" in said
        assert "hint 1 of 3: make m6-hint DRILL=full-blocks" in said
        assert hashes(copy) == before, "grading only reads"
        for drill in M6[:2]:
            paste(copy, drill)
        assert main(["hint", "m6", "--drill", "publish", *where]) == 0
        before = hashes(copy)
        assert main(["grade", "m6", *where]) == 0
        said = capsys.readouterr().out
        assert f"m6_prefix: 2 of {len(M6)} drills pass" in said
        assert "  pass  hash-chain" in said
        assert "hint 2 of 4: make m6-hint DRILL=publish" in said
        assert hashes(copy) == before

    def test_a_wrong_answer_gets_its_reason(self, tmp_path: Path) -> None:
        drill = choose(M3, "free-order")
        copy = write_exercise(ROOT, M3, tmp_path, only=drill, force=False)
        wrong = next(each for each in drill.wrong if "back" in each.misconception)
        (copy / drill.path).write_text(wrong_text(ROOT, drill, wrong), encoding="utf-8")
        (copy / "tests").mkdir()  # what a learner puts there is never used
        (copy / "tests" / "test_block_pool.py").write_text("def test_ok(): pass\n")
        graded = grade(ROOT, [drill], copy)
        lines = report([drill], graded, copy)
        assert lines[0] == "m3_paged: 0 of 1 drills pass"
        assert lines[1].split()[:2] == ["FAIL", "free-order"]
        assert "tests fail, first test_block_pool.py::" in lines[2]
        assert lines[4].strip() == f"often behind it: {wrong.misconception}"

    def test_a_file_that_is_no_python_fails_everything_in_one_line(self, tmp_path: Path) -> None:
        copy = write_exercise(ROOT, M3, tmp_path, only=POOL[0], force=False)
        (copy / "block_pool.py").write_text("def broken(:\n", encoding="utf-8")
        graded = grade(ROOT, POOL, copy)
        assert not any(each.ok for each in graded.values())
        assert "SyntaxError" in "\n".join(report(POOL, graded, copy))

    def test_files_of_common_are_graded_too(self, tmp_path: Path) -> None:
        drills = read_drills(ROOT, "m1_basic")
        drill, other = choose(drills, "check-stop"), choose(drills, "open-stop")
        copy = write_exercise(ROOT, drills, tmp_path, only=drill, force=False)
        graded = grade(ROOT, [drill, other], copy)
        assert (graded[drill.id].ok, graded[other.id].ok) == (False, True)
        assert f"drill {drill.id}:" in next(iter(graded[drill.id].failed.values()))

    def test_a_file_that_ends_the_process_is_one_line(self, tmp_path: Path) -> None:
        copy = write_exercise(ROOT, M6, tmp_path, only=M6[0], force=False)
        (copy / "block_hash.py").write_text("import os\n\nos._exit(3)\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="the tests ended with exit code 3, saying: nothing"):
            grade(ROOT, M6[:1], copy)


class TestWriting:
    def test_a_copy_holds_every_module_and_no_test(self, tmp_path: Path) -> None:
        drills = read_drills(ROOT, "m1_basic")
        copy = write_exercise(ROOT, drills, tmp_path, only=None, force=False)
        assert copied_files(copy, "m1_basic").keys() == {
            *copied_files(ROOT / "m1_basic", "m1_basic"),
            "common/detokenizer.py",
            "common/stopping.py",
        }
        assert not (copy / "tests").exists()
        text = (copy / "sampler.py").read_text(encoding="utf-8")
        assert '"drill min-p: not written yet (make m1-hint DRILL=min-p)"' in text
        assert "def min_p" not in (ROOT / "m1_basic" / "drills.toml").read_text(encoding="utf-8")

    def test_one_drill_alone(self, tmp_path: Path) -> None:
        drill = choose(M3, "fork")
        copy = write_exercise(ROOT, M3, tmp_path, only=drill, force=False)
        ours = copied_files(copy, "m3_paged")
        theirs = copied_files(ROOT / "m3_paged", "m3_paged")
        assert [path for path in theirs if ours[path] != theirs[path]] == [drill.source]
        assert ours[drill.source].count("NotImplementedError") == 1

    def test_work_is_never_overwritten_unasked(self, tmp_path: Path) -> None:
        copy = write_exercise(ROOT, M3, tmp_path, only=None, force=False)
        (copy / "block_pool.py").write_text("mine", encoding="utf-8")
        with pytest.raises(ConfigError, match="may hold your work: it stays as it is"):
            write_exercise(ROOT, M3, tmp_path, only=None, force=False)
        assert (copy / "block_pool.py").read_text(encoding="utf-8") == "mine"
        write_exercise(ROOT, M3, tmp_path, only=None, force=True)
        assert "FreeBlockQueue" in (copy / "block_pool.py").read_text(encoding="utf-8")


class TestRewriting:
    def test_signature_decorators_and_docstring_stay(self) -> None:
        text = blank(SOURCE, [drill_of()])
        head, body = SOURCE.split("        total = a + b\n")
        assert text.startswith(head)
        assert text.endswith(body.removeprefix("        return total  # done\n"))
        assert "# Drill add, about 5 minutes. Add two numbers." in text
        assert "total" not in text
        namespace: dict[str, type] = {}
        exec(text, namespace)
        with pytest.raises(NotImplementedError, match="drill add: not written yet"):
            namespace["Sums"]().add(1, 2)

    def test_a_target_that_is_not_there(self) -> None:
        with pytest.raises(ConfigError, match=r"no Sums\.subtract in m3_paged/sums\.py"):
            blank(SOURCE, [drill_of(symbol="Sums.subtract")])

    def test_an_edit_must_be_unambiguous(self, tmp_path: Path) -> None:
        (tmp_path / "m3_paged").mkdir()
        (tmp_path / "m3_paged" / "sums.py").write_text(SOURCE, encoding="utf-8")
        answer = WrongAnswer("Adding subtracts.", "", (("a + b", "a - b"),))
        assert "total = a - b" in wrong_text(tmp_path, drill_of(), answer)
        for old, count in (("total", 2), ("return 1", 0)):
            bad = WrongAnswer("", "", ((old, "x"),))
            with pytest.raises(ConfigError, match=f"stands there {count} times"):
                wrong_text(tmp_path, drill_of(), bad)


class TestTree:
    def test_one_file_is_replaced_and_the_rest_is_linked(self, tmp_path: Path) -> None:
        build_tree(ROOT, tmp_path, {"m3_paged/block_pool.py": "x = 1\n", "m3_paged/a/b.py": ""})
        assert (tmp_path / "common").is_symlink()
        assert (tmp_path / "m3_paged" / "block_pool.py").read_text() == "x = 1\n"
        assert (tmp_path / "m3_paged" / "a" / "b.py").is_file()
        assert (tmp_path / "m3_paged" / "tests").is_symlink()
        assert not (tmp_path / "tools").exists()


class TestOutcomes:
    def test_cases_classes_and_files_belong_to_a_node_id(self) -> None:
        every = Outcomes(["a.py::T::x[1]", "a.py::y", "b.py::x"], {"c.py": "ImportError"})
        assert every.of(["a.py::T"]).passed == ["a.py::T::x[1]"]
        assert every.of(["a.py::T::x"]).ok
        assert every.of(["a.py"]).passed == ["a.py::T::x[1]", "a.py::y"]
        assert not every.of(["a.py::T::xy"]).ok
        assert every.of(["c.py::z"]).failed == {"c.py": "ImportError"}


class TestHints:
    def test_one_level_at_a_time_and_remembered(self, tmp_path: Path) -> None:
        drill = drill_of()
        assert hints.tell(drill, tmp_path, None)[1] == "hint 1 of 2: Think."
        assert hints.tell(drill, tmp_path, None)[1] == "hint 2 of 2: a + b."
        assert hints.tell(drill, tmp_path, None)[1] == "hint 2 of 2: a + b."
        assert hints.tell(drill, tmp_path, 1)[1] == "hint 1 of 2: Think."
        assert hints.seen(tmp_path) == {"add": 2}
        (line,) = [row for row in report([drill], {"add": Outcomes()}, tmp_path) if "all" in row]
        assert line.strip() == "all 2 hints are told; the answer is m3_paged/sums.py, Sums.add"

    def test_without_a_copy_nothing_is_written(self, tmp_path: Path) -> None:
        assert hints.tell(drill_of(), tmp_path / "none", None)[1].startswith("hint 1")
        assert list(tmp_path.iterdir()) == []

    def test_no_such_level(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="add has hints 1 to 2, not 3"):
            hints.tell(drill_of(), tmp_path, 3)


def test_a_drill_that_stands_on_another_says_so(tmp_path: Path) -> None:
    outcomes = Outcomes([], {"a.py::x": "NotImplementedError: drill pop: not written yet (…)"})
    lines = report([drill_of()], {"add": outcomes}, tmp_path)
    assert "it stands on pop, not written yet" in "\n".join(lines)


class TestBadInput:
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["grade", "m9"], "no drills for 'm9'; stages with drills: m0_init"),
            (["grade", "m3", "--exercises", "nowhere"], "no working copy at nowhere/m3_paged"),
            (["hint", "m3"], "name a drill with DRILL=…: free-list-remove"),
            (["hint", "m3", "--drill", "x"], "m3_paged has no drill 'x'; it has free-list"),
            (["hint", "m3", "--drill", "fork", "--level", "two"], "LEVEL is a number, got 'two'"),
            (["exercise", "m3", "--force", "yes"], "FORCE is 1 or nothing, got 'yes'"),
        ],
    )
    def test_is_one_line(self, argv: list[str], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            main(argv)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "old", "new", "message"),
        [
            ("drills.toml", 'title = "Fork', 'name = "Fork', "missing or unknown: name, title"),
            ("drills.toml", 'id = "fork"', 'id = "advance"', "has an id twice"),
            ("drills.toml", 'id = "fork"', 'id = "A fork"', "bad id or target in 'A fork'"),
            ("drills.toml", "[[drill]]", "[[drill]", "drills.toml: "),
            ("drills_wrong.toml", 'drill = "fork"', 'drill = "spoon"', "no drill spoon"),
        ],
    )
    def test_a_broken_list(
        self, tmp_path: Path, name: str, old: str, new: str, message: str
    ) -> None:
        folder = tmp_path / "m3_paged"
        folder.mkdir()
        for each in ("drills.toml", "drills_wrong.toml"):
            shutil.copy(ROOT / "m3_paged" / each, folder / each)
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
        assert find_package(tmp_path, "m3") == "m3_paged"
        with pytest.raises(ConfigError, match=message):
            read_drills(tmp_path, "m3_paged")
