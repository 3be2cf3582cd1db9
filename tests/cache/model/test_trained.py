"""The bound object: what it owns, what it leaves alone, and what enters its key."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.cache import Classification, DataError, ModelError, Store, TrainedModel, find_sites


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def bound(**options) -> TrainedModel:
    return TrainedModel(network(), cases.vectors(), Classification(), **{"quiet": True, **options})


def test_by_default_it_is_where_the_model_is_and_is_the_model() -> None:
    model = network()
    trained = TrainedModel(model, cases.vectors(), Classification())
    assert trained.model is model
    assert trained.device == torch.device("cpu")
    assert trained.dtype == torch.float32


def test_another_dtype_gets_a_copy_and_the_user_s_model_stays() -> None:
    model = network()
    trained = TrainedModel(model, cases.vectors(), Classification(), dtype=torch.float64)
    assert next(trained.model.parameters()).dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32


def test_another_device_gets_a_copy() -> None:
    model = network()
    trained = TrainedModel(model, cases.vectors(), Classification(), device="meta")
    assert next(trained.model.parameters()).device.type == "meta"
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="cuda"):
        bound(device="cuda")


def test_floating_point_columns_take_the_model_s_type() -> None:
    trained = bound()
    assert trained.train.columns["x"].dtype == np.float64
    batch = trained.batch(trained.train, [0, 1])
    assert batch["x"].dtype == torch.float32
    assert batch["y"].dtype == torch.int64


def test_run_options_change_no_key() -> None:
    plain, other = bound(), bound(memory=1 << 30, positions=3, quiet=False, log="x.jsonl", cluster="local:2")
    sites = plain.find()
    assert plain.run("loss", sites).inputs() == other.run("loss", sites).inputs()


def test_model_data_task_sites_objective_and_seed_change_the_key() -> None:
    plain = bound()
    sites = plain.find()
    key = plain.run("loss", sites).inputs()
    moved = network()
    with torch.no_grad():
        moved[0].weight += 1
    for other in (
        plain.replace(model=moved).run("loss", sites),
        plain.run("loss", sites, cases.vectors(seed=5)),
        plain.replace(task=Classification("margin")).run("loss", sites),
        plain.run("loss", plain.find("0")),
        plain.run("sampled", sites),
        plain.run("sampled", sites, seed=1),
    ):
        assert other.inputs() != key


def test_the_fingerprint_is_of_the_weights_as_they_are_now() -> None:
    trained = bound()
    before = trained.fingerprint()
    with torch.no_grad():
        trained.model[0].weight += 1
    assert trained.fingerprint() != before


def test_it_travels_to_a_worker_without_a_cluster_of_its_own(tmp_path) -> None:
    trained = bound(store=Store(tmp_path), cluster="local:2", memory=123)
    there = pickle.loads(pickle.dumps(trained))
    assert there.cluster == "inline"
    assert there.memory_limit() == 123
    assert there.store.root == trained.store.root
    assert there.fingerprint() == trained.fingerprint()


def test_sites_that_the_forward_pass_never_calls_are_left_out() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    trained = TrainedModel(Unused(), cases.vectors(), Classification(), quiet=True)
    assert trained.find().names == ("used",)
    assert trained.find(find_sites(trained.model, "used", quiet=True)).names == ("used",)
    with pytest.raises(ModelError, match="No site matches"):
        trained.find("nowhere")


def test_an_empty_data_set_is_refused() -> None:
    trained = bound()
    with pytest.raises(DataError, match="empty"):
        trained.run("loss", trained.find(), trained.train.select([]))


def test_a_checkpoint_of_another_shape_is_refused() -> None:
    trained = bound()
    assert trained.at(network()).fingerprint() == trained.fingerprint()
    with pytest.raises(ModelError, match="does not fit the model"):
        trained.at({name: value[:1] for name, value in network().state_dict().items()})
