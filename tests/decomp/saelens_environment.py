"""Asks SAELens itself whether it reads our export as we mean it, in an environment of its own.

    python -m tests.decomp.saelens_environment                 # makes one in a temporary folder, minutes
    python -m tests.decomp.saelens_environment --python PATH   # uses one that has sae-lens

SAELens needs TransformerLens below 4 and cannot live beside ours.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from whence.decomp import Activations, Dictionary, Random
from whence.decomp.activations import Origin
from whence.decomp.interop import saelens

NEEDS = ("torch==2.13.0", "sae-lens==6.54.12")  # torch first: it decides the build that the rest is content with

THERE = """
import json, sys
import numpy as np, torch
from sae_lens import SAE
folder, x = sys.argv[1], torch.from_numpy(np.load(sys.argv[2]))
sae = SAE.load_from_disk(folder, device="cpu")
codes = sae.encode(x)
np.savez(sys.argv[3], codes=codes.detach().numpy(), made=sae.decode(codes).detach().numpy())
print(json.dumps({"class": type(sae).__name__, "hook_name": sae.cfg.metadata.hook_name}))
"""


def environment(folder: Path) -> Path:
    """A virtual environment with SAELens; returns its python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    for need in NEEDS:
        subprocess.run([python, "-m", "pip", "install", "--quiet", need], check=True)
    return python


def check(python: Path, folder: Path) -> float:
    """Largest difference between SAELens's codes and reconstructions and ours; raises where they are not equal."""
    rng = np.random.default_rng(0)
    acts = Activations.of(
        rng.standard_normal((2000, 48)).astype(np.float32), origin=Origin("blocks.2.hook_out", "model", "data")
    )
    built = Random(300, k=9).build(acts)
    centred = Dictionary(built.atoms, built.provenance, 9, built.origin, np.full(48, 0.5, np.float32))
    x = acts.whole().x[:256]
    np.save(folder / "x.npy", x)
    worst = 0.0
    for name, dictionary in (("plain", built), ("centred", centred)):
        saelens.save(dictionary, folder / name, model_name="tiny", calibration=x)
        out = folder / f"{name}.npz"
        said = subprocess.run(
            [python, "-c", THERE, folder / name, folder / "x.npy", out], check=True, capture_output=True, text=True
        )
        print(name, json.loads(said.stdout.splitlines()[-1]))
        theirs = np.load(out)
        code = dictionary.encode(x)
        rows = saelens.mirrored(dictionary, x)
        row = {(int(p), int(s)): n for n, (p, s) in enumerate(zip(rows.parent, rows.provenance.sign))}
        ours = np.zeros_like(theirs["codes"])
        for b, (indices, values) in enumerate(zip(np.asarray(code.indices), np.asarray(code.values))):
            for j, v in zip(indices, values):
                ours[b, row[(int(j), 1 if v > 0 else -1)]] += abs(v)
        worst = max(
            worst,
            float(np.abs(ours - theirs["codes"]).max()),
            float(np.abs(dictionary.decode(code) - theirs["made"]).max()),
        )
    if worst > 1e-5:
        raise SystemExit(f"SAELens differs by {worst:.2g}.")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="a python that has sae-lens")
    given = parser.parse_args().python
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = given or environment(folder / "environment")
        print(f"largest difference: {check(python, folder):.2g}", file=sys.stdout)


if __name__ == "__main__":
    main()
