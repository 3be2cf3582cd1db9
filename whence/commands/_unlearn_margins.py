"""`whence unlearn margins`: margins of language models under teacher forcing, as a file of arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from whence.options import Count, Loading

from ._shared import Printed, Stored


@dataclass(frozen=True)
class Margins(Loading, Stored, Printed):
    """Margins of an ensemble of language models, token by token, for `whence unlearn evaluate-arrays`.

    The true tokens stand before each token that is judged (teacher forcing). Every text is read by itself, or with
    --window the texts are one stream that is cut into windows, as EasyDUB does.

    Example:

        whence unlearn margins out/a out/b out/c --data forget=f.jsonl retain=r.jsonl --out out/forgot.npz
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    """Folders, .gguf files or hub names; one row of margins each."""
    data: tuple[str, ...] = ()
    """Texts by part, as part=FILE: forget, retain, validation."""
    window: int = 0
    """Tokens that are predicted in one pass over the stream; 0 reads every text by itself."""
    length: Count | None = None
    """Tokens at which texts are cut."""
    positions: Count = 1024
    """Positions in a batch."""
    out: Path = Path("out/margins.npz")
    """The file: part -> [models, tokens], in nats."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        from whence.cache import DataError, UsageError
        from whence.cache.jobs.progress import progress

        wrong = next((text for text in self.data if "=" not in text), None)
        if wrong is not None:
            raise UsageError(f"--data cannot be {wrong!r}.", "Name its part: forget=FILE, retain=FILE.")
        parts = dict(text.split("=", 1) for text in self.data)
        if not self.models or not parts or len(parts) < len(self.data):
            raise UsageError("There are no models, or no data, or a part twice.", "Give models and --data part=FILE.")
        found: dict[str, list[np.ndarray]] = {part: [] for part in parts}
        for name in progress(self.models, desc="margins", unit="model", quiet=self.quiet):
            for part, values in self._of(name, parts).items():
                if found[part] and len(values) != len(found[part][0]):
                    raise DataError(
                        f"{name} reads {len(values)} tokens of {parts[part]}, the models before it others.",
                        "Compare models with one tokenizer and one context.",
                    )
                found[part].append(values)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        np.savez(self.out, **{part: np.stack(each) for part, each in found.items()})  # type: ignore[arg-type]
        tokens = {part: len(each[0]) for part, each in found.items()}
        listed = ", ".join(f"{count:,} tokens of {part}" for part, count in tokens.items())
        facts = {"models": len(self.models), "tokens": tokens, "file": str(self.out)}
        self.show(facts, f"{len(self.models)} models, {listed}\nwritten: {self.out}")

    def _of(self, name: str, parts: dict[str, str]) -> dict[str, np.ndarray]:
        from whence.inputs import load_data, load_model
        from whence.pretrained import context_of
        from whence.unlearn.language import stream_margins, token_margins

        model, vocabulary = load_model(name, self.open_store(), quiet=self.quiet, loading=self)
        out = {}
        for part, path in parts.items():
            texts = load_data(path, vocabulary, length=self.length, context=context_of(model)).train
            if self.window:
                tokens = np.concatenate([np.asarray(one) for one in texts.columns["input_ids"]])
                found = stream_margins([model], tokens, window=self.window, positions=self.positions)
            else:
                found = token_margins([model], texts, positions=self.positions)
            out[part] = found[0]
        return out
