"""Why targets matter, on problems that can be solved exactly: ridge and logistic regression.

Ridge: 500 examples of 50 features, condition number 30, the 25 examples that lie farthest along one axis are
forgotten. Every method takes 5,000 steps of plain SGD at one constant rate; printed is the squared distance to the
retrained optimum over that of the trained one. Descent on retained data keeps a noise floor; descent-ascent first
approaches, then moves away; matching targets has no gradient left at the optimum, so it converges.
"""

import numpy as np

from .forgetting import digits
from .harness import Run

STEPS, SEEDS, BATCH = 5000, 3, 32
AT = (0.02, 0.2, 1.0)  # of the steps


def ridge_problem(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    n, d, penalty = 500, 50, 1e-3
    spectrum = np.sqrt(np.geomspace(1.0, 1 / 30, d))
    x = generator.normal(size=(n, d)) * spectrum
    y = x @ generator.normal(size=d) + 0.5 * generator.normal(size=n)
    forget = np.argsort(-x[:, 0])[:25]
    kept = np.setdiff1d(np.arange(n), forget)
    hessian = x.T @ x + n * penalty * np.eye(d)
    trained = np.linalg.solve(hessian, x.T @ y)
    retained_hessian = hessian - x[forget].T @ x[forget]
    retrained = np.linalg.solve(retained_hessian, x[kept].T @ y[kept])
    return {"x": x, "y": y, "forget": forget, "kept": kept, "hessian": hessian, "retained_hessian": retained_hessian,
            "trained": trained, "retrained": retrained, "penalty": np.array(n * penalty)}  # fmt: skip


def corrected_weights(p: dict[str, np.ndarray]) -> np.ndarray:
    """Parameters of the leverage-corrected influence datamodel: each example's exact removal, summed over F."""
    x, residual = p["x"][p["forget"]], p["x"][p["forget"]] @ p["trained"] - p["y"][p["forget"]]
    solved = np.linalg.solve(p["hessian"], x.T)
    leverage = np.einsum("fd,df->f", x, solved)
    return p["trained"] + solved @ (residual / (1 - leverage))


def marks(steps: int) -> tuple[int, ...]:
    """The steps at which the distance is recorded."""
    return tuple(round(share * steps) for share in AT)


def distance(p: dict[str, np.ndarray], theta: np.ndarray) -> float:
    """Squared, to the retrained optimum, over that of the trained one."""
    return float(np.square(theta - p["retrained"]).sum() / np.square(p["trained"] - p["retrained"]).sum())


def descend(p: dict[str, np.ndarray], method: str, seed: int, steps: int = STEPS) -> list[float]:
    """Relative squared distance to the retrained optimum at the marked steps."""
    generator = np.random.default_rng(1000 + seed)
    x, y, kept, forget = p["x"], p["y"], p["kept"], p["forget"]
    rate = 0.2 / np.trace(x.T @ x / len(x))
    targets = {"OM": x @ p["retrained"], "DMM": x @ corrected_weights(p)}.get(method, y)
    penalty = 0.0 if method in ("OM", "DMM") else float(p["penalty"]) / len(kept)
    theta, out = p["trained"].copy(), []
    for step in range(1, steps + 1):
        rows = generator.choice(kept, BATCH)
        if method in ("OM", "DMM"):
            rows = np.r_[rows[: BATCH // 2], generator.choice(forget, BATCH // 2)]
        gradient = x[rows].T @ (x[rows] @ theta - targets[rows]) / len(rows) + penalty * theta
        if method == "descent-ascent":
            away = generator.choice(forget, BATCH)
            share = len(forget) / len(kept)
            gradient -= share * x[away].T @ (x[away] @ theta - y[away]) / BATCH
        theta -= rate * gradient
        if step in marks(steps):
            out.append(distance(p, theta))
    return out


def newton_ridge(p: dict[str, np.ndarray]) -> float:
    """One Newton step on the retained objective."""
    x, y, kept = p["x"], p["y"], p["kept"]
    gradient = x[kept].T @ (x[kept] @ p["trained"] - y[kept]) + p["penalty"] * p["trained"]
    theta = p["trained"] - np.linalg.solve(p["retained_hessian"], gradient)
    return distance(p, theta)


def newton_logistic(steps: int = 2) -> list[float]:
    """Digits 3 against 8, 20 forgotten: relative distance |θ - θ_R| / |θ_R| after each Newton step."""
    images, labels = digits()
    chosen = np.isin(labels, (3, 8))
    x = np.c_[images[chosen].reshape(-1, 64), np.ones(chosen.sum())]
    y = (labels[chosen] == 8).astype(float)
    forget = np.random.default_rng(0).permutation(len(y))[:20]
    kept = np.setdiff1d(np.arange(len(y)), forget)
    penalty = 1e-2 * len(y)

    def step(theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        chance = 1 / (1 + np.exp(-x[rows] @ theta))
        gradient = x[rows].T @ (chance - y[rows]) + penalty * theta
        hessian = (x[rows].T * (chance * (1 - chance))) @ x[rows] + penalty * np.eye(x.shape[1])
        return theta - np.linalg.solve(hessian, gradient)

    def optimum(rows: np.ndarray) -> np.ndarray:
        theta = np.zeros(x.shape[1])
        for _ in range(50):
            theta = step(theta, rows)
        return theta

    theta, goal, out = optimum(np.arange(len(y))), optimum(kept), []
    for _ in range(steps):
        theta = step(theta, kept)
        out.append(float(np.linalg.norm(theta - goal) / np.linalg.norm(goal)))
    return out


def results(seeds: int = SEEDS, steps: int = STEPS) -> dict[str, np.ndarray]:
    """method -> mean over seeds of the relative squared distance at the marked steps."""
    problems = [ridge_problem(seed) for seed in range(seeds)]
    return {
        method: np.mean([descend(p, method, k, steps) for k, p in enumerate(problems)], axis=0)
        for method in ("retain only", "descent-ascent", "OM", "DMM")
    }


def claims(found: dict[str, np.ndarray], newton: float, logistic: list[float]) -> dict[str, bool]:
    last = {name: values[-1] for name, values in found.items()}
    return {
        "Newton on the retained objective is exact": newton < 1e-8,
        "OM < 0.1 x retained descent": last["OM"] < 0.1 * last["retain only"],
        "DMM < 0.2 x retained descent": last["DMM"] < 0.2 * last["retain only"],
        "descent-ascent approaches, then moves away": found["descent-ascent"][1] < 1 < last["descent-ascent"],
        "two Newton steps reach the logistic optimum within 1e-3": logistic[-1] < 1e-3,
    }


def show(run: Run, seeds: int, steps: int) -> None:
    found, problems = results(seeds, steps), [ridge_problem(seed) for seed in range(seeds)]
    newton, logistic = max(newton_ridge(p) for p in problems), newton_logistic()
    datamodel = np.mean([distance(p, corrected_weights(p)) for p in problems])
    table = run.table("relative squared distance after", *(f"{k:,} steps|.4f" for k in marks(steps)))
    for name, values in found.items():
        table.row(name, *values)
    run.say(f"\nthe datamodel's own parameters: {datamodel:.4f}; one Newton step: {newton:.1e}")
    run.say(f"logistic, relative distance after each Newton step: {', '.join(f'{v:.1e}' for v in logistic)}\n")
    for claim, held in claims(found, newton, logistic).items():
        run.claim(claim, held)
