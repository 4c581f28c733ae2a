"""deploy.toml: every key is checked, no secret gets in, and each fault is a sentence with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_worker.deployment.file import parse_specification, read_specification
from lora_worker.deployment.secrets import secret_fault
from lora_worker.deployment.specification import Specification
from lora_worker.deployment.template import render_specification
from lora_worker.errors import DeploymentFileError

FILE = Path("deploy.toml")
GOOD = """name = "trainer"
image = "ghcr.io/me/trainer:1"

[gpu]
pools = ["AMPERE_80"]

[workers]
max = 2

[[volumes]]
name = "a"
size_gb = 50
data_center = "EU-RO-1"

[[volumes]]
name = "b"
size_gb = 50
data_center = "US-KS-2"
"""


def refused(text: str) -> str:
    with pytest.raises(DeploymentFileError) as caught:
        parse_specification(text, FILE)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("max = 2", "maxx = 2", "line 8: workers.maxx is no key of a deployment: workers.max may be meant; rename it"),
        ("max = 2", "zebra = 2", "line 8: workers.zebra is no key of a deployment: docs/deploying.md lists them all"),
        ("[workers]", "[worker]", "line 7: worker is no key of a deployment: workers may be meant"),
        ("max = 2", 'max = "2"', "line 8: workers.max: must be a valid integer."),
        ("max = 2", "max = 0", "line 8: workers.max: must be greater than or equal to 1."),
        ("max = 2", "max = true", "line 8: workers.max: must be a valid integer."),
        ('name = "b"\nsize_gb = 50', 'name = "b"\nsize_gb = 5', "line 17: volumes[2].size_gb: must be greater than"),
        ('name = "b"\nsize_gb = 50', 'name = "b"', "line 15: volumes[2].size_gb is missing: Size in GB"),
        ('pools = ["AMPERE_80"]', "pools = []", "line 5: gpu.pools: "),
        ('pools = ["AMPERE_80"]', 'pools = ["a100"]', "line 5: gpu.pools[1]: write a pool's name, such as AMPERE_80."),
        ('pools = ["AMPERE_80"]', 'pools = "AMPERE_80"', "line 5: gpu.pools: must be a list."),
        ('name = "trainer"\n', "", "deploy.toml: name is missing: The endpoint's name at RunPod"),
        ('name = "b"', 'name = "a"', "deploy.toml: two volumes have the name a: an endpoint takes one volume"),
        ("US-KS-2", "EU-RO-1", "deploy.toml: two volumes have the data centre EU-RO-1"),
        ("[gpu]", 'data_centers = ["CA-MTL-1"]\n[gpu]', "data_centers names CA-MTL-1, where none of the volumes is"),
        ("[gpu]", 'base_models = ["../etc"]\n[gpu]', "line 4: base_models[1]: '../etc' is no base model"),
        ("[gpu]", "[gpu", "deploy.toml is not TOML: "),
        ("[gpu]", 'env = { HF_TOKEN = "hf_abcdefghijklmnop" }\n[gpu]', "line 4: env: 'HF_TOKEN' looks like a secret"),
    ],
)
def test_a_fault_is_one_sentence_with_its_line_and_key(old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    text = refused(GOOD.replace(old, new, 1))
    assert sentence in text
    assert "hf_" not in text


def test_many_faults_give_a_short_message() -> None:
    text = refused(GOOD.replace("max = 2", "\n".join(f"key{number} = 1" for number in range(500))))
    assert len(text) < 1500
    assert text.endswith("And 495 more.")


def test_files_that_can_not_be_read_are_explained(tmp_path: Path) -> None:
    missing, folder, latin, large = (tmp_path / name for name in ("missing", "folder", "latin", "large"))
    folder.mkdir()
    latin.write_bytes(b'name = "a"\nimage = "\xe9"')
    large.write_bytes(b"#" * 300_000)
    for path, words in ((missing, "deploy init"), (folder, "can't be read"), (latin, "line 2"), (large, "larger than")):
        with pytest.raises(DeploymentFileError, match=words):
            read_specification(path)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deploy.toml"
    path.write_text("\ufeff" + GOOD)
    assert read_specification(path).name == "trainer"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "x"),
        ("hfToken", "x"),
        ("HFTOKEN", "x"),
        ("WANDB_API_KEY", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("DB_PASSWORD", "x"),
        ("SERVICE_KEYS", "x"),
        ("ANYTHING", "hf_abcdefghijklmnopqrstuvwxyz"),
        ("ANYTHING", "rpa_ABC"),
        ("ANYTHING", "sb_secret_abc"),
        ("ANYTHING", "sk-proj-abcdefghij"),
        ("ANYTHING", "ghp_abcdefghijklmnop"),
        ("ANYTHING", "postgresql://user:password@host/db"),
        ("ANYTHING", "https://x.supabase.co/object?token=abcdef"),
        ("ANYTHING", "-----BEGIN RSA PRIVATE KEY-----"),
        ("ANYTHING", "Bearer abc"),
        ("HF_TOKEN", "{{ RUNPOD_SECRET_hf }} and more"),
    ],
)
def test_a_secret_among_the_variables_is_refused_unseen(name: str, value: str) -> None:
    fault = secret_fault(name, value)
    assert fault is not None
    assert "RUNPOD_SECRET_" in fault
    assert len(value) == 1 or value not in fault


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "{{ RUNPOD_SECRET_hf_token }}"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("MONKEY", "banana"),
        ("SUPABASE_PUBLISHABLE_KEY", "x"),
        ("HF_HOME", "/runpod-volume/huggingface-cache"),
        ("LORA_TRAINER_TRUST_REMOTE_CODE", '["org/model"]'),
        ("MLFLOW_TRACKING_URI", "https://mlflow.example.com:8080/path"),
        ("WANDB_API_KEY", ""),
    ],
)
def test_what_is_no_secret_may_stand_among_the_variables(name: str, value: str) -> None:
    assert secret_fault(name, value) is None


def test_the_written_file_says_what_was_chosen_and_is_valid() -> None:
    values = {
        "name": 'a "quoted" name',
        "image": "i:1",
        "env": {"A": 'b\\"\n'},
        "gpu": {"pools": ["ADA_24"], "count": 2},
        "volumes": [{"name": "v", "size_gb": 10, "data_center": "EU-RO-1"}],
    }
    with pytest.raises(DeploymentFileError, match="line 10: name: write letters"):
        render_specification(values, FILE)
    text = render_specification({**values, "name": "trainer"}, FILE)
    read = parse_specification(text, FILE)
    assert (read.gpu.pools, read.gpu.count, read.env, read.volumes[0].size_gb) == (("ADA_24",), 2, {"A": 'b\\"\n'}, 10)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_the_written_file_names_each_key_and_its_default() -> None:
    text = render_specification({"name": "trainer", "image": "i:1"}, FILE)
    uncommented = text.replace("# max = ", "max = ").replace("# disk_gb = ", "disk_gb = ").replace(
        "# min_cuda = ", "min_cuda = "
    )  # fmt: skip
    bare = Specification(name="trainer", image="i:1")
    assert parse_specification(text, FILE) == bare
    assert uncommented != text
    assert parse_specification(uncommented, FILE) == bare
    for name in Specification.model_fields:
        assert name in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_rights_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "deploy.toml"
    path.touch(0o000)
    with pytest.raises(DeploymentFileError, match="can't be read"):
        read_specification(path)
