"""`sky.jobs.client.sdk`: managed jobs."""

import yaml

from sky.client.sdk import send, submit


def launch(task, name, job_group):
    """Submit a job; the request's id."""
    assert job_group is None
    dag = "---\n".join([yaml.safe_dump({"name": name}), yaml.safe_dump(task.config)])
    status, value, _ = send("POST", "/validate", {"dag": dag, "request_options": None})
    if status == 400:
        raise ValueError(value["detail"]["message"])
    return submit("/jobs/launch", {"task": dag, "name": name})


def queue_v2(**body):
    """The queue; the request's id."""
    return submit("/jobs/queue/v2", body)


def cancel(job_ids):
    """Cancel jobs; the request's id."""
    return submit("/jobs/cancel", {"job_ids": job_ids})
