"""Layers, networks, distance and the matching losses, against plain autograd and eager torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from whence.cache import UsageError
from whence.cache.errors import ModelError
from whence.unlearn.condense import MLP, ConvNet, Settings, network
from whence.unlearn.condense.axes import each
from whence.unlearn.condense.layers import conv, normalise, pool
from whence.unlearn.condense.matching import cross_entropy, distance, weighted_gradient
from whence.unlearn.condense.methods import METHODS
from whence.unlearn.condense.methods.method import class_by_class
from whence.unlearn.condense.networks import LeNet, ResNet
from whence.unlearn.condense.outer import step_of
from whence.unlearn.condense.pool import draw

from .cases import image_pool
from .reference import TorchConvNet, one_seed_sgd, torch_matching

NET, DENSE = ConvNet(depth=2, width=4), MLP((6, 5))


def begin(net, seed=0, shape=(4, 4, 2)):
    return jax.jit(lambda key: net.init(key, shape, 3))(jax.random.key(seed))


def plain_conv(x, weight, k, pad):
    kernel = weight.reshape(k, k, x.shape[-1], -1)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("k", "pad"), [(1, 0), (3, 1), (5, 2), (3, 0)])
def test_convolution_and_its_first_and_second_derivatives(k, pad):
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    weight = jax.random.normal(jax.random.key(1), (k * k * 3, 4))

    def first(f):
        return lambda x, w: jax.grad(lambda w: jnp.sum(jnp.tanh(f(x, w, k, pad))))(w)

    def second(f):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(first(f)(x, w))), argnums=(0, 1))

    for order in (lambda f: lambda x, w: f(x, w, k, pad), first, second):
        mine, plain = jax.jit(order(conv))(x, weight), jax.jit(order(plain_conv))(x, weight)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), mine, plain)


def test_normalisation_and_pooling_against_torch():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 8)).astype(np.float32)
    images = torch.tensor(x).permute(0, 3, 1, 2)
    scale, shift = np.arange(8, dtype=np.float32), np.ones(8, np.float32)
    for groups in (1, 4, 8):
        expected = torch.nn.functional.group_norm(images, groups, torch.tensor(scale), torch.tensor(shift))
        found = normalise(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(shift), groups)
        np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-5)
    for kind, of_torch in (("average", torch.nn.functional.avg_pool2d), ("max", torch.nn.functional.max_pool2d)):
        np.testing.assert_allclose(pool(jnp.asarray(x), kind), of_torch(images, 2).permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize(
    "net", [MLP((6, 5)), ConvNet(2, 4, "group", "max"), ConvNet(1, 4, "none", "none", "leaky"), LeNet(), ResNet(4, 2)]
)
def test_every_network_gives_logits_from_its_features(net):
    params = begin(net, 0, (8, 8, 2))
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    logits, features = jax.jit(lambda p, x: (net(p, x), net.features(p, x)))(params, x)
    assert logits.shape == (4, 3)
    np.testing.assert_allclose(logits, features @ params["head.weight"] + params["head.bias"], atol=1e-5)


def test_networks_by_name():
    assert network("mlp-64-32") == MLP((64, 32))
    assert network("convnet-2-16-none") == ConvNet(2, 16, "none")
    assert network("lenet") == LeNet()
    assert network("resnet-8-2") == ResNet(8, 2)
    for wrong in ("vgg", "convnet-x", "lenet-3", "convnet-2-16-batch"):
        with pytest.raises(UsageError):
            network(wrong)


@pytest.mark.parametrize("net", [ConvNet(3, 4), LeNet(), ResNet(4, 3)])
def test_a_network_that_does_not_fit_says_so(net):
    with pytest.raises(ModelError, match="does not fit"):
        net.init(jax.random.key(0), (3, 3, 1), 3)
    with pytest.raises(ModelError, match="takes images"):
        net.init(jax.random.key(0), (9,), 3)


def test_distance_formula_and_its_derivative_at_zero():
    rng = np.random.default_rng(0)
    a = {"w": rng.normal(size=(5, 3)).astype(np.float32), "b": np.ones(3, np.float32)}
    b = {"w": rng.normal(size=(5, 3)).astype(np.float32), "b": -np.ones(3, np.float32)}
    a["w"][:, 1] = b["w"][:, 1] = 0.0
    naive = 0.0
    for o in range(3):
        u, v = a["w"][:, o], b["w"][:, o]
        naive += 1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v) + 1e-6)
    a, b = jax.tree.map(jnp.asarray, (a, b))
    np.testing.assert_allclose(distance(a, b), naive, rtol=1e-5)
    np.testing.assert_allclose(distance(a, a), 1.0, atol=1e-4)  # the dead output counts one
    assert np.isfinite(jax.grad(lambda b: distance(a, b))(b)["w"]).all()


def test_blocks_do_not_change_a_gradient():
    params = begin(DENSE, 0)
    x = jax.random.normal(jax.random.key(1), (11, 4, 4, 2))
    labels, weight = jax.nn.one_hot(jnp.arange(11) % 3, 3), jnp.linspace(0.0, 1.0, 11)
    whole = weighted_gradient(DENSE, params, x, labels, weight)
    for block in (1, 4, 11):
        parts = jax.jit(lambda p, b=block: weighted_gradient(DENSE, p, x, labels, weight, b))(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)


def _one_step(settings, parts, data, made):
    params = begin(settings.network, 3, data.shape)
    step = step_of(settings, params, data.reals(), jax.random.key(5))
    loss, gradient = jax.jit(lambda made: settings.rule.loss_and_gradient(jnp.asarray(parts), made, step))(made)
    drawn, _ = jax.random.split(jax.random.key(5))
    reals = data.reals()
    rows, weights = draw(drawn, reals.rows, reals.counts, settings.real_batch)
    return params, np.asarray(rows), np.asarray(weights), float(loss), np.asarray(gradient["x"])


@pytest.mark.parametrize("contrast", [False, True])
def test_the_matching_step_is_the_published_one_class_after_class_in_torch(contrast):
    data = image_pool()
    settings = Settings(network=NET, per_class=2, real_batch=5)
    made = {"x": jax.random.normal(jax.random.key(7), (3, 2, *data.shape))}
    parts = np.arange(3)[None] if contrast else class_by_class(3)
    params, rows, _, loss, gradient = _one_step(settings, parts, data, made)
    model = TorchConvNet(params, 2)
    expected, pixels = torch_matching(model, data.x[rows], np.arange(3), np.asarray(made["x"]), contrast)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, pixels, atol=2e-4 * np.abs(pixels).max())


def test_the_gradient_of_all_classes_together_is_the_mean_of_theirs():
    data, params = image_pool(), begin(DENSE, 0)
    labels = np.eye(3, dtype=np.float32)[data.y]
    weight = (1 / data.counts)[data.y].astype(np.float32) / 3
    x, labels, weight = jnp.asarray(data.x), jnp.asarray(labels), jnp.asarray(weight)
    together = weighted_gradient(DENSE, params, x, labels, weight)
    apart = []
    for c in range(3):
        mine = data.y == c
        share = jnp.full(int(mine.sum()), 1 / mine.sum(), jnp.float32)
        one_class = jax.jit(lambda p, x, y, w: jax.grad(cross_entropy, argnums=1)(DENSE, p, x, y, w))
        apart.append(one_class(params, x[mine], labels[mine], share))
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, sum(b) / 3, atol=1e-6), together, *apart)


def test_groups_reach_from_dcc_to_dc():
    data, made = image_pool(), {"x": jax.random.normal(jax.random.key(7), (3, 2, 4, 4, 2))}
    assert len({type(METHODS[name]).loss for name in ("subgroup", "dcc", "dc")}) == 1

    def sets(method, groups=1):
        parts = METHODS[method].parts(data, groups)
        return {frozenset(part[part >= 0].tolist()) for part in parts}

    assert sets("subgroup", 1) == sets("dcc") == {frozenset({0, 1, 2})}
    assert sets("subgroup", 3) == sets("dc") == {frozenset({c}) for c in range(3)}
    padded = METHODS["subgroup"].parts(data, 2)
    assert sorted(padded[padded >= 0]) == [0, 1, 2]
    assert (padded < 0).sum() == 1
    # what pads a part counts nothing: a class taken twice, at half its weight, does the same
    settings = Settings(method="subgroup", network=DENSE, per_class=2, real_batch=12, groups=2)
    step = step_of(settings, begin(DENSE, 3, data.shape), data.reals(), jax.random.key(5))
    run = jax.jit(lambda parts: settings.rule.loss_and_gradient(parts, made, step))
    twice = np.where(padded < 0, padded.max(1, keepdims=True), padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run(padded), run(twice))
    with pytest.raises(UsageError, match="4 groups"):
        METHODS["subgroup"].parts(data, 4)


def test_a_loop_and_a_vectorised_axis_do_the_same():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    for count in (3, 1):
        a, b = (each(lambda r, s: (r @ s, r * 2), v)(x[:count], x[:count]) for v in (True, False))
        jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-6), a, b)


def test_draws_do_not_repeat_and_weigh_what_a_class_has():
    data = image_pool()
    reals = data.reals()
    rows, weights = draw(jax.random.key(0), reals.rows, reals.counts, 9)
    np.testing.assert_allclose(np.asarray(weights).sum(1), 1.0, rtol=1e-6)
    for c, count in enumerate((7, 9, 9)):
        mine = np.asarray(rows)[c][np.asarray(weights)[c] > 0]
        assert len(mine) == len(set(mine.tolist())) == count
        assert (data.y[mine] == c).all()


def test_training_is_torchs_sgd_with_momentum_decay_and_drop():
    from whence.unlearn.condense.training import Training, fit

    data, params = image_pool(), begin(NET, 2)
    labels = np.eye(3, dtype=np.float32)[data.y]
    training = Training(epochs=6, lr=0.1, momentum=0.9, weight_decay=0.01, batch=100)
    run = jax.jit(lambda params, x, labels: fit(NET, params, jax.random.key(0), x, labels, training))
    mine = run(params, jnp.asarray(data.x), jnp.asarray(labels))
    model = TorchConvNet(params, 2)
    theirs = one_seed_sgd(model, data.x, data.y, 6, 0.1, 0.9, 0.01)
    for (name, value), expected in zip(TorchConvNet(mine, 2).named_parameters(), theirs):
        np.testing.assert_allclose(value.detach(), expected, atol=2e-4, err_msg=name)
