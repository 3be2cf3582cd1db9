"""The store on object stores: in memory, and on a local S3 server started here."""

import pickle
import threading

import numpy as np
import pytest

from whence.cache import ArraySpec, Store, errors
from whence.cache.jobs.partitions import ordered_sum, run_job
from whence.cache.store.maintenance import collect, remove, repair, verify

from ..jobs.work import Covariance
from .fill import SPECS, fill, values


@pytest.fixture(scope="module")
def s3():
    """A bucket on moto's server, on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def far(request, quick, monkeypatch) -> Store:
    monkeypatch.setenv("WHENCE_READ_THROUGH", str(quick / "mirror"))
    if request.param == "s3":
        request.getfixturevalue("s3")
    return Store(f"{'s3://bucket' if request.param == 's3' else 'memory://'}/{request.node.name.split('[')[0]}")


def test_written_resumed_and_read(far):
    key = fill(far, {"n": 1}, stop=2)
    half = far.open("gradients", {"n": 1}, partial=True)
    np.testing.assert_array_equal(half.mask, np.arange(40) < 16)
    entry = fill(far, {"n": 1})
    assert entry.key == key
    assert [event.what for event in far.events] == ["hit", "resumed"]
    for name, expected in values().items():
        assert entry.read(name).tobytes() == expected.tobytes()
        assert entry.rows(name, [33, 2, 2]).tobytes() == expected[[33, 2, 2]].tobytes()
        assert entry[name][7:19].tobytes() == expected[7:19].tobytes()
    other = Store(far.root)
    np.testing.assert_array_equal(other.get(key[:9]).read("x"), values()["x"])
    with pytest.raises(errors.NotCached, match="n: 2 wanted, 1 found"):
        other.open("gradients", {"n": 2})
    if far.root.startswith("s3"):
        assert pickle.loads(pickle.dumps(entry)).read("x").tobytes() == values()["x"].tobytes()


def test_the_read_through_copy_serves_and_is_checked(far, quick):
    entry = fill(far, {"n": 1})
    entry.read("x")
    copies = sorted((quick / "mirror").rglob("data.zarr/x/c.*"))
    assert len(copies) == 5
    path = next(path for path, _ in far.backend.walk("v1") if path.endswith("data.zarr/x/c.1.0"))
    far.backend.publish({path: [b"damaged"]})  # only the object: the copy was dropped with it
    with pytest.raises(errors.CorruptEntry, match="is not what was committed"):
        Store(far.root).open("gradients", {"n": 1}).read("x")
    assert [fault.path for fault in verify(far, "gradients", entry.key)] == ["data.zarr/x/c.1.0"]
    assert repair(far, "gradients", entry.key).dropped == (1,)
    assert fill(far, {"n": 1}).read("x").tobytes() == values()["x"].tobytes()
    copies[2].write_bytes(b"damaged")  # only the copy: fetched again
    assert far.open("gradients", {"n": 1}).read("x").tobytes() == values()["x"].tobytes()


def test_two_builders_share_the_work_and_one_commits_each_shard(far):
    arrays, won = values(), []

    def builder():
        with Store(far.root).writer("gradients", {"n": 3}, SPECS, 8) as w:
            commits = [w.write(s, {name: array[s.rows] for name, array in arrays.items()}) for s in w.grid]
            won.append(sum(commit is not None for commit in commits))
            w.seal()

    threads = [threading.Thread(target=builder) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 5
    assert verify(far, "gradients", far.open("gradients", {"n": 3}).key) == []


def test_a_second_upload_of_the_same_file_lets_the_first_stand(far):
    assert far.backend.create("v1/a", b"one")
    assert not far.backend.create("v1/a", b"two")
    kept = far.backend.publish({"v1/a": [b"two"]}, once=True)
    assert kept["v1/a"] == far.backend.publish({"v1/b": [b"one"]})["v1/b"]
    assert far.backend.read("v1/a") == b"one"


def test_maintenance(far):
    one, two = fill(far, {"n": 1}), fill(far, {"n": 2})
    far.name("best", one)
    far.pin("gradients", two.key)
    assert {line.key: (line.names, line.pinned) for line in far.listing()} == {
        one.key: (("best",), False),
        two.key: ((), True),
    }
    assert collect(far, older_than=-1.0, grace=-1.0) == []
    far.pin("gradients", two.key, pinned=False)
    assert [line.key for line in collect(far, older_than=-1.0, grace=-1.0)] == [two.key]
    remove(far, "gradients", one.key, force=True)
    left = [path for path, _ in far.backend.walk("v1")]
    assert left == []


def test_jobs_write_to_remote_stores(far):
    arrays = {"a": ArraySpec((4, 5, 5), "float64"), "count": ArraySpec((4,), "int64")}
    entry = run_job(far, "factors", {}, arrays, Covariance(), shard_rows=1)
    assert ordered_sum(entry, "count") == 40


def test_addresses():
    with pytest.raises(errors.UsageError, match="no conditional writes"):
        Store("ftp://host/x")
    with pytest.raises(FileNotFoundError):
        Store("memory://nothing").backend.read("v1/a")
