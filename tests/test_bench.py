"""What the benchmarks make of a busy machine. Only this: `.ci/run` has them run to their end."""

import pytest

pytest.importorskip("rich")
from bench import report as reports
from bench.pages import put
from bench.timing import BUSY, rounds, unrest


def test_a_machine_that_is_interrupted_half_of_the_time_is_busy():
    quiet, interrupted = [1.0, 1.02, 1.05, 1.1, 3.0], [1.0, 1.02, 2.0, 2.5, 3.0]
    assert unrest({"a": quiet, "b": quiet}) < BUSY < unrest({"a": interrupted, "b": interrupted, "c": quiet})


def test_each_batch_of_each_contender_is_kept():
    calls = []
    times = rounds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0)
    assert set(times) == {"a", "b"}
    assert len(times["a"]) == len(times["b"]) == 15
    assert all(time > 0 for time in times["a"])


def test_figures_of_a_busy_machine_are_named_and_not_drawn(tmp_path, monkeypatch):
    pyplot, drawn = pytest.importorskip("matplotlib.pyplot"), []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    seconds = {case: {"rmsfast": 1.0, "NumPy textbook": 2.0} for case in ("1x1k", "1x64k")}
    run = {"dtype": "float32", "threads": 2, "seconds": seconds, "unrest": {"1x1k": 1.0, "1x64k": 2.0}}
    machine = dict(cpu="c", cores=2, isa="i", root="r", rmsfast="0", python="3", versions={}, system="s")
    report = {"machine": machine, "runs": [run], "roofline": {}}
    assert "with 1x64k (float32, 2 threads)." in reports.busy(report)
    assert reports.busy(report) in reports.markdown(report)
    assert [str(column.header) for column in reports.tables(report)[0].columns] == ["contender", "1x1k", "1x64k (busy)"]
    assert [path.name for path in reports.draw(report, tmp_path)] == ["speedup.png"]
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["1x1k"]
    run["unrest"]["1x1k"] = 1.6
    assert reports.draw(report, tmp_path) == []
    run["unrest"] = {"1x1k": 1.0, "1x64k": 1.1}
    assert reports.busy(report) == ""


def test_text_is_put_between_the_comments_of_its_command_again_and_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a: begin -->\n<!-- a: end -->\nafter\n<!-- b: begin -->\nb\n<!-- b: end -->\n")
    for text in "first", "second":
        put(page, "a", text)
    expected = "before\n<!-- a: begin -->\n\nsecond\n<!-- a: end -->\nafter\n<!-- b: begin -->\nb\n<!-- b: end -->\n"
    assert page.read_text() == expected
    with pytest.raises(ValueError, match=r"page\.md: has no lines '<!-- c: begin -->' and '<!-- c: end -->'"):
        put(page, "c", "text")
    assert page.read_text() == expected
