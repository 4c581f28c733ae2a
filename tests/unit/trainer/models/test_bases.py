"""Training uses the requested base model and no other."""

import json
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from lora_trainer.errors import (
    BaseModelMismatchError,
    BaseModelUnknownError,
    BaseModelUnreachableError,
    DiskFullError,
)
from lora_trainer.models import bases
from lora_trainer.models.bases import Base, BaseModels, has_weights, licence_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No call of these tests may leave the machine."""

    def download(*arguments, local_files_only=False, **options):
        if local_files_only:
            return real(*arguments, local_files_only=True, **options)
        raise AssertionError("the hub was asked")

    real = bases.snapshot_download
    monkeypatch.setattr(bases, "snapshot_download", download)


def put_model(folder, *, weights=True):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    if weights:
        (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def put_in_cache(volume, name, *, weights=True):
    repository = volume / "huggingface-cache" / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return put_model(repository / "snapshots" / COMMIT, weights=weights)


def test_cached_model_is_used_with_its_commit(tmp_path):
    folder = put_in_cache(tmp_path, "org/model")
    base = BaseModels(tmp_path).find("org/model", None)
    assert (base.name, base.revision, base.folder) == ("org/model", COMMIT, folder)
    assert BaseModels(tmp_path).complete(base) == base


def test_plain_folder_on_the_volume_and_a_path_are_accepted(tmp_path):
    folder = put_model(tmp_path / "models" / "org" / "model")
    assert BaseModels(tmp_path).find("org/model", None).folder == folder
    by_path = BaseModels(tmp_path / "elsewhere").find(str(folder), None)
    assert (by_path.folder, by_path.name) == (folder, "model")


@pytest.mark.fault(44)
def test_model_path_never_replaces_the_requested_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_PATH", str(put_model(tmp_path / "other")))
    with pytest.raises(AssertionError, match="the hub was asked"):
        BaseModels(tmp_path).find("org/model", None)


def test_revision_that_cannot_be_checked_is_refused(tmp_path):
    put_model(tmp_path / "models" / "org" / "model")
    with pytest.raises(BaseModelMismatchError, match="can't be checked"):
        BaseModels(tmp_path).find("org/model", "v2")


def test_cached_model_of_another_revision_is_not_used(tmp_path):
    put_in_cache(tmp_path, "org/model")
    with pytest.raises(AssertionError, match="the hub was asked"):
        BaseModels(tmp_path).find("org/model", "f" * 40)


def test_snapshot_given_as_a_path_keeps_its_name_and_revision(tmp_path):
    folder = put_in_cache(tmp_path, "org/model")
    for revision in (None, COMMIT):
        base = BaseModels(tmp_path / "elsewhere").find(str(folder), revision)
        assert (base.name, base.revision, base.folder) == ("org/model", COMMIT, folder)
    with pytest.raises(BaseModelMismatchError, match="another revision"):
        BaseModels(tmp_path / "elsewhere").find(str(folder), "f" * 40)


def test_complete_cache_is_preferred_to_an_earlier_partial_one(tmp_path, monkeypatch):
    partial = put_in_cache(tmp_path / "first", "org/model", weights=False)
    whole = put_in_cache(tmp_path / "second", "org/model")
    monkeypatch.setattr(bases, "MOUNTS", (tmp_path / "second",))
    assert BaseModels(tmp_path / "first").find("org/model", None).folder == whole
    (whole / "model.safetensors").unlink()
    assert BaseModels(tmp_path / "first").find("org/model", None).folder == partial


@pytest.mark.parametrize("name", ["no such model", "a/b/c", "../../etc", "/no/such/folder"])
@pytest.mark.fault(45)
def test_name_that_is_not_a_model_is_reported(tmp_path, name):
    with pytest.raises(BaseModelUnknownError, match="neither a folder"):
        BaseModels(tmp_path).find(name, None)


def test_model_with_a_missing_weight_file_is_incomplete(tmp_path):
    folder = put_model(tmp_path / "m", weights=False)
    assert not has_weights(folder)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").touch()
    assert not has_weights(folder)
    (folder / "model-2.safetensors").touch()
    assert has_weights(folder)


@pytest.mark.fault(47)
def test_download_that_does_not_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "files_of", lambda *_: [SimpleNamespace(file_size=10**18, will_download=True)])
    base = Base("org/model", COMMIT, put_in_cache(tmp_path, "org/model", weights=False))
    with pytest.raises(DiskFullError, match="needs 1,000,000,000"):
        BaseModels(tmp_path).complete(base)


def hub_error(kind):
    return kind("no", response=httpx2.Response(403, request=httpx2.Request("GET", "https://hub.example")))


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (hub_error(GatedRepoError), BaseModelUnknownError, "HF_TOKEN"),
        (hub_error(RepositoryNotFoundError), BaseModelUnknownError, "Check the name"),
        (hub_error(RevisionNotFoundError), BaseModelUnknownError, "no revision"),
        (httpx2.ConnectError("no route"), BaseModelUnreachableError, "only the files that are missing"),
    ],
)
def test_errors_of_the_hub_become_a_sentence_with_a_remedy(tmp_path, monkeypatch, raised, expected, words):
    def download(*arguments, local_files_only=False, **options):
        raise FileNotFoundError if local_files_only else raised

    monkeypatch.setattr(bases, "snapshot_download", download)
    with pytest.raises(expected) as caught:
        BaseModels(tmp_path).find("org/model", "v1")
    assert words in caught.value.as_protocol().sentence()


@pytest.mark.fault(57)
def test_code_of_a_model_is_trusted_by_name_only(tmp_path):
    put_in_cache(tmp_path, "org/model")
    assert BaseModels(tmp_path, trusted=["org/model"]).find("org/model", None).trusted
    assert not BaseModels(tmp_path, trusted=["org/other"]).find("org/model", None).trusted


def test_model_card_names_the_licence(tmp_path):
    folder = put_model(tmp_path / "m")
    assert licence_of(Base("m", None, folder)) is None
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    assert licence_of(Base("m", None, folder)) == "apache-2.0"
