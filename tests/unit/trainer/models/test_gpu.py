import pynvml
import pytest

from lora_trainer.errors import GpusMissingError
from lora_trainer.run.gpu import GpuMonitor, GpuSample, gpus_for, visible_gpus


def test_without_a_gpu_no_gpu_values_are_reported():
    monitor = GpuMonitor(wanted=False)
    assert (monitor.name, monitor.sample()) == (None, GpuSample())


def test_gpu_invisible_to_nvml_is_tolerated(monkeypatch):
    def refuse():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert GpuMonitor(wanted=True).sample() == GpuSample()


@pytest.fixture
def two_gpus(monkeypatch):
    class Utilization:
        gpu = 97

    class Memory:
        used = 42 << 30

    answers = {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByIndex": object(),
        "nvmlDeviceGetName": "NVIDIA A100-SXM4-80GB",
        "nvmlSystemGetDriverVersion": "570.1",
        "nvmlDeviceGetCount": 2,
        "nvmlDeviceGetUtilizationRates": Utilization,
        "nvmlDeviceGetMemoryInfo": Memory,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)


def test_gpu_name_and_utilisation_are_reported(two_gpus, monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda name: name)
    monitor = GpuMonitor(wanted=True, uuid="a")
    assert (monitor.name, monitor.driver, monitor.count) == ("NVIDIA A100-SXM4-80GB", "570.1", 2)
    assert monitor.sample() == GpuSample(97.0, 42 << 30)


def test_gpu_that_trains_is_found_by_its_uuid_not_its_index(two_gpus, monkeypatch):
    names = {"GPU-b": "the second", "MIG-c": "a part of it", "first": "the first"}

    def by_uuid(uuid):
        if uuid not in names:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", by_uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: "first")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: names[handle])
    assert GpuMonitor(wanted=True, uuid="b").name == "the second"
    assert GpuMonitor(wanted=True, uuid="c").name == "a part of it"
    unknown = GpuMonitor(wanted=True, uuid="d", name="H100 of torch")
    assert (unknown.name, unknown.count, unknown.sample()) == ("H100 of torch", 2, GpuSample())
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    assert GpuMonitor(wanted=True, uuid="d").name == "the first"
    assert GpuMonitor(wanted=True).name == "the first"


def test_unreadable_gpu_values_do_not_stop_the_training(two_gpus, monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda name: name)
    monitor = GpuMonitor(wanted=True, uuid="a")

    def fail(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", fail)
    assert monitor.sample() == GpuSample()


def test_training_gets_the_gpus_it_asks_for_or_a_sentence(two_gpus):
    assert visible_gpus({}) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b,-1"}) == ["GPU-a", "GPU-b"]
    assert gpus_for(1, ["3", "4"]) == ["3"]
    assert gpus_for(2, ["3", "4"]) == ["3", "4"]
    with pytest.raises(GpusMissingError, match="The job asks for 4 GPUs, and the machine has 2 for it") as refusal:
        gpus_for(4, ["3", "4"])
    assert refusal.value.hint == "Set gpu_config's count to 2, or choose an endpoint with 4 GPUs."
    assert gpus_for(2, []) == [None, None], "on a machine for trials the CPU stands in"
