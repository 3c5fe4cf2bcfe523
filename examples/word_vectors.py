"""Train word vectors on the text that Python brings along, with gradients of a few rows of large tables.

Skip-gram with negative sampling: a word's vector is to tell which words stand near it. Each step touches the rows of
some thousand words, and `rmsfast.Rows` moves these rows and no others. That is what TensorFlow's sparse updates do; it
is not a dense step with zeros, in which the averages of all other rows would decay. Needs `pip install ".[demo]"`,
takes five seconds, ten beside other work, and saves a picture, word_vectors.png, in the current folder.
"""

import builtins
import pydoc_data.topics
import re
import sys
from collections import Counter
from time import perf_counter

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.cluster import AgglomerativeClustering

import rmsfast

SIZE = 48  # numbers in a vector
WINDOW = 4  # words to each side that count as near
NEGATIVES = 5  # random words for each near one
BATCH = 1000  # pairs in a step
EPOCHS = 8
RARE = 5  # words seen less often are left out
FREQUENT = 600  # words that are put into clusters for the picture
GRID = 4, 4  # clusters in it, across and up
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
ASKED = ["class", "exception", "integer", "list", "import", "argument", "true", "string"]


def words_of_python():
    """Return the words of Python's help topics and of its built-ins' documentation, as numbers, and the vocabulary."""
    documented = [thing.__doc__ or "" for thing in vars(builtins).values()]
    text = " ".join([*pydoc_data.topics.topics.values(), *documented]).lower()
    words = re.findall(r"[a-z_]{2,}", text)
    counts = Counter(words)
    vocabulary = [word for word, count in counts.most_common() if count >= RARE]
    number = {word: i for i, word in enumerate(vocabulary)}
    return np.array([number[word] for word in words if word in number]), vocabulary


def near_pairs(words, rng):
    """Return pairs of words that stand near each other, in random order; the most frequent words are thinned out."""
    counts = np.bincount(words)
    kept = rng.random(len(words)) < np.sqrt(1e-3 * len(words) / counts[words])
    words = words[kept]
    pairs = [(words[:-distance], words[distance:]) for distance in range(1, WINDOW + 1)]
    center = np.concatenate([part for first, second in pairs for part in (first, second)])
    context = np.concatenate([part for first, second in pairs for part in (second, first)])
    order = rng.permutation(len(center))
    return center[order], context[order]


def loss_and_gradients(vectors, contexts, center, context, noise):
    """Return the loss of a batch, and for either table the rows that it touches with their gradients.

    A pair's score is the product of two vectors, and the loss its cross-entropy: near pairs are to score high, pairs
    with a random word low. Rows appear as often as their words do; their gradients are summed in the step.
    """
    others = np.concatenate([context[:, None], noise], axis=1)
    label = np.zeros(others.shape, np.float32)
    label[:, 0] = 1
    v, u = vectors[center], contexts[others]
    score = np.einsum("bd,bkd->bk", v, u)
    probability = 1 / (1 + np.exp(-score))
    loss = -np.log(np.where(label == 1, probability, 1 - probability) + 1e-9).sum(axis=1).mean()
    error = (probability - label).astype(np.float32)
    of_vectors = np.einsum("bk,bkd->bd", error, u)
    of_contexts = error[:, :, None] * v[:, None, :]
    return loss, {
        "vectors": rmsfast.Rows(center, of_vectors),
        "contexts": rmsfast.Rows(others.ravel(), of_contexts.reshape(-1, SIZE)),
    }


def train(words, size, console):
    """Return the trained tables, the losses, and the gradients of the last batch."""
    rng = np.random.default_rng(0)
    tables = {
        "vectors": (rng.uniform(-0.5, 0.5, (size, SIZE)) / SIZE).astype(np.float32),
        "contexts": np.zeros((size, SIZE), np.float32),
    }
    opt = rmsfast.RMSProp(tables, lr=5e-3, beta=0.95, eps=1e-4)
    frequency = np.bincount(words, minlength=size) ** 0.75
    chance = np.cumsum(frequency / frequency.sum())
    losses, shown = [], (1 + NEGATIVES) * np.log(2)  # the loss of tables that know nothing: each score is 0
    columns = TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as progress:
        for epoch in range(EPOCHS):
            opt.lr = 5e-3 * (1 - epoch / EPOCHS)
            center, context = near_pairs(words, rng)
            task = progress.add_task("", total=len(center) // BATCH, epoch=f"{epoch + 1} of {EPOCHS}", loss=shown)
            for first in range(0, len(center) - BATCH + 1, BATCH):
                batch = slice(first, first + BATCH)
                noise = np.searchsorted(chance, rng.random((BATCH, NEGATIVES)))
                loss, gradients = loss_and_gradients(
                    **tables, center=center[batch], context=context[batch], noise=noise
                )
                opt.step(gradients)
                losses.append(loss)
                shown = np.mean(losses[-50:])
                progress.update(task, advance=1, loss=shown)
    return tables, losses, gradients


def neighbours(vectors, vocabulary, count=6):
    """Return a table of the nearest words of some, by the cosine of the angle between the vectors."""
    unit = directions(vectors)
    table = Table("word", "nearest words")
    for word in ASKED:
        nearest = np.argsort(unit @ unit[vocabulary.index(word)])[::-1][1 : count + 1]
        table.add_row(word, ", ".join(vocabulary[i] for i in nearest))
    return table


def compare_with_dense(gradients, console):
    """Time a step by rows, and one with the same rows scattered into arrays of zeros, on tables of 200 000 words."""
    size = 200_000
    rng = np.random.default_rng(1)
    rows = {name: rmsfast.Rows(rng.integers(0, size, len(g.indices)), g.values) for name, g in gradients.items()}
    dense = {name: np.zeros((size, SIZE), np.float32) for name in rows}
    for name, g in rows.items():
        np.add.at(dense[name], g.indices, g.values)
    tables = [{name: np.zeros((size, SIZE), np.float32) for name in rows} for _ in range(2)]
    optimizers, times = [rmsfast.RMSProp(each) for each in tables], [np.inf, np.inf]
    for turn in range(48):
        i = turn // 4 % 2  # four steps of one, four of the other, and the least time counts: other work slows both
        start = perf_counter()
        optimizers[i].step((rows, dense)[i])
        times[i] = min(times[i], perf_counter() - start)
    console.print(
        f"with 200 000 words, a step by rows takes {times[0] * 1e6:.0f} µs, and a dense one {times[1] * 1e6:.0f} µs: "
        f"[bold]{times[1] / times[0]:.0f} times as long[/bold], and it would move all other rows' averages"
    )


def clusters(vectors, vocabulary):
    """Return the words of the tightest clusters of frequent words, each from its middle outwards.

    Words are in one cluster if their vectors have nearly one direction, beside that of all. The clusters are in columns
    from left to right, and in these from bottom to top, by the two main directions of their middles.
    """
    columns, rows = GRID
    frequent = [i for i, word in enumerate(vocabulary[:FREQUENT]) if len(word) > 3]
    unit = directions(vectors[frequent])
    unit = directions(unit - unit.mean(axis=0))
    of = AgglomerativeClustering(FREQUENT // 6, metric="cosine", linkage="average").fit_predict(unit)
    groups = [np.flatnonzero(of == k) for k in range(FREQUENT // 6)]
    groups = [group for group in groups if 4 <= len(group) <= 7]
    groups.sort(key=lambda group: -np.linalg.norm(unit[group].mean(axis=0)))  # 1, if all are the same
    groups = groups[: columns * rows]
    middles = np.array([unit[group].mean(axis=0) for group in groups])
    words = [
        [vocabulary[frequent[i]] for i in group[np.argsort(-unit[group] @ middle)]]
        for group, middle in zip(groups, middles, strict=True)
    ]
    _, _, axes = np.linalg.svd(middles - middles.mean(axis=0), full_matrices=False)
    across, up = axes[:2] @ middles.T
    return [
        [words[k] for k in sorted(column, key=lambda k: up[k])]
        for column in np.array_split(np.argsort(across), columns)
    ]


def directions(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def draw(vectors, vocabulary, losses, name):
    figure = plt.figure(figsize=(8.2, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 3.2])
    bold = {"loc": "left", "size": 9.5, "weight": "bold"}
    left.plot(np.convolve(losses, np.ones(50) / 50, "valid"), color="#0072b2")
    left.set(xlabel="step", ylabel="loss, mean of 50 steps")
    left.set_title("Training", **bold)
    cells = [
        (k, row, words) for k, column in enumerate(clusters(vectors, vocabulary)) for row, words in enumerate(column)
    ]
    for column, row, words in cells:
        right.add_patch(plt.Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, color="#e6f1f8", zorder=0))
        right.annotate(words[0], (column + 0.1, row + 0.92), va="top", size=9, weight="bold", color="#005280")
        text = "\n".join(words[1:])
        right.annotate(text, (column + 0.1, row + 0.77), va="top", size=8, linespacing=1.15)
    right.set(xlim=(0, GRID[0]), ylim=(0, GRID[1]))
    right.axis("off")
    right.set_title("Clusters of frequent words by their vectors, the word in the middle first", **bold)
    figure.suptitle("Words that Python's documentation uses alike have come together", size=12, weight="bold")
    figure.savefig(name, dpi=200)


def main() -> int:
    console = Console(highlight=False, width=110)
    words, vocabulary = words_of_python()
    console.print(f"{len(words):,} words of Python's own documentation, {len(vocabulary):,} different ones\n")
    tables, losses, gradients = train(words, len(vocabulary), console)
    console.print(neighbours(tables["vectors"], vocabulary))
    compare_with_dense(gradients, console)
    draw(tables["vectors"], vocabulary, losses, "word_vectors.png")
    console.print("picture: word_vectors.png. Look at the table: most words have neighbours of their own kind")
    return 0 if np.mean(losses[-100:]) < 0.8 * losses[0] else 1


if __name__ == "__main__":
    sys.exit(main())
