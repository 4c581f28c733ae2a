import asyncio
import itertools

from hypothesis import given
from hypothesis import strategies as st

from lora_contract.protocol import STAGE_PROGRESS, STAGES, Point, Progress, Stage
from lora_trainer.run.runpod_progress import ProgressPoster, advance


def progress(stage: Stage, percent: float | None = None, step: int = 0) -> Progress:
    points = [Point(step=n, epoch=0) for n in range(1, step + 1)]
    shown = STAGE_PROGRESS[stage] if percent is None else percent
    return Progress(run_id="r", stage=stage, progress=shown, current_step=step, points=points)


@given(st.lists(st.tuples(st.sampled_from(STAGES), st.floats(0, 100), st.integers(0, 9)), min_size=1))
def test_stage_progress_and_step_never_go_back(updates):
    shown: list[Progress] = []
    for update in updates:
        shown.append(advance(shown[-1] if shown else None, progress(*update)))
    for before, after in itertools.pairwise(shown):
        assert STAGES.index(before.stage) <= STAGES.index(after.stage)
        assert before.progress <= after.progress
        assert before.current_step <= after.current_step


def test_stage_without_points_keeps_the_curve():
    kept = advance(progress(Stage.TRAINING, step=5), progress(Stage.UPLOADING))
    assert [point.step for point in kept.points] == [1, 2, 3, 4, 5]
    assert kept.stage is Stage.UPLOADING


class Server:
    """Accepts posts slowly, as a distant server does: each takes some turns of the event loop."""

    def __init__(self) -> None:
        self.arrived: list[float] = []
        self.under_way = 0
        self.most_under_way = 0

    async def post(self, payload: dict) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await turns(10)
        self.arrived.append(payload["progress"])
        self.under_way -= 1


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_posts_are_sequential_and_finished_when_closed():
    server = Server()
    poster = ProgressPoster(server.post, interval_seconds=0, settle_seconds=0)
    for percent in range(0, 100, 5):
        poster.update(progress(Stage.TRAINING, percent))
        await turns(3)
    await poster.close()
    arrived = list(server.arrived)
    assert 1 < len(arrived) < 20
    assert server.most_under_way == 1
    assert arrived == sorted(arrived)
    assert server.under_way == 0
    poster.update(progress(Stage.COMPLETED))
    await turns(50)
    assert server.arrived == arrived, "something was posted after the end"


async def test_updates_between_two_posts_are_merged():
    server = Server()
    poster = ProgressPoster(server.post, interval_seconds=1000, settle_seconds=0)
    for percent in range(50):
        poster.update(progress(Stage.TRAINING, percent))
    await turns(50)
    await poster.close()
    assert len(server.arrived) == 1


async def test_failed_post_does_not_stop_the_training():
    calls = []

    async def refuse(payload: dict) -> None:
        calls.append(payload)
        raise ConnectionError("gone")

    poster = ProgressPoster(refuse, interval_seconds=0, settle_seconds=0)
    for percent in (1, 2, 3):
        poster.update(progress(Stage.TRAINING, percent))
        while len(calls) < percent:
            await asyncio.sleep(0)
    await poster.close()
    assert len(calls) == 3
