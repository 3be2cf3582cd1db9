"""What condensed sets are used for and compared with: selection, time to accuracy, velocity, continual learning,
provenance, the report and the commands."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.pages import HOSTILE, Tags
from whence.cache.errors import DataError, UsageError
from whence.unlearn.condense import (
    MLP,
    Condensed,
    Pool,
    Settings,
    Training,
    accuracy_curve,
    condense,
    kernel_velocity,
    select,
)
from whence.unlearn.condense.continual import average_after, by_class, by_domain, chosen, condensed, run
from whence.unlearn.condense.dynamics import tangent_kernel
from whence.unlearn.condense.matching import distance, weighted_gradient

from .cases import image_pool, vector_pool

NET = MLP((8,))
SMALL = Settings(network=NET, per_class=2, outer=2, inner=2, epochs=1, real_batch=8, warm_outer=0)


@pytest.fixture(scope="module")
def made() -> Condensed:
    return condense(vector_pool(), SMALL, quiet=True)[0]


def test_selection_rules_against_their_definitions():
    pool = vector_pool()
    for rule in ("random", "herding", "k-centre"):
        kept = select(pool, rule, 4, seed=1)
        assert (kept.counts == 4).all()
        assert np.isin(kept.ids, pool.ids).all()
    flat = pool.x[pool.y == 0]
    herded = select(pool, "herding", 3).x[:3]
    first = np.square(flat - flat.mean(0)).sum(1).argmin()
    np.testing.assert_array_equal(herded[0], flat[first])
    second = [np.square((flat[first] + f) / 2 - flat.mean(0)).sum() for f in flat]
    second[first] = np.inf
    np.testing.assert_array_equal(herded[1], flat[int(np.argmin(second))])
    centres = select(pool, "k-centre", 3).x[:3]
    farthest = np.square(flat - centres[0]).sum(1).argmax()
    np.testing.assert_array_equal(centres[1], flat[farthest])
    with pytest.raises(UsageError, match="no rule of selection"):
        select(pool, "best", 1)
    with pytest.raises(DataError, match="class 0 has 30"):
        select(pool, "random", 31)


def test_time_to_accuracy_of_repeated_sampling_and_of_a_fixed_set(made):
    pool, test = vector_pool(), vector_pool(seed=5)
    test = Pool.of((pool.scaling.undo(test.x), test.y), scaling=pool.scaling)
    training = Training(epochs=60, lr=0.05)
    new = accuracy_curve(pool, test, NET, training, per_class=2, moments=6, networks=2)
    same = accuracy_curve(made, test, NET, training, moments=6, networks=2)
    for curve in (new, same):
        assert curve.accuracy.shape == (2, 6)
        np.testing.assert_array_equal(curve.seen, 60 * np.arange(1, 7))
        assert curve.accuracy[:, -1].mean() > 60
    level = float(new.accuracy.mean(0)[2])
    assert new.reached(level) <= 180
    assert new.reached(101.0) is None


def test_the_tangent_kernel_is_the_product_of_jacobians_and_stands_still_without_training(made):
    params = jax.jit(lambda key: NET.init(key, (5,), 3))(jax.random.key(0))
    x = jnp.asarray(vector_pool().x[:6])
    kernel = np.asarray(jax.jit(lambda p: tangent_kernel(NET, p, x))(params))
    rows, one = [], jax.jit(jax.grad(lambda p, point: NET(p, point[None]).sum()))
    for point in x:
        gradient = one(params, point)
        rows.append(np.concatenate([np.asarray(g).ravel() for g in jax.tree.leaves(gradient)]))
    np.testing.assert_allclose(kernel, np.stack(rows) @ np.stack(rows).T, rtol=1e-4)
    still = Training(epochs=0, momentum=0.0, weight_decay=0.0, drop=False)
    np.testing.assert_array_equal(kernel_velocity(made, np.asarray(x), NET, 3, training=still), 0)
    slow, fast = (
        kernel_velocity(made, np.asarray(x), NET, 3, training=replace(still, epochs=2, lr=lr)).mean()
        for lr in (0.01, 0.1)
    )
    assert 0 < slow < fast


def test_a_set_shows_its_examples_and_its_card(made):
    left, right = Figure().subplots(1, 2)
    assert made.plot_examples(left) is left
    assert made.plot_losses(right) is right
    np.testing.assert_allclose(right.lines[0].get_ydata(), made.losses)
    told = replace(made, about={**made.about, "note": HOSTILE})
    html = told._repr_html_()
    assert "data:image/png" in html
    assert HOSTILE[:30] in Tags(html).text
    assert "<script" not in html
    assert repr(made) == "Condensed(6 examples [5] of 3 classes, dcc)"


def test_contributions_add_up_to_the_sum_of_cosines(made):
    pool = vector_pool(each=10)
    labels, one_hot = made.labels, np.eye(3, dtype=np.float32)
    gradient = jax.jit(weighted_gradient, static_argnums=0)
    still = Training(epochs=0, momentum=0.0, weight_decay=0.0, drop=False)
    for contrast in (True, False):
        found = made.contributions(pool, NET, contrast=contrast, networks=1, training=still)
        assert found.shape == (6, 30)
        fresh, _ = jax.random.split(jax.random.split(jax.random.key(0), 1)[0])
        params = jax.jit(lambda key: NET.init(key, (5,), 3))(fresh)
        total = 0.0
        for classes in [[0, 1, 2]] if contrast else [[0], [1], [2]]:
            sides = []
            for x, y, given in ((pool.x, pool.y, one_hot[pool.y]), (made.x, made.y, labels)):
                mine = np.isin(y, classes)
                weight = jnp.full(int(mine.sum()), 1 / mine.sum(), jnp.float32)
                sides.append(gradient(NET, params, jnp.asarray(x[mine]), jnp.asarray(given[mine]), weight))
            outputs = 8 + 3
            total += outputs - float(distance(*sides))
        np.testing.assert_allclose(float(found.sum()), total, rtol=1e-3)
        other = made.y[:, None] != pool.y[None]
        assert (np.abs(found.values[other]).max() > 0) == contrast
    with pytest.raises(UsageError, match="No network"):
        made.contributions(pool, NET, networks=0)


def test_an_example_pulls_hardest_on_its_own_copy():
    pool = vector_pool(each=10)
    rows = [0, 10, 20]
    copy = Condensed(pool.x[rows], np.eye(3, dtype=np.float32), pool.scaling, np.zeros(0), pool.ids[rows])
    found = copy.contributions(pool, NET, contrast=False, networks=4)
    for s, row in enumerate(rows):
        own = found.sel(synthetic=-1 - s, real=row).item()
        assert own > float(found.sel(synthetic=-1 - s)[pool.y == s].mean())


def test_continual_learning_by_domain_and_by_class():
    train, test = vector_pool(each=40), vector_pool(seed=5)
    turned = [replace(p, x=np.ascontiguousarray(p.x[:, ::-1])) for p in (train, test)]
    tasks = by_domain({"first": (train, test), "turned": (turned[0], turned[1])})
    training = Training(epochs=60, lr=0.05, batch=200, momentum=0.9, drop=False)
    memories = {
        "condensed": condensed(replace(SMALL, per_class=4)),
        "none": lambda pool, seed: None,
    }
    found = run(tasks, memories, NET, training, (0, 1))
    assert found.dims == ("memory", "seed", "after", "task")
    assert np.isnan(found.sel(after="first", task="turned")).all()
    remembered = found.sel(after="turned", task="first").mean("seed")
    assert float(remembered.sel(memory="condensed")) > float(remembered.sel(memory="none")) + 5
    np.testing.assert_allclose(average_after(found).sel(after="first"), found.sel(after="first", task="first"))
    classes = by_class(train, test, [(0, 1), (2,)])
    assert [t.classes for t in classes] == [(0, 1), (2,)]
    assert set(classes[1].train.y) == {0}
    found = run(classes, {"random": chosen("random", 4)}, NET, training)
    assert float(found.sel(after="classes 2", task="classes 2").item()) > 50
    assert float(found.sel(after="classes 2", task="classes 0, 1").item()) > 30
    with pytest.raises(DataError, match="different shapes"):
        run([*tasks, *by_domain({"x": (image_pool(), image_pool())})], memories, NET, training)


def test_the_report_shows_the_grid_and_the_card(tmp_path, made):
    page = made.report(tmp_path / "page.html", "a < b").read_text()
    assert "a &lt; b" in page
    assert "data:image/png;base64," in page
    assert "real_batch" in page
    assert "src=http" not in page
    pool = image_pool(channels=3)
    pictures = Condensed(pool.x[[0, 7, 16]], np.eye(3), pool.scaling, np.zeros(1), np.arange(3))
    assert pictures.grid().shape == (15, 5, 3)
    assert made.grid().shape == (6, 5, 3)


def test_commands_condense_judge_and_report(tmp_path, capsys, store, monkeypatch):
    from whence.commands.condense import COMMANDS

    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    pool = image_pool(channels=1)
    x = pool.scaling.undo(pool.x)
    data = tmp_path / "data.npz"
    np.savez(data, x_train=x, y_train=pool.y, x_test=x, y_test=pool.y)
    out = tmp_path / "set.safetensors"
    common = {"data": str(data), "json": True}
    COMMANDS["run"](out=out, network="mlp-4", outer=2, inner=2, epochs=1, real_batch=4, quiet=True, **common).run()
    assert json.loads(capsys.readouterr().out)[0]["path"] == str(out)
    two, rows = tmp_path / "two.npz", [0, 1, 7, 8, 16, 17]
    Condensed(pool.x[rows], np.eye(3)[pool.y[rows]], pool.scaling, np.zeros(1), np.arange(6), {"data": "other"}).save(
        two
    )
    COMMANDS["evaluate"]((out, two), networks=("mlp-4",), count=1, passes=1, baselines=("herding",), **common).run()
    said = capsys.readouterr()
    assert set(json.loads(said.out)) == {str(out), str(two), "herding, 1 per class", "herding, 2 per class"}
    assert f"{two} was condensed from other data" in said.err
    assert f"{out} was condensed" not in said.err
    assert "accuracy mlp-4" in Condensed.load(out).about["measured"]
    own = {"experts=1", "epochs=1", "latest=0", "span=1", "steps=1"}
    COMMANDS["run"](
        out=two, method="mtt", set=tuple(own), network="mlp-4", outer=1, augment=(), quiet=True, **common
    ).run()
    assert Condensed.load(two).about["settings"]["method"]["experts"] == 1
    COMMANDS["run"](out=two, method="lgm", pretrain=1, network="mlp-4", outer=1, augment=(), quiet=True, **common).run()
    assert "Pretrained" in Condensed.load(two).about["settings"]["network"]
    capsys.readouterr()
    COMMANDS["evaluate"](
        (two,), data=str(data), networks=("mlp-4",), count=1, passes=1, baselines=("el2n",), robust=True
    ).run()
    assert "LRS" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no setting 'expert'"):
        COMMANDS["run"](out=two, method="mtt", set=("expert=1",), **common).run()
    COMMANDS["report"](set=out).run()
    assert out.with_suffix(".html").exists()
    np.savez(data, x_train=x, y_train=pool.y, x_test=x)
    with pytest.raises(DataError, match="no array y_test"):
        COMMANDS["run"](out=out, network="mlp-4", quiet=True, **common).run()
    with pytest.raises(DataError, match="no labelled data set"):
        COMMANDS["run"](data="nowhere", out=out).run()
    with pytest.raises(UsageError, match="no ending that names"):  # said before the work
        COMMANDS["run"](data="nowhere", out=tmp_path / "set.pt").run()
    with pytest.raises(UsageError, match="No set is given"):
        COMMANDS["evaluate"](sets=()).run()
