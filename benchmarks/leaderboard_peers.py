"""The other libraries' rows of the leaderboard: kronfluence 1.0.1, bergson 2.5.1, traker 0.3.2, dattri 0.3.0 and
dattri-llm 0.1.0, each in a process and a folder of its own.

All attribute to the same linear layers of the same model, with the loss summed over tokens. Damping is a tenth of the
mean eigenvalue wherever a library has a relative one; other settings are each library's defaults. kronfluence samples
labels from the model, as Whence and bergson do, dattri-llm takes the data's. bergson reads models of transformers: it
gets the same weights as a GPT-2, whose outputs are the same. Its SOURCE and MAGIC train the model themselves, in an
order of their own, so they cannot have the run of this table.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from .peers import KRONFLUENCE, Kronfluence

BATCH, WIDTH = 32, 512  # of the passes; of TRAK's projections


class Saved(NamedTuple):
    """The input of every peer: the model, the names of the attributed layers, tokens [n s] of the training passages
    and of the queries."""

    model: nn.Module
    sites: list[str]
    train: Tensor
    queries: Tensor

    @property
    def parameters(self) -> list[str]:
        """Names of the attributed parameters."""
        every = [name for name, _ in self.model.named_parameters()]
        return [name for name in every if name.rpartition(".")[0] in self.sites]


class Peer(NamedTuple):
    """packages: what is installed. score: from what was saved and a folder, [query, train], larger for examples that
    help more. like: the method of Whence that it is compared with."""

    packages: tuple[str, ...]
    score: Callable[[Saved, Path], np.ndarray]
    like: str


def token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of passages, summed over tokens."""
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


def functional_loss(model: nn.Module, parameters: Any, tokens: Tensor) -> Tensor:
    logits = torch.func.functional_call(model, parameters, (tokens,))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


def margin(logits: Tensor, tokens: Tensor) -> Tensor:
    """Summed margin log p / (1 - p) of the tokens of one passage."""
    logp = logits[:-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    return (logp - torch.log1p(-logp.exp().clamp(max=1 - 1e-6))).sum()


def kronfluence(strategy: str, saved: Saved, out: Path) -> np.ndarray:
    torch.manual_seed(0)

    def outputs(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten()

    peer = Kronfluence(saved.model, outputs, saved.sites, out, BATCH, strategy=strategy)
    train, queries = TensorDataset(saved.train), TensorDataset(saved.queries)
    peer.fit(train)
    return peer.pairwise(queries, train)


def traker(saved: Saved, out: Path) -> np.ndarray:
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput

    class Passage(AbstractModelOutput):
        def __init__(self) -> None: ...

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, tokens: Tensor) -> Tensor:
            return margin(torch.func.functional_call(model, (weights, buffers), (tokens[None],))[0], tokens)

        def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> Tensor:
            logits = torch.func.functional_call(model, (weights, buffers), (batch[0],))[:, :-1]
            logp = logits.log_softmax(-1).gather(2, batch[0][:, 1:, None])[..., 0]
            return (1 - logp.mean(1).exp()).clone().detach()[:, None]

    one = TRAKer(
        saved.model, Passage(), len(saved.train), save_dir=str(out / "trak"), device="cpu", proj_dim=WIDTH,
        use_half_precision=False, logging_level=30, grad_wrt=saved.parameters,
    )  # fmt: skip
    state = saved.model.state_dict()
    one.load_checkpoint(state, model_id=0)
    for batch in saved.train.split(BATCH):
        one.featurize(batch=(batch,), num_samples=len(batch))
    one.finalize_features()
    one.start_scoring_checkpoint("queries", state, 0, len(saved.queries))
    for batch in saved.queries.split(BATCH):
        one.score(batch=(batch,), num_samples=len(batch))
    return np.array(one.finalize_scores(exp_name="queries")).T


def dattri(name: str, saved: Saved, out: Path) -> np.ndarray:
    from dattri.algorithm import influence_function as solvers
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    model = saved.model

    def loss(parameters: Any, batch: Any) -> Tensor:
        tokens = batch[0] if isinstance(batch, (tuple, list)) else batch
        return functional_loss(model, parameters, tokens if tokens.ndim == 2 else tokens[None])

    def passage(parameters: Any, batch: Any) -> Tensor:
        tokens = batch[0] if isinstance(batch, (tuple, list)) else batch
        return margin(torch.func.functional_call(model, parameters, (tokens[None],))[0], tokens)

    def probability(parameters: Any, batch: Any) -> Tensor:
        return (-loss(parameters, batch) / (saved.train.shape[1] - 1)).exp()

    def task(of: Any) -> Any:
        return AttributionTask(loss_func=of, model=model, checkpoints=model.state_dict())

    layers = saved.parameters
    attributor: Any = {
        "EK-FAC": lambda: solvers.IFAttributorEKFAC(task(loss), module_name=saved.sites, damping=1e-3),
        "DataInf": lambda: solvers.IFAttributorDataInf(task(loss), layer_name=layers, regularization=1e-3),
        "gradient product": lambda: TracInAttributor(
            task(loss), torch.ones(1), normalized_grad=False, layer_name=layers
        ),
        "TRAK": lambda: TRAKAttributor(
            task(passage), probability, layer_name=layers,
            projector_kwargs={"proj_dim": WIDTH, "proj_max_batch_size": 32},
        ),
    }[name]()  # fmt: skip
    train, queries = (DataLoader(TensorDataset(tokens), batch_size=BATCH) for tokens in (saved.train, saved.queries))
    if name != "gradient product":
        attributor.cache(train)
    return attributor.attribute(*([queries] if name == "TRAK" else [train, queries])).detach().numpy().T


def as_gpt2(model: nn.Module) -> nn.Module:
    """The small transformer as a GPT-2 of transformers, which computes the same."""
    from transformers import GPT2Config, GPT2LMHeadModel

    one: Any = model
    (vocabulary, width), blocks = one.embed.weight.shape, one.blocks
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=4096, n_embd=width, n_layer=len(blocks), n_head=blocks[0].heads,
        activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    made = GPT2LMHeadModel(config).eval()
    body = made.transformer
    with torch.no_grad():
        body.wte.weight.copy_(one.embed.weight)
        body.wpe.weight[: len(one.place.weight)] = one.place.weight
        made.lm_head.weight.copy_(one.head.weight)
        norms = [(body.ln_f, one.norm)]
        for ours, theirs in zip(blocks, body.h):
            norms += [(theirs.ln_1, ours.first), (theirs.ln_2, ours.second)]
            pairs = ((theirs.attn.c_attn, ours.qkv), (theirs.attn.c_proj, ours.out), (theirs.mlp.c_fc, ours.up),
                     (theirs.mlp.c_proj, ours.down))  # fmt: skip
            for layer, linear in pairs:
                layer.weight.copy_(linear.weight.T)
                layer.bias.copy_(linear.bias)
        for layer, norm in norms:
            layer.load_state_dict(norm.state_dict())
    return made


def bergson(method: str, saved: Saved, out: Path) -> np.ndarray:
    import datasets
    from bergson.config import config as settings
    from bergson.data import load_scores
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    model: Any = as_gpt2(saved.model)
    model.save_pretrained(out / "model")
    words = WordLevel({str(n): n for n in range(model.config.vocab_size)}, unk_token="0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="0").save_pretrained(out / "model")
    for name, tokens in (("train", saved.train), ("queries", saved.queries)):
        rows = tokens.tolist()
        datasets.Dataset.from_dict({"input_ids": rows, "labels": rows}).save_to_disk(str(out / name))
    index: dict[str, Any] = {
        "run_path": str(out / "run"), "model": str(out / "model"), "include_bias": True, "loss_reduction": "sum",
        "data": settings.DataConfig(dataset=str(out / "train")),
        "distributed": settings.DistributedConfig(nproc_per_node=1),
    }  # fmt: skip
    query = settings.QuerySetConfig(dataset=str(out / "queries"), aggregation="none")
    if method == "TrackStar":
        from bergson.cli.trackstar import trackstar

        trackstar(settings.TrackstarIndexConfig(**index), settings.TrackstarConfig(query=query))
    else:
        from bergson.hessians.pipeline import hessian_pipeline

        hessian_pipeline(
            settings.IndexConfig(**index),
            settings.HessianConfig("shampoo" if method == "Shampoo" else "kfac", ev_correction=method == "EK-FAC"),
            settings.ScoreConfig(), settings.PreprocessConfig(),
            settings.HessianPipelineConfig(query=query, inversion_cfg=settings.InversionConfig(damping_factor=0.1)),
        )  # fmt: skip
    return load_scores(out / "run" / "scores")[:].T


class Rows(Dataset):
    """Tokens as the batches that transformers' models take."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> Mapping[str, Tensor]:
        return {"input_ids": self.tokens[row]}


def dattri_llm(name: str, saved: Saved, out: Path) -> np.ndarray:
    import dattri_llm as library

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return token_loss(model, batch["input_ids"])

    arguments = library.AttributionArguments(
        output_dir=str(out / name), per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH
    )
    task = library.AttributionTask(loss, saved.model)
    config = library.HookManagerConfig(hook_types=dict.fromkeys(saved.sites, "linear_io"))
    kind = {"EK-FAC": "EKFACAttributor", "K-FAC": "KFACAttributor", "gradient product": "TracInAttributor"}[name]
    options = {} if name == "gradient product" else {"damping": 0.1, "relative_damping": True}
    attributor = getattr(library, kind)(arguments, task=task)
    found = attributor.attribute(Rows(saved.train), Rows(saved.queries), hook_config=config, **options)
    return found.scores.numpy().T  # a row per passage; its other readers merge passages of the same text


BERGSON = (
    "bergson==2.5.1", "natsort", "petname", "simple-parsing", "docstring-parser", "torchopt", "optree", "graphviz",
    "bitsandbytes",
)  # fmt: skip
DATTRI = ("dattri==0.3.0",)
DATTRI_LLM = ("dattri-llm==0.1.0", "dattri==0.3.0")
PEERS: dict[str, Peer] = {
    "kronfluence EK-FAC": Peer(KRONFLUENCE, partial(kronfluence, "ekfac"), "ekfac, damping 0.1"),
    "kronfluence K-FAC": Peer(KRONFLUENCE, partial(kronfluence, "kfac"), "kfac, damping 0.1"),
    "kronfluence diagonal": Peer(KRONFLUENCE, partial(kronfluence, "diagonal"), "diagonal, damping 0.1"),
    "kronfluence identity": Peer(KRONFLUENCE, partial(kronfluence, "identity"), "identity"),
    "bergson EK-FAC": Peer(BERGSON, partial(bergson, "EK-FAC"), "ekfac, damping 0.1"),
    "bergson K-FAC": Peer(BERGSON, partial(bergson, "K-FAC"), "kfac, damping 0.1"),
    "bergson Shampoo": Peer(BERGSON, partial(bergson, "Shampoo"), "shampoo, damping 0.1"),
    "bergson TrackStar": Peer(BERGSON, partial(bergson, "TrackStar"), "logra"),
    "dattri-llm EK-FAC": Peer(DATTRI_LLM, partial(dattri_llm, "EK-FAC"), "ekfac, damping 0.1"),
    "dattri-llm K-FAC": Peer(DATTRI_LLM, partial(dattri_llm, "K-FAC"), "kfac, damping 0.1"),
    "dattri-llm gradient product": Peer(DATTRI_LLM, partial(dattri_llm, "gradient product"), "identity"),
    "dattri EK-FAC": Peer(DATTRI, partial(dattri, "EK-FAC"), "ekfac, damping 0.1"),
    "dattri DataInf": Peer(DATTRI, partial(dattri, "DataInf"), "datainf, damping 0.1"),
    "dattri TRAK": Peer(DATTRI, partial(dattri, "TRAK"), "trak"),
    "traker TRAK": Peer(("traker==0.3.2",), traker, "trak"),
}


def run_peer(name: str, out: Path) -> None:
    """One row in this process: scores, into `out`."""
    saved = Saved(**torch.load(out / "problem.pt", weights_only=False))  # written by the process that started this one
    np.save(out / "scores.npy", np.asarray(PEERS[name].score(saved, out), np.float64))
