import pynvml
import pytest

from lora_trainer.run.gpu import GpuMonitor, GpuSample


def test_without_a_gpu_nothing_is_claimed():
    monitor = GpuMonitor(wanted=False)
    assert (monitor.name, monitor.sample()) == (None, GpuSample())


def test_a_gpu_that_nvml_can_not_see_is_no_fault(monkeypatch):
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


def test_the_gpu_names_itself_and_how_busy_it_is(two_gpus):
    monitor = GpuMonitor(wanted=True)
    assert (monitor.name, monitor.driver, monitor.count) == ("NVIDIA A100-SXM4-80GB", "570.1", 2)
    assert monitor.sample() == GpuSample(97.0, 42 << 30)


def test_a_gpu_that_falls_silent_does_not_stop_the_training(two_gpus, monkeypatch):
    monitor = GpuMonitor(wanted=True)

    def fail(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", fail)
    assert monitor.sample() == GpuSample()
