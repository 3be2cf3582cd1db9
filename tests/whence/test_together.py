"""What the packages do together, on the demo's kind of model in small."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from whence import attrib, decomp
from whence.cache import LanguageModelling, TrainedModel
from whence.corpora import language_reference
from whence.corpora.corpus import query_examples
from whence.decomp.kernels import densify
from whence.language_model import Shape, Training, new_model, train_language_model

SITE = "blocks.0.mlp.fc_in"
AT = f"{SITE}.hook_in"


@pytest.fixture(scope="module")
def parts():
    corpus = language_reference()
    train = corpus.train.select(range(24))
    model = new_model(Shape(layers=1, width=16, heads=2, context=128, vocabulary=len(corpus.vocabulary)))
    train_language_model(model, train, Training(epochs=1, batch=8), quiet=True)
    queries = query_examples(["The assert statement", "A class"], [" is", " defines"], corpus.vocabulary)
    trained = TrainedModel(model, train, LanguageModelling(), sites="*.mlp.*", quiet=True)
    dictionary = decomp.ITDA(size=64, k=4, unexplained=0.05).build(decomp.observe(trained, AT))
    return attrib.EKFAC().fit(trained), queries, dictionary


def test_influence_splits_by_atom_and_the_parts_add_up(parts) -> None:
    factors, queries, dictionary = parts
    by_atom = factors.score(queries, through=dictionary)
    whole = factors.score(queries, per_site=True).sel(site=SITE)
    np.testing.assert_allclose(by_atom.sum("atom").values, whole.values, atol=1e-5 * np.abs(whole.values).max())
    assert len(by_atom["atom"]) > 10
    assert set(by_atom["atom"].values) >= {by_atom.attrs["residual"], by_atom.attrs["constant"]}


def test_the_gradient_of_an_atom_s_mean_activation_is_a_difference(parts) -> None:
    """The value is that of the code; the gradient is compared with encoding again after a small step of the weights
    before the hook point."""
    factors, queries, dictionary = parts
    trained, task = factors.trained, factors.trained.task
    inputs = [decomp.observe(trained, AT, queries.select([q])).whole().x for q in range(len(queries))]
    whole = [np.asarray(densify(dictionary.encode(x), 64)).mean(0) for x in inputs]
    atom = int(np.abs(whole).min(0).argmax())  # active in both prompts
    activation = attrib.ActivationMeasurement(task, AT, decomp.Coefficient(dictionary, atom))
    batch, model = queries.batch(np.arange(len(queries))), trained.model
    measured = activation.measurement(model, batch)
    np.testing.assert_allclose(measured.detach().numpy(), np.array(whole)[:, atom], atol=1e-5)
    table = model.get_parameter(next(n for n, _ in model.named_parameters() if "embed" in n))
    (gradient,) = torch.autograd.grad(measured.sum(), table)
    step = gradient / gradient.norm() * 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            table += sign * step
            values.append(float(activation.measurement(model, batch).sum()))
            table -= sign * step
    assert (values[0] - values[1]) / 2 == pytest.approx(float((gradient * step).sum()), rel=2e-2)


def test_scores_of_an_atom_s_activation(parts) -> None:
    """The factors of the training task serve; sites after the hook point have no influence on it."""
    factors, queries, dictionary = parts
    trained = factors.trained.replace(sites=["*.attn.*", "*.mlp.*"])
    code = dictionary.encode(decomp.observe(trained, AT, queries.select([0])).whole().x)
    task = attrib.ActivationMeasurement(trained.task, AT, decomp.Coefficient(dictionary, int(code.indices[0, 0])))
    found = attrib.EKFAC().fit(trained).measuring(task).score(queries.select([0]), per_site=True)
    assert found.attrs["units"] == "activation"
    assert found.sel(site="blocks.0.attn.v").values.any()
    assert not found.sel(site=SITE).values.any()
    other = replace(task, readout=decomp.Coefficient(dictionary, int(code.indices[0, 1])))
    assert other.settings != task.settings
