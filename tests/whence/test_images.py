"""Image classifiers from the command line: pixels are the image processor's, classes the model's, in every layout."""

import json
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, CLIPConfig, CLIPModel

from tests.whence import tiny
from tests.whence.test_docs_run import DOCS
from whence.attrib import EKFAC
from whence.cache import Classification, DataError, Examples, ModelError, Store, TrainedModel
from whence.cli import main
from whence.commands.attrib import Self
from whence.corpora import ImageReader, images, load, load_queries
from whence.inputs import load_model
from whence.pretrained import form_of, image_reader

PROBE = ["--model", "my-vit", "--data", "images", "--queries", "asked", "--probes", "layers"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.image_classifier(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def reader(vit: Path) -> ImageReader:
    return image_reader(str(vit))


def test_a_classifier_is_scored_on_a_folder_per_class(tmp_path: Path, capsys: Any) -> None:
    store = Store(tmp_path / "store")  # the same question has the same key: it is computed once
    folder = tiny.image_classifier(tmp_path / "model", "resnet")
    train, asked = tiny.images(tmp_path / "train"), tiny.images(tmp_path / "asked", 1, seed=1)
    own = ["--model", str(folder), "--data", str(train), "--store", str(store.root), "--quiet"]
    more = ["--queries", str(asked), "--sites", "*"]
    assert main(["--debug", "attrib", "score", *own, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["queries"]
    model, vocabulary = load_model(str(folder))
    assert (vocabulary, form_of(model)) == (None, "images")
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

    def by_hand(place: Path, count: int) -> Examples:
        files = [place / name / f"{n}.png" for name in ("cats", "dogs") for n in range(count)]
        pixels = processor(images=[Image.open(f) for f in files], return_tensors="np")["pixel_values"]
        return Examples.of((pixels, np.repeat([0, 1], count)), [f"{f.parent.name}/{f.name}" for f in files])

    trained = TrainedModel(model, by_hand(train, 4), Classification(), store=store, quiet=True)
    scores = EKFAC().fit(trained).score(by_hand(asked, 1))
    assert [entry["asked"] for entry in found] == ["cats/0.png [cats]", "dogs/0.png [dogs]"]
    for row, entry in enumerate(found):
        best = (entry["helpful"] + entry["harmful"])[0]  # one list is empty where all scores have one sign
        np.testing.assert_allclose(best["nats"], scores.sel(train=best["id"]).values[row], rtol=1e-4)
        assert best["title"].startswith(best["text"])  # the folder is the class
    assert len({entry["helpful"][0]["id"] for entry in found} & set(trained.train.ids.tolist())) > 0


def test_texts_are_no_questions_to_an_image_classifier(vit: Path, tmp_path: Path, capsys: Any) -> None:
    train = tiny.images(tmp_path / "train", 1)
    own = ["--model", str(vit), "--store", str(tmp_path / "store"), "--quiet"]
    assert main(["attrib", "score", *own, "--data", str(train), "--prompt", "a", "--completion", "b"]) == 2
    assert "are images" in capsys.readouterr().err
    assert main(["attrib", "score", *own, "--queries", str(train)]) == 2  # the embedded texts
    assert "is for language models" in capsys.readouterr().err
    assert main(["attrib", "probe", *own, "--data", str(train), "--queries", str(train)]) == 2
    assert "Give --probes tail layers errors" in capsys.readouterr().err


def test_rows_of_a_data_set_and_of_a_table_are_those_of_the_folder(reader: ImageReader, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tiny.images(tmp_path / "images", 2)
    wanted = load(folder, reader).train
    files = [folder / title for title in wanted.about["title"]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dogs", "cats"])})
    rows = {"image": [str(f) for f in files], "label": [f.parent.name for f in files]}
    kept = datasets.Dataset.from_dict(rows, features=features)  # numbered otherwise than the model's
    kept.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"test": kept, "train": kept}).save_to_disk(tmp_path / "splits")
    kept.to_parquet(tmp_path / "rows.parquet")
    lines = [{"id": n, "file_name": str(f.relative_to(folder)), "animal": f.parent.name} for n, f in enumerate(files)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for source, columns in (
        ("saved", {}), ("splits", {}), ("rows.parquet", {}), ("images", {"label": "animal"}),
    ):  # fmt: skip
        found = load(tmp_path / source, reader, columns=columns).train
        np.testing.assert_array_equal(found.columns["x"], wanted.columns["x"])
        assert np.asarray(found.columns["y"]).tolist() == [0, 0, 1, 1]
        assert list(found.about["text"]) == ["cats", "cats", "dogs", "dogs"]
        assert load_queries(tmp_path / source, reader, columns=columns).fingerprint == found.fingerprint


def test_many_images_are_read_as_needed(reader: ImageReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.images(tmp_path / "images", 3)
    held = load(folder, reader).train
    monkeypatch.setattr(images, "HELD", 0)
    opened: list[str] = []
    monkeypatch.setattr(images.Picture, "open", counted(images.Picture.open, opened))
    read = load(folder, reader).train
    assert opened == ["cats/0.png"]  # its shape is that of all
    assert repr(read) == repr(held)
    some = read.select([4, 1])
    assert opened == ["cats/0.png"]
    batch = some.batch([1, 0])
    assert opened == ["cats/0.png", "cats/1.png", "dogs/1.png"]
    assert sorted(batch) == ["example_id", "x", "y"]  # no mask: rows of one shape
    np.testing.assert_array_equal(batch["x"], held.batch([1, 4])["x"])
    again = pickle.loads(pickle.dumps(some))  # for a worker of a cluster
    np.testing.assert_array_equal(again.batch([0])["x"], held.batch([4])["x"])
    both = some.joined(held.select([0]))
    np.testing.assert_array_equal(both.columns["x"], np.asarray(held.columns["x"])[[4, 1, 0]])


def counted(function: Any, names: list[str]) -> Any:
    def count(picture: images.Picture) -> Any:
        names.append(picture.name)
        return function(picture)

    return count


def test_an_image_is_upright_and_in_the_colours_of_the_model(reader: ImageReader, tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "cats" / "0.png", exif=exif)
    (found,) = np.asarray(load(tmp_path, reader).train.columns["x"])
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "cats" / "0.png"))
    np.testing.assert_allclose(found, np.repeat((np.asarray(upright)[None] / 127.5 - 1), 3, 0), atol=1e-6)
    processor = reader.processor
    processor.image_mean = processor.image_std = [0.5]
    grey = ImageReader(processor, reader.classes, channels=1)
    assert grey.pixels(upright).shape == (1, 16, 16)


def saved(place: Path, name: str, names: tuple[str, ...]) -> Path:
    return tiny.images(place / name, 1, names)


LAYOUTS: dict[str, tuple[Any, str]] = {
    "a class that the model has not": (lambda p: saved(p, "a", ("cats", "birds")), r"'birds' is no class .* 'cats'"),
    "splits without train": (lambda p: saved(p, "b", ("a/cats", "b/dogs")), "folders in folders: a, b"),
    "an image in no folder": (lambda p: Image.new("RGB", (9, 9)).save(p / "0.png") or p, "has no label"),
    "a file that is no image": (
        lambda p: (saved(p, "d", ("cats",)) / "cats" / "0.png").write_bytes(b"text") and p / "d", "cannot be read"
    ),
    "a cut file": (
        lambda p: cut(saved(p, "e", ("cats",)) / "cats" / "0.png") and p / "e", r"cats/0\.png: the image cannot be read"
    ),
    "16 bits a pixel": (
        lambda p: Image.fromarray(np.full((9, 9), 999, np.uint16)).save(saved(p, "f", ("cats",)) / "cats" / "1.png")
        or p / "f", r"1\.png: pixels of more than 8 bits",
    ),
    "a row without an image": (lambda p: rows(p / "rows.jsonl", {"label": "cats"}), "row has no image|has no image"),
    "a file that is not there": (lambda p: rows(p / "rows.jsonl", {"image": "x.png", "label": 0}), "No such file"),
    "a number beyond the classes": (lambda p: rows(p / "rows.jsonl", {"image": "x.png", "label": 7}), "7 is no class"),
}  # fmt: skip


def cut(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[:-400])
    return file


def rows(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values) + "\n")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_that_cannot_be_read_are_named(layout: str, reader: ImageReader, tmp_path: Path) -> None:
    build, said = LAYOUTS[layout]
    with pytest.raises(DataError, match=said):
        load(build(tmp_path), reader)


def test_splits_are_folders_of_folders(reader: ImageReader, tmp_path: Path) -> None:
    tiny.images(tmp_path, 1, ("train/cats", "train/dogs", "test/cats"))
    assert load(tmp_path, reader).train.about["title"] == ["cats/0.png", "dogs/0.png"]
    assert load(tmp_path, reader, split="test").train.about["title"] == ["cats/0.png"]


def test_a_model_that_names_no_class_takes_numbers(reader: ImageReader, tmp_path: Path) -> None:
    plain = ImageReader(reader.processor, {"LABEL_0": 0, "LABEL_1": 1})
    assert np.asarray(load(tiny.images(tmp_path / "a", 1, ("0", "1")), plain).train.columns["y"]).tolist() == [0, 1]
    with pytest.raises(DataError, match="Name its classes in its config"):
        load(tiny.images(tmp_path / "b", 1), plain)


def test_a_model_without_its_processor_and_a_contrastive_pair_are_refused(vit: Path, tmp_path: Path) -> None:
    folder = tiny.image_classifier(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="no image processor"):
        load_model(str(folder))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPConfig(text_config=sizes | {"vocab_size": 9}, vision_config=sizes | {"image_size": 8, "patch_size": 8})
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    with pytest.raises(ModelError, match="an example has no loss of its own"):
        load_model(str(tmp_path / "clip"))


def test_adapters_on_a_classifier_read_images_as_their_base_does(vit: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["fc1"])
    peft.get_peft_model(load_model(str(vit))[0], config).save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path))
    assert form_of(model) == "images"
    assert image_reader(str(tmp_path)).classes == {"cats": 0, "dogs": 1}


def test_an_answer_about_a_table_of_images_is_not_found_by_the_table_alone(tmp_path: Path) -> None:
    named = {"--data": rows(tmp_path / "rows.jsonl", {"image": "0.png", "label": 0})}
    own = {"--data": rows(tmp_path / "own.jsonl", {"picture": "0.png", "label": 0}), "--image-column": "picture"}
    text = {"--data": rows(tmp_path / "texts.jsonl", {"text": "0.png"})}
    for given, is_found in ((named, False), (own, False), (text, True)):
        options = {name[2:].replace("-", "_"): str(value) for name, value in given.items()}
        assert (Self(**options)._inputs is not None) == is_found


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.image_classifier(tmp_path / "my-vit")
    tiny.images(tmp_path / "images")
    tiny.images(tmp_path / "asked", 1, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    section = (DOCS / "models.md").read_text().split("## Images\n")[1].split("\n## ")[0]
    (lines,) = (block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
    (python,) = re.findall(r"^```text\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    exec(python, scope := dict[str, Any]())
    assert scope["scores"].shape == (2, 8)
    assert len(lines) > 3
    for line in lines:
        assert main(["--debug", *shlex.split(line)[1:], "--quiet"]) == 0, line
    page = Path("out/images.html").read_text()
    assert "Images that taught it" in page
    shown = re.findall(r'<img class="thumbnail" alt="([^"]+)" src="(data:image/png;base64,[^"]+)">', page)
    assert {name for name, _ in shown} >= {"cats/0.png", "dogs/0.png"}
    thumbnail = load("asked", image_reader("my-vit")).train.about["image"][0].thumbnail()
    assert ("cats/0.png", thumbnail) in shown
    assert main(["--debug", "decomp", "report", "out/images", "--quiet", "--out", "out/atoms.html"]) == 0
    assert re.search(r'"(cats|dogs)/[0-3]\.png position [0-4]"', Path("out/atoms.html").read_text())
    assert main(["--debug", "attrib", "probe", *PROBE, "--quiet", "--out", "out/probes.csv"]) == 0
    assert len(Path("out/probes.csv").read_text().splitlines()) == 3  # a head, two layers
