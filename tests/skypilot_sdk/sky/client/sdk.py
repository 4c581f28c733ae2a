"""`sky.client.sdk`: the requests, and their outcomes."""

import http.client
import json
import os
from types import SimpleNamespace
from urllib.parse import urlsplit


class ApiServerConnectionError(RuntimeError):
    """There is no server at the address."""


class ApiServerAuthenticationError(RuntimeError):
    """The server wants another token."""


def send(method, path, body=None):
    """The answer to a request: status, body, id of the request."""
    url = urlsplit(os.environ["SKYPILOT_API_SERVER_ENDPOINT"])
    token = os.environ.get("SKYPILOT_SERVICE_ACCOUNT_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection = http.client.HTTPConnection(url.hostname, url.port)
    try:
        connection.connect()
    except OSError:
        raise ApiServerConnectionError(f"Could not connect to SkyPilot API server at {url.netloc}.") from None
    try:
        connection.request(method, path, body if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status == 401:
            raise ApiServerAuthenticationError("Authentication is required.")
        return answer.status, json.loads(answer.read()), answer.headers.get("X-Skypilot-Request-ID")
    finally:
        connection.close()


def submit(path, body):
    """Post a request; its id, under which its outcome is fetched."""
    status, _, request_id = send("POST", path, body)
    if status != 200 or request_id is None:
        raise RuntimeError(f"Failed to get request ID from SkyPilot API server: {status}")
    return request_id


def get(request_id):
    """The outcome of a request."""
    status, value, _ = send("GET", f"/api/get?request_id={request_id}")
    if status == 404:
        raise RuntimeError(f"Request {request_id!r} not found")
    if status == 500:
        raise RuntimeError(json.loads(value["detail"]["error"])["message"])
    result = json.loads(value["return_value"])
    if value["name"] == "sky.jobs.launch":
        return result["job_id"], result["handle"]
    if value["name"] == "sky.jobs.queue_v2":
        jobs = [SimpleNamespace(**{**job, "status": SimpleNamespace(value=job["status"])}) for job in result["jobs"]]
        return jobs, result["total"], result["status_counts"], result["total_no_filter"]
    return result
