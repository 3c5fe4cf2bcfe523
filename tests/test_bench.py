"""What the benchmarks make of a busy machine. Only this: `.ci/run` has them run to their end."""

import io
import os
import shutil
import sys
from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
from bench import limits, looks
from bench import report as reports
from bench.contenders import make_arrays
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


# ---- Pictures ----

PEERS = [
    "NumPy textbook",
    "NumPy in place",
    "numexpr",
    "Numba",
    "JAX (Optax)",
    "PyTorch for-loop",
    "PyTorch foreach",
    "PyTorch compile",
]


def made_up(peers=PEERS):
    """Return a report of a run, sizes and scaling."""
    names = ["rmsfast", *peers, *reports.LOOPS]
    seconds = {
        case: {name: 2e-9 * scale * (1 + 2.5 * k**1.5) for k, name in enumerate(names)}
        for case, scale in (("1x1k", 250), ("1x64k", 5e3), ("1x16M", 5e6), ("mlp6", 2e4))
    }
    run = {"dtype": "float32", "threads": 2, "seconds": seconds, "unrest": dict.fromkeys(seconds, 1.0)}
    points = [
        {
            "size": 10**k,
            "unrest": 1.0,
            "seconds": {name: (2e-7 + 2e-10 * 10**k) * (1 + i) for i, name in enumerate(names) if k < 7 or i == 0},
            "bound": 1e-10 * 10**k,
        }
        for k in range(2, 9)
    ]
    scaling = {
        "threads": 2,
        "elements": [{"count": 10**k, "rmsfast": 2e-10 * 10**k, "copy loop": 1.8e-10 * 10**k} for k in range(5, 9)],
        "arrays": [{"count": 10**k, "rmsfast": 2e-7 + 6e-8 * 10**k} for k in range(5)],
        "teams": [{"count": 1, "rmsfast": 11e-3, "copy loop": 12e-3}, {"count": 2, "rmsfast": 6e-3, "copy loop": 7e-3}],
    }
    machine = dict(
        cpu="a CPU", cores=2, isa="avx512", root="mixed", rmsfast="0.1.0", python="3.13", versions={}, system="s"
    )
    return {
        "machine": machine,
        "runs": [run],
        "roofline": {"dtype": "float32", "threads": 2, "points": points},
        "scaling": scaling,
    }


def formats_found():
    formats = pytest.importorskip("bench.formats")
    kept = dict(
        zip(
            [*formats.FORMATS, "PyTorch, float32", "PyTorch, bfloat16"],
            [8, 6, 5.02, 6, 5.02, 4, 3.02, 6, 10, 8, 4],
            strict=True,
        )
    )
    run = {
        "size": 1 << 24,
        "threads": 2,
        "unrest": 1.0,
        "found": {
            name: {
                "seconds": bytes_ * (8e-4 if name in formats.FORMATS else 6e-3),
                "kept": bytes_,
                "ours": name in formats.FORMATS,
            }
            for name, bytes_ in kept.items()
        },
    }
    return {"1x16M": run, "1x16k": {**run, "size": 1 << 14, "threads": 1}}


def ranks_found():
    seconds = {"sharded": 1.1, "plain": 1.5, "collectives": 0.8, "python": 0.05}
    seconds |= {"update of a part": 0.2, "update of all": 0.4, "one process": 0.3}
    return [
        {
            "place": place,
            "ranks": ranks,
            "link": [2e-5, 2e-10 * scale],
            "points": [
                {"size": n, "seconds": {k: v * 2e-9 * scale * n for k, v in seconds.items()}}
                for n in (10**4, 10**6, 10**7)
            ],
        }
        for place, ranks, scale in (("memory", 2, 1), ("4gbit", 2, 9), ("1gbit", 4, 50))
    ]


def formats_trained():
    """Two formats of three tasks end farther from float32 than the seeds are from each other."""
    training = pytest.importorskip("bench.training")
    steps = np.linspace(0, 1, 400)
    return [*training.FORMATS, *training.OTHERS], {
        task: {
            name: [list((np.exp(-5 * steps) + 0.3 + off * steps) * seed) for seed in (0.8, 1.0, 1.2)]
            for off, name in [(name.endswith("nearest"), name) for name in (*training.FORMATS, *training.OTHERS)]
        }
        for task in training.TASKS
    }


def pictures():
    """Return every picture of made-up figures, by name."""
    mpi = pytest.importorskip("bench.mpi")
    names, trained = formats_trained()
    with looks.styled():
        few = {"speedup, one peer": reports.draw_speedup(made_up(PEERS[:1]))}
        report = made_up()
        return {
            "speedup": reports.draw_speedup(report),
            "roofline": reports.draw_roofline(report["roofline"]),
            "scaling": reports.scaling.draw(report["scaling"]),
            "formats": pytest.importorskip("bench.formats").draw(formats_found()),
            "formats_training": pytest.importorskip("bench.training").draw(trained, names),
            "distributed": mpi.draw(ranks_found(), 5e-10),
            **few,
        }


def drawn_by_example(name):
    """Return the picture of an example; one that learns for seconds is given made-up results."""
    from rich.console import Console

    source = pytest.importorskip("bench.training").example(name)
    path, rng = io.BytesIO(), np.random.default_rng(0)
    if name == "ravine":
        functions = {"ravine": source.ravine_gradient, "rotated": source.rotated_gradient}
        walks = {
            kind: {label: source.walk(make, gradient) for label, make in source.OPTIMIZERS.items()}
            for kind, gradient in functions.items()
        }
        source.draw(walks, path)
    elif name == "linear_regression":
        x = rng.standard_normal((100, 2))
        y = x @ source.TRUE_WEIGHTS + 0.1 * rng.standard_normal(100)
        _, losses, walk = source.train(x, y, Console(quiet=True))
        source.draw(losses, walk, np.linalg.lstsq(x, y, rcond=None)[0], x, y, path)
    elif name == "digits":
        runs = [source.Run(make) for make in (source.rmsfast.RMSProp, source.PlainRMSProp)]
        for run, step in zip(runs, (4e-5, 1.4e-4), strict=True):
            run.losses, run.step_seconds = list(np.geomspace(2, 1e-4, 1290)), [step]
        source.draw(*runs, (rng.random((20, 64), np.float32), rng.integers(0, 10, 20)), path)
    else:
        vectors = rng.standard_normal((source.FREQUENT, 8))
        vocabulary = [f"some_word_{i}" for i in range(source.FREQUENT)]
        source.draw(vectors, vocabulary, list(np.geomspace(3, 2, 2000)), path)
    return source.plt.gcf()


EXAMPLES = {  # the beginning of the title, and words that have to be there
    "ravine": ("RMSProp evens out a ravine along the axes", ["start", "minimum", "Across them, it ends\nat 0.34"]),
    "linear_regression": (
        "RMSProp finds the least-squares solution within 0.00000",
        ["loss above the minimum", "start"],
    ),
    "digits": ("The bits of plain NumPy, and each step 3.5 times as fast", ["40 µs", "140 µs"]),
    "word_vectors": ("Words that Python's documentation uses alike", ["Training"]),
}


@pytest.mark.thread_unsafe(reason="pyplot is the process's")
@pytest.mark.parametrize("name", EXAMPLES)
def test_pictures_of_examples_say_what_they_show(name):
    for package in ("sklearn", "threadpoolctl"):
        pytest.importorskip(package)
    figure = drawn_by_example(name)
    title, expected = EXAMPLES[name]
    assert figure.get_suptitle().startswith(title)
    words = words_of(figure, note="")
    assert set(expected) <= {text for text, _ in words}
    assert_apart(name, figure, words)
    if name == "digits":
        assert [text for text, _ in words if text.startswith("is ")]
    if name == "word_vectors":
        assert sum(text.count("some_word_") for text, _ in words) > 40


def words_of(figure, note="a note " * 10):
    """Return the visible texts of a figure with their places, as it is saved."""
    from matplotlib.text import Text

    looks.save(figure, io.BytesIO(), "" if figure.legends else note)
    ticks = [
        (axis, tick)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
    ]
    outside = set()  # ticks beyond the end of an axis, which are not drawn
    for axis, tick in ticks:
        low, high = sorted(axis.get_view_interval())
        if not low <= tick.get_loc() <= high:
            outside |= {id(tick.label1), id(tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in texts if id(text) not in outside]


@pytest.mark.thread_unsafe(reason="the style of pictures is the process's")
def test_no_word_of_a_picture_lies_on_another_or_leaves_it():
    for name, figure in pictures().items():
        assert_apart(name, figure, words_of(figure))


def assert_apart(name, figure, words):
    assert len(words) > 10
    box = figure.bbox
    for k, (text, place) in enumerate(words):
        assert place.x0 >= box.x0 and place.x1 <= box.x1 and place.y0 >= box.y0 and place.y1 <= box.y1, (name, text)
        covered = [other for other, its in words[k + 1 :] if place.padded(-2).overlaps(its.padded(-2))]
        assert not covered, (name, text, covered)


@pytest.mark.thread_unsafe(reason="the style of pictures is the process's")
def test_figures_of_a_busy_machine_are_named_and_not_drawn(tmp_path):
    report = made_up()
    (run,) = report["runs"]
    del report["scaling"], report["roofline"]["points"][1:]
    run["unrest"]["1x16M"] = report["roofline"]["points"][0]["unrest"] = 2.0
    assert "with 1x16M (float32, 2 threads), 100 elements." in reports.busy(report)
    assert reports.busy(report) in reports.markdown(report)
    assert "1x16M (busy)" in [str(column.header) for column in reports.tables(report)[0].columns]
    assert [path.name for path in reports.draw(report, tmp_path)] == ["speedup.png"]
    with looks.styled():
        titles = [axes.get_title("left").split("\n")[0] for axes in reports.draw_speedup(report).axes]
    assert titles == ["1,000 numbers", "269,322 numbers in 6 arrays"]
    run["unrest"] = dict.fromkeys(run["seconds"], 1.6)
    assert reports.draw(report, tmp_path) == []
    run["unrest"] = report["roofline"]["points"][0]["unrest"] = 1.1
    assert reports.busy(report) == ""
    assert [path.name for path in reports.draw(report, tmp_path)] == ["speedup.png", "roofline.png"]


@pytest.mark.thread_unsafe(reason="the style of pictures is the process's")
def test_bars_say_how_long_and_in_whose_colour():
    report = made_up()
    times = report["runs"][0]["seconds"]["1x1k"]
    times["Numba"], times["rmsfast"] = 4e-7, 5e-7
    with looks.styled():
        figure = reports.draw_speedup(report)
    axes = figure.axes[0]
    drawn = {round(bar.get_y() + bar.get_height() / 2): bar for bar in axes.patches}
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert {rows[k]: bar.get_width() for k, bar in drawn.items()} == {name: times[name] for name in ["rmsfast", *PEERS]}
    from matplotlib.colors import to_hex

    assert {rows[k]: to_hex(bar.get_facecolor()) for k, bar in drawn.items()} == {n: looks.colour_of(n) for n in rows}
    assert "0.5 µs" in [text.get_text() for text in axes.texts]
    assert "0.4 µs   0.80×" in [text.get_text() for text in axes.texts]
    assert axes.get_title("left") == "1,000 numbers\nfirst: Numba, 0.80×"
    assert "takes 0.5 µs with rmsfast,\nand 0.8 to" in figure.get_suptitle()


@pytest.mark.thread_unsafe(reason="the style of pictures is the process's")
def test_the_roofline_shades_what_no_step_reaches():
    roofline = made_up()["roofline"]
    roofline["points"][-1]["seconds"] |= {"copy loop": roofline["points"][-1]["seconds"]["rmsfast"] / 1.2}
    with looks.styled():
        figure = reports.draw_roofline(roofline)
        (shade,) = figure.axes[0].collections
        del roofline["points"][0]["seconds"]["rmsfast"], roofline["points"][0]["bound"]
        for point in roofline["points"]:
            point.pop("bound", None)
        assert not reports.draw_roofline(roofline).axes[0].collections
    assert shade.get_paths()[0].get_extents().y1 == pytest.approx(0.1)
    assert (
        figure.get_suptitle() == "On 100 million elements, a step of rmsfast takes 1.20 times as long as the copy loop"
    )


def test_the_picture_of_trainings_names_those_that_are_off():
    training = pytest.importorskip("bench.training")
    names, found = formats_trained()
    assert training.off_spread(found, names) == ["bfloat16, nearest", "8-bit v, nearest"]
    assert training.message(found, names).endswith("but for: bfloat16, nearest; 8-bit v, nearest")
    for name in names[1:]:
        found["digits"][name] = [[2 * loss for loss in losses] for losses in found["digits"][name]]
    assert training.message(found, names) == "0 of 8 formats end within the spread of float32's seeds"
    same = {task: dict.fromkeys(names, runs["float32"]) for task, runs in found.items()}
    assert training.message(same, names) == "Every format ends within the spread of float32's seeds"


def test_the_loops_of_a_bound_change_nothing():
    """They read and write w and v, which are then what they were."""
    if sys.platform != "linux" or shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("needs a C compiler with OpenMP")
    assert {"copy loop", "divider loop"} <= set(limits.loops())
    for size, dtype, count in (1000, "float32", 1), (1000, "float64", 1), (100_000, "float32", 2):
        arrays = make_arrays([(size,)], dtype)
        before = [part[0].tobytes() for part in arrays]
        lower = limits.bounds(arrays, 2)
        assert len(lower) == count
        for touch, divisor in lower:
            touch()
            assert divisor == 400 if size == 1000 else 2
        assert [part[0].tobytes() for part in arrays] == before


def test_names_are_moved_apart_and_keep_their_order():
    assert looks.apart([3.0, 0.0, 1.0], 1.0) == [3.0, 0.0, 1.0]
    assert looks.apart([0.0, 5.0, 0.0], 1.0) == [-0.5, 5.0, 0.5]
    assert looks.apart([2.0, 2.0, 2.0, 2.0], 0.5) == [1.25, 1.75, 2.25, 2.75]
    assert looks.apart([0.0, 0.9, 2.1], 1.0) == pytest.approx([-0.05, 0.95, 2.1])
    assert looks.apart([], 1.0) == []


def test_numbers_are_written_as_people_write_them():
    numbers = [0.3, 2, 1000, 16_384, 10**6, 10**11]
    assert [*map(looks.plain, numbers)] == ["0.3", "2", "1,000", "16,384", "1 million", "100 billion"]


# What is left of a colour, in linear RGB, without one of the three kinds of cones (Machado, Oliveira and Fernandes,
# "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, severity 1).
EYES = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab(colour, eye):
    """Return a colour in CIE L*a*b*, as an eye sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(EYES[eye]) @ linear, 0, 1) / np.sum(TO_XYZ, axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_colours_can_be_told_apart(eye):
    colours = {*looks.COLOURS.values(), looks.FAINT}
    distances = {(a, b): np.linalg.norm(lab(a, eye) - lab(b, eye)) for a, b in combinations(sorted(colours), 2)}
    assert min(distances.values()) > 10, min(distances.items(), key=lambda item: item[1])


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
