"""The checks of the machine, on a real GPU with the real kernels."""

import pytest

from lora_trainer.errands.examination import examine
from lora_trainer.settings import Settings

pytestmark = pytest.mark.gpu


async def test_every_check_passes_on_this_gpu(tmp_path):
    checks = await examine(Settings(volume=tmp_path))
    print("\n".join(f"{check.name}: {check.finding}" for check in checks))
    assert [check.name for check in checks if not check.ok] == []
    findings = {check.name: check.finding for check in checks}
    assert "on the GPU" in findings["quantisation"]
    assert "on the GPU" in findings["attention"]
