"""skorch with rmsfast: `optimizer=` of the net, its settings as `optimizer__lr`, and scikit-learn's grid search.

    python examples/clients/skorch_search.py

Needs `pip install ".[clients]"`.
"""

import torch
from beside import compare
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier

torch.set_num_threads(1)
digits = load_digits()
x, labels = (digits.images[:600].reshape(600, 64) / 16).astype("float32"), digits.target[:600]


def train(optimizer_class: type) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    net = NeuralNetClassifier(
        model,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=optimizer_class,
        max_epochs=5,
        batch_size=16,
        train_split=None,
        verbose=0,
    )
    search = GridSearchCV(net, {"optimizer__lr": [1e-4, 1e-3], "optimizer__momentum": [0.0, 0.9]}, cv=2)
    best = search.fit(x, labels)
    assert best.best_score_ > 0.8, best.cv_results_
    return best.best_estimator_.module_


compare(train)
