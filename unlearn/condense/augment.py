"""Differentiable Siamese augmentation: one random operation a step, the same for real and synthetic images.

Source: Zhao and Bilen 2021, "Dataset condensation with differentiable Siamese augmentation"; ranges as in its code.
Operations act on one image [h w c] with parameters drawn from a key; gradients flow through them to the pixels.
Siamese means that all images of a class, real and synthetic, get the operation and parameters of one key.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from whence.cache.errors import check_known

Image = Float[Array, "h w c"]


def brightness(key: Array, x: Image) -> Image:
    """Add a number in [-0.5, 0.5]."""
    return x + jax.random.uniform(key, minval=-0.5, maxval=0.5)


def saturation(key: Array, x: Image) -> Image:
    """Stretch the distance of every pixel from its grey by a factor in [0, 2]."""
    grey = x.mean(-1, keepdims=True)
    return grey + (x - grey) * jax.random.uniform(key, maxval=2.0)


def contrast(key: Array, x: Image) -> Image:
    """Stretch the distance from the image's mean by a factor in [0.5, 1.5]."""
    mean = x.mean()
    return mean + (x - mean) * jax.random.uniform(key, minval=0.5, maxval=1.5)


def colour(key: Array, x: Image) -> Image:
    for number, operation in enumerate((brightness, saturation, contrast)):
        x = operation(jax.random.fold_in(key, number), x)
    return x


def crop(key: Array, x: Image) -> Image:
    """Shift by up to an eighth of the size, zeros from outside."""
    h, w, _ = x.shape
    reach = (int(h * 0.125 + 0.5), int(w * 0.125 + 0.5))
    padded = jnp.pad(x, ((reach[0], reach[0]), (reach[1], reach[1]), (0, 0)))
    first, second = jax.random.split(key)
    at = (jax.random.randint(first, (), 0, 2 * reach[0] + 1), jax.random.randint(second, (), 0, 2 * reach[1] + 1), 0)
    return jax.lax.dynamic_slice(padded, at, x.shape)


def cutout(key: Array, x: Image) -> Image:
    """Zero a square of half the size, anywhere."""
    h, w, _ = x.shape
    size = (int(h * 0.5 + 0.5), int(w * 0.5 + 0.5))
    first, second = jax.random.split(key)
    top = jax.random.randint(first, (), 0, h + 1 - size[0] % 2) - size[0] // 2
    left = jax.random.randint(second, (), 0, w + 1 - size[1] % 2) - size[1] // 2
    row, column = jnp.arange(h)[:, None], jnp.arange(w)[None]
    inside = (row >= top) & (row < top + size[0]) & (column >= left) & (column < left + size[1])
    return x * ~inside[..., None]


def flip(key: Array, x: Image) -> Image:
    """Mirror left and right half of the time."""
    return jnp.where(jax.random.bernoulli(key), x[:, ::-1], x)


def scale(key: Array, x: Image) -> Image:
    """Stretch rows and columns by factors in [1/1.2, 1.2] each."""
    factors = jax.random.uniform(key, (2,), minval=1 / 1.2, maxval=1.2)
    return _sample(x, jnp.diag(factors))


def rotate(key: Array, x: Image) -> Image:
    """Turn by up to 15 degrees either way."""
    angle = jax.random.uniform(key, minval=-1.0, maxval=1.0) * jnp.pi / 12
    return _sample(x, jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]))


def _sample(x: Image, turn: Float[Array, "2 2"]) -> Image:
    """The image read at `turn` times each place (from the centre), bilinearly, zeros outside."""
    h, w, c = x.shape
    centre = jnp.array([(h - 1) / 2, (w - 1) / 2])
    places = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), -1) - centre
    wanted = jnp.einsum("ij,hwj->ihw", turn, places) + centre[:, None, None]
    channels = [jax.scipy.ndimage.map_coordinates(x[..., i], list(wanted), order=1) for i in range(c)]
    return jnp.stack(channels, -1)


OPERATIONS: dict[str, Callable[[Array, Image], Image]] = {
    "colour": colour, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate,
}  # fmt: skip


def check_operations(names: tuple[str, ...]) -> None:
    for name in names:
        check_known("augmentation", name, OPERATIONS)


def augment(
    key: Array, x: Float[Array, "n h w c"], names: tuple[str, ...], siamese: bool = True
) -> Float[Array, "n h w c"]:
    """One of the named operations, drawn from the key, on every image; the same parameters for all when siamese,
    else own parameters for each. Nothing happens where no operation is named."""
    if not names:
        return x
    which, inside = jax.random.split(key)
    keys = None if siamese else jax.random.split(inside, len(x))
    branches = [
        (lambda x, f=OPERATIONS[name]: jax.vmap(lambda image: f(inside, image))(x))
        if siamese
        else (lambda x, f=OPERATIONS[name]: jax.vmap(f)(keys, x))
        for name in names
    ]
    return jax.lax.switch(jax.random.randint(which, (), 0, len(names)), branches, x)
