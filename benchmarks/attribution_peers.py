"""Attribution against the exact answer, beside kronfluence 1.0.1, dattri 0.3.0 and TRAK 0.3.2.

A network of 2,410 parameters on handwritten digits: small enough that (G + damping)^-1 is solved densely, in float64,
with all layers coupled. Every method that takes an absolute damping takes the same one, a tenth of G's mean diagonal;
TRAK and LoGra have scales of their own, so only correlations are compared; other settings are each library's defaults,
except for equal widths and steps. dattri's "explicit" and CG solve with the Hessian itself, which is indefinite at
damping this small; its EK-FAC takes the data's labels. Each row is a process of its own: peak memory is the process's,
imports included; times are without imports, with compilation. A peer that fails is a row with its error.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .harness import Benchmark, Run
from .peers import KRONFLUENCE, Kronfluence, peak_bytes
from .timing import timed

bench = Benchmark(__file__, __doc__, example="--only 'Whence *' 'dattri TRAK'")
BATCH, WIDTH = 128, 512  # of the peers' passes; of TRAK's projections


class Saved(NamedTuple):
    """The input of every side: the model, inputs [n 64] and labels [n] of both sets, and the damping."""

    model: nn.Sequential
    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
    damping: float


class Side(NamedTuple):
    """fit() computes what scoring needs; score(fitted) returns [query, train], larger for examples that help more."""

    fit: Callable[[], Any]
    score: Callable[[Any], np.ndarray]


class Row(NamedTuple):
    """One method of one library: the packages it is installed from, and how its side is built from what was saved."""

    packages: tuple[str, ...]
    build: Callable[[Saved, Path], Side]


def loaded(out: Path) -> Saved:
    return Saved(**torch.load(out / "problem.pt", weights_only=False))  # written by the process that started this one


def whence(name: str) -> Callable[[Saved, Path], Side]:
    def build(saved: Saved, out: Path) -> Side:
        from whence.attrib import EKFAC, KFAC, Damping
        from whence.attrib.methods import CG, TRAK, DataInf, LoGra
        from whence.cache import Classification, Examples, TrainedModel

        damping = Damping(saved.damping, "absolute")
        method: Any = {
            "EK-FAC": EKFAC(damping=damping),
            "K-FAC": KFAC(damping=damping),
            "CG": CG(ekfac=EKFAC(damping=damping)),
            "DataInf": DataInf(damping=damping),
            "LoGra": LoGra(),
            "TRAK": TRAK(width=WIDTH),
        }[name]
        train, queries = (Examples.of((x.numpy(), y.numpy())) for x, y in (saved.train, saved.queries))
        trained = TrainedModel(saved.model, train, Classification(), quiet=True)
        return Side(lambda: method.fit(trained), lambda fitted: fitted.score(queries).values)

    return build


def kronfluence(saved: Saved, out: Path) -> Side:
    torch.manual_seed(0)
    names = [name for name, module in saved.model.named_modules() if isinstance(module, nn.Linear)]
    peer = Kronfluence(saved.model, lambda model, batch: (model(batch[0]), batch[1]), names, out, BATCH)
    train, queries = (TensorDataset(*columns) for columns in (saved.train, saved.queries))
    return Side(lambda: peer.fit(train), lambda _: peer.pairwise(queries, train, saved.damping))


def dattri(name: str) -> Callable[[Saved, Path], Side]:
    def build(saved: Saved, out: Path) -> Side:
        from dattri.algorithm import influence_function as solvers
        from dattri.algorithm.logra import LoGraAttributor
        from dattri.algorithm.trak import TRAKAttributor
        from dattri.task import AttributionTask

        def loss(parameters: Any, batch: Any, reduction: str = "mean") -> Tensor:
            logits = torch.func.functional_call(saved.model, parameters, batch[0])
            return nn.functional.cross_entropy(logits, batch[1], reduction=reduction)

        def summed(parameters: Any, batch: Any) -> Tensor:  # so that EK-FAC's eigenvalues are of whole gradients
            return loss(parameters, batch, "sum")

        def of_one(parameters: Any, pair: Any) -> Tensor:
            return loss(parameters, tuple(column[None] for column in pair))

        def probability(parameters: Any, pair: Any) -> Tensor:
            return (-of_one(parameters, pair)).exp()

        def called(model: nn.Module, batch: Any, device: str) -> Tensor:  # the signature that its LoGra expects
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        # its LoGra calls the model on one example without a batch axis: the data get an axis, the model removes it
        model = nn.Sequential(nn.Flatten(), *saved.model) if name == "LoGra" else saved.model

        def task(of: Any) -> Any:
            return AttributionTask(loss_func=of, model=model, checkpoints=model.state_dict())

        attributor: Any = {
            "explicit": lambda: solvers.IFAttributorExplicit(task(loss), regularization=saved.damping),
            "CG": lambda: solvers.IFAttributorCG(task(loss), regularization=saved.damping, max_iter=20),
            "DataInf": lambda: solvers.IFAttributorDataInf(task(loss), regularization=saved.damping),
            "EK-FAC": lambda: solvers.IFAttributorEKFAC(task(summed), damping=saved.damping),
            "LoGra": lambda: LoGraAttributor(task(called), proj_dim=256, cache_dir=str(out / "dattri")),
            "TRAK": lambda: TRAKAttributor(
                task(of_one), probability, projector_kwargs={"proj_dim": WIDTH, "proj_max_batch_size": 32}
            ),
        }[name]()
        # its Hessian is of one batch, so all examples are one; the others take batches
        size = len(saved.train[0]) if name in ("explicit", "CG") else BATCH
        loaders = [
            DataLoader(TensorDataset(x[:, None] if name == "LoGra" else x, y), batch_size=size)
            for x, y in (saved.train, saved.queries)
        ]
        inputs = loaders[1:] if name == "TRAK" else loaders  # TRAK reads the training examples from its cache

        def score(_: None) -> np.ndarray:
            return attributor.attribute(*inputs).detach().numpy().T

        return Side(lambda: attributor.cache(loaders[0]), score)

    return build


def trak(saved: Saved, out: Path) -> Side:
    from trak import TRAKer

    traker = TRAKer(
        saved.model, "image_classification", len(saved.train[0]), save_dir=str(out / "trak"), device="cpu",
        proj_dim=WIDTH, use_half_precision=False, logging_level=30,
    )  # fmt: skip

    def batches(columns: tuple[Tensor, Tensor]) -> Any:
        return zip(columns[0].split(BATCH), columns[1].split(BATCH))

    def fit() -> None:
        traker.load_checkpoint(saved.model.state_dict(), model_id=0)
        for batch in batches(saved.train):
            traker.featurize(batch=batch, num_samples=len(batch[0]))
        traker.finalize_features()

    def score(_: None) -> np.ndarray:
        traker.start_scoring_checkpoint("queries", saved.model.state_dict(), 0, len(saved.queries[0]))
        for batch in batches(saved.queries):
            traker.score(batch=batch, num_samples=len(batch[0]))
        return np.array(traker.finalize_scores(exp_name="queries")).T

    return Side(fit, score)


ROWS = {
    **{f"Whence {name}": Row((), whence(name)) for name in ("EK-FAC", "K-FAC", "CG", "DataInf", "LoGra", "TRAK")},
    "kronfluence EK-FAC": Row(KRONFLUENCE, kronfluence),
    **{
        f"dattri {name}": Row(("dattri==0.3.0",), dattri(name))
        for name in ("EK-FAC", "explicit", "CG", "DataInf", "LoGra", "TRAK")
    },
    "traker TRAK": Row(("traker==0.3.2",), trak),
}


def exact(saved: Saved) -> tuple[np.ndarray, float]:
    """(1/N) grad f_q^T (G + damping)^-1 (-grad L_n) for all pairs, [query, train], and the damping: G the Gauss-Newton
    matrix of all parameters, from every example's Jacobian of its logits, in float64."""
    model, n = saved.model, len(saved.train[0])
    parameters = {name: value.detach().double() for name, value in model.named_parameters()}

    def logits(parameters: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, x[None])[0]

    def loss(parameters: Any, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits(parameters, x)[None], y[None])

    def flat(tree: dict[str, Tensor], dims: int) -> Tensor:
        return torch.cat([value.flatten(dims) for value in tree.values()], -1)

    x, y = saved.train[0].double(), saved.train[1]
    jacobians = flat(torch.func.vmap(torch.func.jacrev(logits), (None, 0))(parameters, x), 2)  # [n c p]
    p = torch.func.vmap(logits, (None, 0))(parameters, x).softmax(-1)
    root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]  # root root^T = diag(p) - p p^T
    rows = torch.einsum("ncd,ncp->ndp", root, jacobians).flatten(0, 1)
    curvature = rows.T @ rows / n
    damping = 0.1 * float(curvature.diagonal().mean())
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    train = flat(gradients(parameters, x, y), 1)
    queries = flat(gradients(parameters, saved.queries[0].double(), saved.queries[1]), 1)
    solved = torch.linalg.solve(curvature + damping * torch.eye(len(curvature), dtype=torch.float64), queries.T)
    return (solved.T @ train.T / n).numpy(), damping


def run_row(name: str, out: Path) -> None:
    """One row in this process: scores, seconds and peak memory into `out`."""
    side = ROWS[name].build(loaded(out), out)
    fit, fitted = timed(side.fit)
    score, scores = timed(lambda: np.asarray(side.score(fitted)))
    np.save(out / "scores.npy", scores)
    (out / "facts.json").write_text(json.dumps({"fit": fit, "score": score, "peak": peak_bytes()}))


for row in ROWS:
    bench.side(row, partial(run_row, row))


def problem(train: int, queries: int) -> Saved:
    from whence.problems.problem import digits_problem

    digits = digits_problem(train, queries)
    assert isinstance(digits.model, nn.Sequential)
    columns = [
        (torch.as_tensor(examples.columns["x"]), torch.as_tensor(examples.columns["y"]))
        for examples in (digits.train, digits.queries)
    ]
    return Saved(digits.model, columns[0], columns[1], 0.0)


def measured(name: str, saved: Saved, right: np.ndarray) -> list[Any]:
    """The cells of one row; its error and empty cells when the side fails."""
    from scipy.stats import spearmanr

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        torch.save(saved._asdict(), out / "problem.pt")
        process = bench.run_side(name, out, ROWS[name].packages, check=False)
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if line.strip()]
            return [lines[-1][:160] if lines else f"exit code {process.returncode}", *[None] * 4]
        facts, scores = json.loads((out / "facts.json").read_text()), np.load(out / "scores.npy")
    if scores.shape != right.shape:
        return [f"scores of shape {scores.shape} for {right.shape}", *[None] * 4]
    a, b = scores.ravel(), right.ravel()
    return [facts["fit"], facts["score"], facts["peak"] / 1e9, np.corrcoef(a, b)[0, 1], spearmanr(a, b)[0]]


@bench.case(quick={"train": 100, "queries": 10})
def digits(run: Run, train: int = 1000, queries: int = 100) -> None:
    """Every method of every library: seconds, memory, correlation with the exact scores.

    Args:
        train: training examples.
        queries: queries.
    """
    names, saved = run.selected(ROWS), problem(train, queries)
    seconds, (right, damping) = timed(lambda: exact(saved))
    size = sum(p.numel() for p in saved.model.parameters())
    run.say(f"{size} parameters, {train} training examples, {queries} queries, damping {damping:.3e}; "
            f"exact solution in {seconds:.1f} s")  # fmt: skip
    table = run.table("method", "fit, s|.2f", "score, s|.2f", "peak, GB|.2f", "Pearson|.4f", "Spearman|.4f")
    for name in names:
        table.row(name, *measured(name, saved._replace(damping=damping), right))


if __name__ == "__main__":
    bench.main()
