"""What the rooms do together, on the demo's kind of model in small."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from whence import attrib, decomp
from whence.attrib import EKFAC, FitOptions
from whence.cache import LanguageModelling, TrainedModel, find_sites
from whence.corpora import language_reference
from whence.corpora.corpus import query_examples
from whence.decomp.kernels import densify
from whence.language_model import Shape, Training, new_model, train_language_model

QUIET, SITE = FitOptions(quiet=True), "blocks.0.mlp.fc_in"
AT = f"{SITE}.hook_in"


@pytest.fixture(scope="module")
def made():
    corpus = language_reference()
    train = corpus.train.select(range(24))
    model = new_model(Shape(layers=1, width=16, heads=2, context=128, vocabulary=len(corpus.vocabulary)))
    train_language_model(model, train, Training(epochs=1, batch=8), quiet=True)
    queries = query_examples(["The assert statement", "A class"], [" is", " defines"], corpus.vocabulary)
    sites = find_sites(model, "*.mlp.*", quiet=True)
    factors = EKFAC().fit(model, LanguageModelling(), train, sites=sites, options=QUIET)
    rows = decomp.observe(TrainedModel(model, train, LanguageModelling(), quiet=True), AT)
    dictionary = decomp.ITDA(size=64, k=4, unexplained=0.05).build(rows)
    return factors, model, LanguageModelling(), queries, train, dictionary


def test_influence_splits_by_atom_and_the_parts_add_up(made) -> None:
    *asked, dictionary = made
    parts = attrib.through_atoms(*asked, dictionary, options=QUIET)
    whole = attrib.score(*asked, per_site=True, options=QUIET).sel(site=SITE)
    np.testing.assert_allclose(parts.sum("atom").values, whole.values, atol=1e-5 * np.abs(whole.values).max())
    assert len(parts["atom"]) > 10
    assert set(parts["atom"].values) >= {attrib.RESIDUAL, attrib.CONSTANT}


def test_an_atom_s_mean_activation_is_the_code_s_own_and_its_gradient_a_difference(made) -> None:
    """Against encoding anew after a small step of the weights before the hook point."""
    _, model, task, queries, _, dictionary = made
    trained = TrainedModel(model, queries, task, quiet=True)
    read = [decomp.observe(trained, AT, queries.select([q])).whole().x for q in range(len(queries))]
    whole = [np.asarray(densify(dictionary.encode(x), 64)).mean(0) for x in read]
    atom = int(np.abs(whole).min(0).argmax())  # in both prompts
    who = attrib.Reading(task, AT, decomp.Coefficient(dictionary, atom))
    batch = queries.batch(np.arange(len(queries)))
    measured = who.measurement(model, batch)
    np.testing.assert_allclose(measured.detach().numpy(), np.array(whole)[:, atom], atol=1e-5)
    table = model.get_parameter(next(n for n, _ in model.named_parameters() if "embed" in n))
    (gradient,) = torch.autograd.grad(measured.sum(), table)
    step = gradient / gradient.norm() * 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            table += sign * step
            values.append(float(who.measurement(model, batch).sum()))
            table -= sign * step
    assert (values[0] - values[1]) / 2 == pytest.approx(float((gradient * step).sum()), rel=2e-2)


def test_who_built_an_atom(made) -> None:
    """The wrapped task's factors serve; sites behind the hook point have no part."""
    _, model, task, queries, train, dictionary = made
    sites = find_sites(model, ["*.attn.*", "*.mlp.*"], quiet=True)
    factors = EKFAC().fit(model, task, train, sites=sites, options=QUIET)
    code = dictionary.encode(
        decomp.observe(TrainedModel(model, queries, task, quiet=True), AT, queries.select([0])).whole().x
    )
    who = attrib.Reading(task, AT, decomp.Coefficient(dictionary, int(code.indices[0, 0])))
    found = attrib.score(factors, model, who, queries.select([0]), train, per_site=True, options=QUIET)
    assert found.attrs["units"] == "activation"
    assert found.sel(site="blocks.0.attn.v").values.any()
    assert not found.sel(site=SITE).values.any()
    other = replace(who, readout=decomp.Coefficient(dictionary, int(code.indices[0, 1])))
    assert other.settings != who.settings
